//! The three real command-line tools, in their images, in frozen warm containers, against the offline upstream.
//!
//! The images are built into the cache that `make demo` uses too, `${THAWD_CACHE:-~/.cache/thawd}`: the first run
//! downloads the tools.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "cli/login.rs"]
mod login;
#[path = "cli/refused.rs"]
mod refused;
mod support;
#[path = "cli/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use support::{ContainerCgroup, Daemon, Outcome, Setup, eventually, prompt};
use thaw_client::types::{ClaimPath, Container, Credentials, Event, ExecutionRequest, ExitReason, Secret, Stage};
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Quiet;

const PROVIDERS: [&str; 3] = ["openai", "anthropic", "google"];

fn cache() -> PathBuf {
    std::env::var_os("THAWD_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache/thawd"),
        PathBuf::from,
    )
}

/// Builds the three images, unless they are there already.
fn layouts() -> &'static Path {
    static LAYOUTS: OnceLock<PathBuf> = OnceLock::new();
    LAYOUTS.get_or_init(|| {
        let layouts = cache().join("layouts");
        for name in PROVIDERS {
            let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name);
            let options = BuildOptions::new(layouts.join(name), cache().join("build"));
            build(&manifest, &options, &Quiet).unwrap_or_else(|error| panic!("image {name}: {error}"));
        }
        layouts
    })
}

fn http_client() -> reqwest::Client {
    let tls = thaw_client::tls::client_config().unwrap();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}

/// The offline upstream, stopped when dropped.
struct Upstream {
    child: Child,
    address: String,
    http: reqwest::Client,
}

impl Upstream {
    fn start() -> Self {
        // `cargo test` builds examples before it runs integration tests; with `--test cli` alone, build it first:
        // cargo build --example offline-upstream.
        let program = Path::new(env!("CARGO_BIN_EXE_thawd")).with_file_name("examples").join("offline-upstream");
        let mut child = Command::new(&program)
            .args(["--listen", "127.0.0.1:0", "--token-delay-ms", "20"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening ").unwrap().to_owned();
        Self { child, address, http: http_client() }
    }

    fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.address);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    async fn forget(&self) {
        let url = format!("http://{}/__requests", self.address);
        self.http.delete(url).send().await.unwrap().error_for_status().unwrap();
    }

    async fn control(&self, body: Value) {
        let url = format!("http://{}/__control", self.address);
        self.http.post(url).json(&body).send().await.unwrap().error_for_status().unwrap();
    }

    /// Made-up credentials in the form that the provider's CLI reads.
    async fn credentials(&self, provider: &str) -> Credentials {
        let all = self.get("/__credentials").await;
        let one = &all[provider];
        let secrets = |value: &Value| -> BTreeMap<String, Secret> {
            let object = value.as_object().cloned().unwrap_or_default();
            object.into_iter().map(|(name, text)| (name, Secret::new(text.as_str().unwrap().to_owned()))).collect()
        };
        Credentials { files: secrets(&one["files"]), env: secrets(&one["env"]) }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn daemon(upstream: &Upstream, change: impl Fn(Setup, &str) -> Setup) -> Daemon {
    let layouts = layouts();
    let target = format!("upstream.test:{}", upstream.port());
    Daemon::start(|mut setup| {
        setup = setup
            .pool(0)
            .set("paths.layouts_dir", layouts.to_str().unwrap())
            .set("egress.resolve", toml::Table::from_iter([("upstream.test".to_owned(), vec!["127.0.0.1"].into())]));
        // Only the real ones: the manifests of the tests have no image here.
        setup.clear_providers();
        for name in PROVIDERS {
            let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers").join(format!("{name}.toml"));
            setup = setup
                .add_provider(&std::fs::read_to_string(manifest).unwrap())
                .set(&format!("provider.{name}.base_url"), format!("http://{target}"))
                .set(&format!("provider.{name}.egress"), vec![target.clone()]);
            setup = change(setup, name);
        }
        setup
    })
    .await
}

/// How many connections came to the proxies of all containers so far, whatever became of them.
async fn proxied(daemon: &Daemon) -> f64 {
    let metrics = daemon.http("GET /metrics", &[], b"").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(text.contains("thawd_egress_connections"), "{text}");
    let counts = text.lines().filter(|line| line.starts_with("thawd_egress_connections_total{"));
    counts.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// What the kernel counted of attempts to connect or to send anything in a container's network namespace, to wherever,
/// routed or not: what is not zero.
fn network_attempts(container: &Container) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", container.pid.unwrap())).unwrap();
    let mut found = BTreeMap::new();
    for (protocol, name) in
        [("Tcp:", "ActiveOpens"), ("Udp:", "OutDatagrams"), ("Ip:", "OutRequests"), ("Ip:", "OutNoRoutes")]
    {
        let mut lines = text.lines().filter(|line| line.starts_with(protocol)).map(|line| line.split(' '));
        let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.position(|field| field == name).unwrap();
        let count: u64 = values.nth(at).unwrap().parse().unwrap();
        if count > 0 {
            found.insert(format!("{protocol}{name}"), count);
        }
    }
    found
}

/// Nothing that is secret is in the environment or the arguments of any process of it: there is nobody yet.
fn holds_nobodys_secret(container: &Container) {
    let processes = ContainerCgroup::of(container).processes();
    assert!(processes.len() >= 2, "{}: thaw-init and the CLI", container.provider);
    for process in processes {
        let environ = std::fs::read(format!("/proc/{process}/environ")).unwrap();
        for variable in environ.split(|byte| *byte == 0).map(String::from_utf8_lossy) {
            let (name, value) = variable.split_once('=').unwrap_or_default();
            let secret = ["KEY", "TOKEN", "SECRET"].iter().any(|word| name.contains(word));
            assert!(!secret || value == "prestart" || name == "MAX_THINKING_TOKENS", "{}: {name}", container.provider);
        }
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        assert!(!arguments.contains("sk-") && !arguments.contains("offline"), "{arguments}");
    }
}

async fn ask(daemon: &Daemon, upstream: &Upstream, provider: &str, text: &str) -> Outcome {
    ask_with(daemon, upstream.credentials(provider).await, provider, text).await
}

async fn ask_late(daemon: &Daemon, upstream: &Upstream, provider: &str, text: &str) -> Outcome {
    ask_with(daemon, late_credentials(upstream, provider).await, provider, text).await
}

/// A credential that a CLI takes while it runs: gemini takes no access token then, but a key.
async fn late_credentials(upstream: &Upstream, provider: &str) -> Credentials {
    match provider {
        "google" => Credentials {
            files: BTreeMap::new(),
            env: BTreeMap::from([("GEMINI_API_KEY".to_owned(), Secret::new("key-offline".to_owned()))]),
        },
        _ => upstream.credentials(provider).await,
    }
}

async fn ask_with(daemon: &Daemon, credentials: Credentials, provider: &str, text: &str) -> Outcome {
    let credentials = Some(credentials);
    // Debug builds on a busy machine: the manifest's 30 s are for users.
    let request = ExecutionRequest { credentials, timeout_ms: Some(120_000), ..prompt(provider, text) };
    daemon.run(&request).await
}

fn answer(outcome: &Outcome) -> String {
    let deltas = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    deltas.collect()
}

/// Everything in one test: the pools are filled, images unpacked and the CLIs run once for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn each_cli_answers_out_of_a_warm_container_and_failures_are_told() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| setup.set(&format!("provider.{name}.pool_target"), 1)).await;
    for provider in PROVIDERS {
        let outcome = ask(&daemon, &upstream, provider, "What is 3*67? Answer with the number only.").await;
        let stderr = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}\n{stderr}", outcome.exit);
        assert_eq!(outcome.started.path, ClaimPath::Warm, "{provider}");
        assert_eq!((outcome.exit.reason, outcome.exit.code), (ExitReason::Exited, Some(0)), "{provider}");
        assert!(outcome.exit.success && outcome.exit.cpu_ms > 0, "{provider}: {:?}", outcome.exit);
        let memory = outcome.exit.memory_peak_bytes;
        assert!((1 << 20..=512 << 20).contains(&memory), "{provider}: {memory} bytes");
    }
    let requests = upstream.get("/__requests").await;
    let asked: Vec<_> = requests["items"].as_array().unwrap().iter().filter(|r| r["prompt"].is_string()).collect();
    assert!(asked.len() >= 3, "{asked:?}");
    assert!(asked.iter().all(|request| request["credential"].is_object()), "each with its credential: {asked:?}");

    for provider in PROVIDERS {
        upstream.control(json!({"misbehave": "401", "api": provider})).await;
        let outcome = ask(&daemon, &upstream, provider, "What is 3*67?").await;
        assert!(!outcome.exit.success, "{provider}: a refused credential is a failure, whatever the exit code");
        assert!(outcome.exit.detail.is_some(), "{provider}: and the reason is told");
        assert_eq!(answer(&outcome).matches("201").count(), 0, "{provider}");
        upstream.control(json!({"misbehave": "none", "api": provider})).await;
    }

    // What the allow-list does not name is refused, and the log says so.
    let credentials = Some(upstream.credentials("anthropic").await);
    let script = "curl -sS --fail http://example.com/ 2>&1; echo status $?";
    let command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    let provider = "anthropic".to_owned();
    let outcome = daemon
        .run(&ExecutionRequest { provider, user: "u1".to_owned(), command, credentials, ..ExecutionRequest::default() })
        .await;
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(said.contains("403") && !said.contains("status 0"), "{said}");
    let log = daemon.log();
    assert!(log.contains("egress refused") && log.contains("example.com"), "{log}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cli_waits_already_started_asks_nothing_and_answers_its_one_user() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| {
        setup.set(&format!("provider.{name}.pool_target"), 0).set(&format!("provider.{name}.prestarted"), 1)
    })
    .await;
    let full = || async {
        let pools = daemon.client.pools().await.unwrap();
        let full = pools.iter().filter(|pool| pool.stage == Stage::Prestarted).all(|pool| pool.warm == 1);
        full.then_some(())
    };
    eventually("three CLIs wait already started", full).await;
    let before = upstream.get("/__requests").await;
    assert_eq!(before["items"], json!([]), "nothing is asked before there is a user");
    assert_eq!(proxied(&daemon).await, 0.0, "nor is anything refused");
    let waiting = daemon.containers().await;
    for container in &waiting {
        assert!(container.frozen && container.memory_bytes > 4 << 20, "a CLI is in it: {container:?}");
        assert_eq!(network_attempts(container), BTreeMap::new(), "{}: not even past the proxy", container.provider);
        holds_nobodys_secret(container);
    }
    for provider in PROVIDERS {
        let outcome = ask_late(&daemon, &upstream, provider, "What is 3*67? Answer with the number only.").await;
        let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}\n{said}", outcome.exit);
        assert!(
            outcome.started.prestarted && outcome.started.path == ClaimPath::Warm,
            "{provider}: {:?}",
            outcome.started
        );
        assert!(outcome.exit.success && outcome.exit.code == Some(0), "{provider}: {:?}", outcome.exit);
        assert!(waiting.iter().any(|one| one.id == outcome.started.container), "one of those that waited");
    }
    assert!(proxied(&daemon).await >= 3.0, "what counts nothing would prove nothing");
    eventually("each is gone after its one user", || async {
        let now = daemon.containers().await;
        waiting.iter().all(|then| now.iter().all(|one| one.id != then.id)).then_some(())
    })
    .await;
    // What cannot be handed over late is served by a container without a CLI in it.
    let request = ExecutionRequest {
        credentials: Some(upstream.credentials("anthropic").await),
        env: BTreeMap::from([("EXTRA".to_owned(), "1".to_owned())]),
        timeout_ms: Some(120_000),
        ..prompt("anthropic", "What is 3*67?")
    };
    let outcome = daemon.run(&request).await;
    assert!(!outcome.started.prestarted && outcome.started.path == ClaimPath::Cold, "{:?}", outcome.started);
    assert!(answer(&outcome).contains("201"), "{:?}", outcome.exit);

    eventually("the pools are full again", full).await;
    upstream.control(json!({"misbehave": "401"})).await;
    for provider in PROVIDERS {
        let outcome = ask_late(&daemon, &upstream, provider, "What is 3*67?").await;
        assert!(!outcome.exit.success && outcome.exit.detail.is_some(), "{provider}: {:?}", outcome.exit);
    }
    daemon.stop().await;
}

/// What is said to a real CLI survives the daemon: before it has a user, and from the moment in which it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn each_cli_that_waits_or_answers_survives_a_killed_daemon() {
    let upstream = Upstream::start();
    let mut daemon = daemon(&upstream, |setup, name| {
        setup.set(&format!("provider.{name}.pool_target"), 0).set(&format!("provider.{name}.prestarted"), 1)
    })
    .await;
    let mut before = waiting(&daemon).await;
    for provider in PROVIDERS {
        daemon.kill();
        daemon.launch().await;
        assert_eq!(waiting(&daemon).await, before, "those that waited wait on");
        let request = ExecutionRequest {
            background: true,
            credentials: Some(late_credentials(&upstream, provider).await),
            timeout_ms: Some(120_000),
            ..prompt(provider, "What is 3*67? Answer with the number only.")
        };
        let id = daemon.client.create(&request).await.unwrap().id;
        daemon.kill();
        daemon.launch().await;
        let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await;
        let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}\n{said}", outcome.exit);
        assert!(outcome.exit.success && outcome.started.prestarted, "{provider}: {:?}", outcome.exit);
        assert!(before.contains(&outcome.started.container), "{provider}: one of those that waited");
        before = waiting(&daemon).await;
    }
    daemon.stop().await;
}

/// The containers with a CLI that waits, once there is one of each provider and no other container.
async fn waiting(daemon: &Daemon) -> Vec<String> {
    eventually("three CLIs wait already started", || async {
        let pools = daemon.client.pools().await.unwrap();
        let mut pools = pools.iter().filter(|pool| pool.stage == Stage::Prestarted);
        let mut ids: Vec<_> = daemon.containers().await.into_iter().map(|container| container.id).collect();
        ids.sort();
        (pools.all(|pool| pool.warm == 1) && ids.len() == PROVIDERS.len()).then_some(ids)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_provider_refuses_is_renewed_by_a_cli_that_has_the_file() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| {
        let prestarted = u32::from(name == "openai");
        setup.set(&format!("provider.{name}.pool_target"), 0).set(&format!("provider.{name}.prestarted"), prestarted)
    })
    .await;
    let full = || async {
        let pools = daemon.client.pools().await.unwrap();
        pools.iter().any(|pool| pool.stage == Stage::Prestarted && pool.warm == 1).then_some(())
    };
    eventually("codex waits already started", full).await;
    upstream.control(json!({"misbehave": "401", "api": "openai", "times": 1})).await;
    let outcome = ask(&daemon, &upstream, "openai", "What is 3*67? Answer with the number only.").await;
    let started = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Started(started) => Some(started),
        _ => None,
    });
    let started: Vec<_> = started.collect();
    let [first, second] = started[..] else { panic!("{:?}", outcome.events) };
    assert!(first.prestarted && !second.prestarted && first.container != second.container, "{started:?}");
    assert_eq!(answer(&outcome).trim(), "201", "{:?}", outcome.exit);
    assert!(outcome.exit.success && outcome.exit.code == Some(0), "{:?}", outcome.exit);
    // Once, and not for ever: a token that cannot be renewed is a failure, and the reason is told.
    eventually("another codex waits", full).await;
    upstream.control(json!({"misbehave": "401", "api": "openai"})).await;
    let outcome = ask(&daemon, &upstream, "openai", "What is 3*67?").await;
    assert!(!outcome.exit.success && outcome.exit.detail.is_some(), "{:?}", outcome.exit);
    let starts = outcome.events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count();
    assert_eq!(starts, 2, "{:?}", outcome.events);
    eventually("both containers are gone", || async {
        daemon.containers().await.iter().all(|container| container.frozen).then_some(())
    })
    .await;
    daemon.stop().await;
}
