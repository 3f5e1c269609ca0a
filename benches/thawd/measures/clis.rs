//! The real command-line tools: from the prompt being known to the first request that reaches the upstream.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use thawd::image::Store;
use thawd::image::build::{BuildOptions, build};
use thawd::image::progress::Terminal;
use thawd::provider::{self, Dialect, DialectParser, Invocation, PromptSpec, Provider};

use crate::Options;
use crate::bed::{Bed, Daemon, check_interrupted, repository};
use crate::contender::succeed;
use crate::http::{Event, Request};
use crate::peers::podman::{limits, podman, remove};
use crate::report::{Goal, Outcome};
use crate::stats::Series;

/// Warm containers of each provider.
const POOL: usize = 2;

/// What each is asked, and what must be in its answer.
const PROMPT: &str = "What is 3*67? Answer with the number only.";
const ANSWER: &str = "201";

/// A provider, and the made-up account that the offline upstream accepts.
struct Account {
    provider: &'static str,
    files: Vec<(&'static str, String)>,
    env: Vec<(&'static str, String)>,
}

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Real CLIs: prompt to first upstream request",
        "Each CLI in its own image, asked the same question against an upstream on this machine, which notes when the \
         first request arrives (same clock). thawd: the request with prompt and credentials over HTTP on the Unix \
         socket, a frozen container, run class of the manifest (0.5 CPU, burst 1.0, 512 MiB), the upstream reached \
         through the egress proxy. podman: `podman exec -i` of the same command with the same environment in a \
         running container of the same root file system with 0.5 CPU and 512 MiB, in a fresh home with the credentials \
         already in place, on the host's network.",
    );
    let upstream = Upstream::start(bed)?;
    let accounts = accounts();
    let (state, layouts) = (bed.cache.join("state"), bed.cache.join("layouts"));
    for account in &accounts {
        let layout = layouts.join(account.provider);
        if !layout.join("index.json").is_file() {
            fs::create_dir_all(&layouts)?;
            let source = repository().join("images").join(account.provider);
            let options = BuildOptions::new(&layout, bed.cache.join("build"));
            build(&source, &options, &Terminal::new(account.provider))
                .with_context(|| format!("build the image of {}", account.provider))?;
        }
    }
    let mut more = String::from("[egress.resolve]\n\"upstream.test\" = [\"127.0.0.1\"]\n");
    for Account { provider, .. } in &accounts {
        more += &format!(
            "[provider.{provider}]\npool_target = {POOL}\nbase_url = \"http://upstream.test:{0}\"\n\
             egress = [\"upstream.test:{0}\"]\n",
            upstream.port
        );
    }
    let manifests = repository().join("providers");
    let daemon = Daemon::with(bed, &state, &layouts, &manifests, 20, &more)?;
    let providers = provider::load_dir(&manifests)?;
    // Unpacks what is not unpacked yet; the same files serve podman.
    let store = Store::open(&state.join("images"))?;
    for account in &accounts {
        let image = store.ensure(&layouts.join(account.provider))?;
        daemon.wait_full(account.provider, POOL)?;
        let provider = providers.get(account.provider).context("no manifest")?;
        let peer = Peer::start(bed, account, provider, &image, &upstream);
        one(&daemon, account, peer, &upstream, options, &mut outcome)?;
    }
    Ok(outcome)
}

fn one(
    daemon: &Daemon,
    account: &Account,
    peer: Result<Peer>,
    upstream: &Upstream,
    options: &Options,
    outcome: &mut Outcome,
) -> Result<()> {
    // By the stage at which the container was claimed, as the daemon says it; a daemon that says none has one stage.
    let mut stages: BTreeMap<String, Series> = BTreeMap::new();
    let mut podman = Series::new("podman exec");
    // The first round fills caches and does not count.
    for round in 0..=options.n {
        check_interrupted()?;
        daemon.wait_full(account.provider, POOL)?;
        let (stage, time) = ask_thawd(daemon, account, upstream)?;
        if round > 0 {
            stages.entry(stage.clone()).or_insert_with(|| Series::new(format!("thawd, {stage}"))).push(time);
        }
        daemon.wait_full(account.provider, POOL)?;
        if let Ok(running) = &peer {
            running.reset()?;
            let time = running.ask(upstream)?;
            if round > 0 {
                podman.push(time);
            }
        }
    }
    for (stage, series) in &stages {
        let what = format!("{}: podman exec / thawd, {stage}", account.provider);
        let ratio = podman.median() / series.median();
        if stage == "prestarted" {
            outcome.goal(what, ratio, "×", Goal::AtLeast(5.0));
        } else if peer.is_ok() {
            outcome.fact(what, ratio, "×");
        }
    }
    if let Err(error) = peer {
        outcome.note(format!("{}: podman is not in the comparison: {error:#}", account.provider));
    }
    if !stages.contains_key("prestarted") {
        outcome.note(format!("{}: no claim was served by a prestarted CLI", account.provider));
    }
    let reference = podman.name.clone();
    let series = stages.into_values().chain((!podman.micros.is_empty()).then_some(podman)).collect();
    outcome.compare(account.provider, series, &reference);
    Ok(())
}

fn ask_thawd(daemon: &Daemon, account: &Account, upstream: &Upstream) -> Result<(String, Duration)> {
    let object = |pairs: &[(&str, String)]| -> Value {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
    };
    let body = json!({
        "provider": account.provider, "user": "bench", "prompt": PROMPT,
        "credentials": {"files": object(&account.files), "env": object(&account.env)},
    });
    let request = Request::new(&body);
    let mut client = daemon.client();
    client.connect()?;
    let asked = monotonic_ns();
    let mut events = client.execute(&request)?;
    let mut event = Event::default();
    let (mut stage, mut answer, mut exit) = ("created".to_owned(), String::new(), None);
    while events.next(&mut event)?.is_some() {
        let data = event.json()?;
        match event.name.as_str() {
            "started" => {
                ensure!(data["path"] == "warm", "{}: the claim was not warm: {data}", account.provider);
                if let Some(said) = data["stage"].as_str() {
                    said.clone_into(&mut stage);
                }
            }
            "delta" => answer += data["text"].as_str().unwrap_or_default(),
            "exit" => exit = Some(data),
            _ => {}
        }
    }
    let exit = exit.context("the stream ended without an exit")?;
    ensure!(exit["success"] == true && answer.contains(ANSWER), "{}: {exit}, said {answer:?}", account.provider);
    Ok((stage, upstream.first_after(asked)?))
}

/// The same CLI in a container of podman's.
struct Peer {
    bed: Rc<Bed>,
    name: String,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    dialect: Dialect,
    home: String,
    /// Of its credentials.
    directory: String,
    /// Path and content.
    files: Vec<(String, String)>,
}

impl Peer {
    fn start(
        bed: &Rc<Bed>,
        account: &Account,
        provider: &Provider,
        image: &thawd::image::Image,
        upstream: &Upstream,
    ) -> Result<Self> {
        let files: Vec<_> = account.files.iter().map(|(name, _)| *name).collect();
        let variables: Vec<_> = account.env.iter().map(|(name, _)| *name).collect();
        let base_url = format!("http://127.0.0.1:{}", upstream.port);
        let invocation = provider.invocation(&PromptSpec {
            prompt: PROMPT,
            credential_files: &files,
            credential_env: &variables,
            base_url: Some(&base_url),
            ..PromptSpec::default()
        })?;
        let name = format!("{}-{}", bed.cgroup, account.provider);
        let mut command = podman(bed.path());
        command.args(["run", "--detach", "--network", "host", "--log-driver", "none", "--name", &name]);
        command.arg("--cgroup-parent").arg(format!("/{}", bed.cgroup));
        command.args(limits(512, 0.5, 256)).arg("--tmpfs").arg(format!("{}:rw,size=100m,mode=1777", provider.home));
        command.args(["--tmpfs", "/tmp:rw,size=100m,mode=1777", "--entrypoint", "[]", "--rootfs"]);
        command.arg(&image.rootfs).args(["/bin/sleep", "1000000"]);
        bed.private.run(move || succeed(&mut command))?;
        let mut env = image.config.env.clone();
        env.extend([("HOME".to_owned(), provider.home.clone()), ("USER".to_owned(), "runtime".to_owned())]);
        env.extend(invocation.env.clone());
        env.extend(account.env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let stdin = invocation.stdin.clone().unwrap_or_default();
        let home = provider.home.clone();
        let directory = format!("{home}/{}", provider.credentials.dir);
        let files = account.files.iter().map(|(file, text)| (format!("{directory}/{file}"), text.clone())).collect();
        let Invocation { argv, dialect, .. } = invocation;
        Ok(Self { bed: Rc::clone(bed), name, argv, env, stdin, dialect, home, directory, files })
    }

    /// Gives it a fresh home with the credentials in it, as every container of thawd has.
    fn reset(&self) -> Result<()> {
        let run = |script: &str, stdin: &str| {
            self.exec(&["/bin/sh", "-c", script].map(str::to_owned), &[], stdin.as_bytes()).map(drop)
        };
        run(&format!("find {} -mindepth 1 -delete; mkdir -p {}", self.home, self.directory), "")?;
        self.files.iter().try_for_each(|(path, text)| run(&format!("cat > {path}"), text))
    }

    fn exec(&self, argv: &[String], env: &[(String, String)], stdin: &[u8]) -> Result<String> {
        let mut command = podman(self.bed.path());
        command.args(["exec", "--interactive"]);
        for (name, value) in env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        command.arg(&self.name).args(argv);
        let stdin = stdin.to_vec();
        self.bed.private.run(move || {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            child.stdin.take().context("no pipe")?.write_all(&stdin)?;
            let output = child.wait_with_output()?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{command:?}: {}: {complaint}", output.status);
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    fn ask(&self, upstream: &Upstream) -> Result<Duration> {
        let asked = monotonic_ns();
        let output = self.exec(&self.argv, &self.env, &self.stdin)?;
        let answer = DialectParser::new(self.dialect).push(output.as_bytes()).concat();
        ensure!(answer.contains(ANSWER), "{}: it said {output:?}", self.name);
        upstream.first_after(asked)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        remove(&self.bed, &self.name);
    }
}

/// The stand-in for the three providers.
struct Upstream {
    child: Child,
    port: u16,
    record: PathBuf,
}

impl Upstream {
    fn start(bed: &Bed) -> Result<Self> {
        let program = bed.binaries.join("examples/offline-upstream");
        ensure!(
            program.is_file(),
            "{} is missing: cargo build --release --example offline-upstream",
            program.display()
        );
        let (record, said) = (bed.path().join("requests"), bed.path().join("upstream"));
        let child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--token-delay-ms", "1", "--record"])
            .arg(&record)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said)?)
            .spawn()?;
        let mut upstream = Self { child, port: 0, record };
        let deadline = Instant::now() + Duration::from_secs(10);
        while upstream.port == 0 {
            ensure!(Instant::now() < deadline, "the offline upstream did not start");
            std::thread::sleep(Duration::from_millis(10));
            upstream.port = port(&said).unwrap_or(0);
        }
        Ok(upstream)
    }

    /// Time from `asked` to the first request that came after it.
    fn first_after(&self, asked: u64) -> Result<Duration> {
        let text = fs::read_to_string(&self.record)?;
        // The newest are at the end; one run makes few.
        let mut first = None;
        for line in text.lines().rev() {
            let request: Value = serde_json::from_str(line)?;
            match request["monotonic_ns"].as_u64() {
                Some(at) if at >= asked => first = Some(at),
                _ => break,
            }
        }
        match first {
            Some(at) => Ok(Duration::from_nanos(at - asked)),
            None => bail!("no request reached the upstream"),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn port(said: &Path) -> Option<u16> {
    fs::read_to_string(said).ok()?.lines().next()?.rsplit_once(':')?.1.trim().parse().ok()
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Accounts in the CLIs' own formats, with tokens that are made up.
fn accounts() -> Vec<Account> {
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = json!({
        "email": "bench@example.com", "exp": 4_102_444_800_u64,
        "https://api.openai.com/auth": {
            "chatgpt_plan_type": "plus", "chatgpt_account_id": "acct_bench", "chatgpt_user_id": "user_bench",
        },
    });
    let header = json!({"alg": "none", "typ": "JWT"});
    let token = format!("{}.{}.c2ln", base64.encode(header.to_string()), base64.encode(claims.to_string()));
    let openai = json!({
        "OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",
        "tokens": {"id_token": token, "access_token": token, "refresh_token": "", "account_id": "acct_bench"},
    });
    let anthropic = json!({"claudeAiOauth": {
        "accessToken": "sk-ant-oat01-bench", "expiresAt": 4_102_444_800_000_u64, "scopes": ["user:inference"],
    }});
    vec![
        Account { provider: "openai", files: vec![("auth.json", openai.to_string())], env: vec![] },
        Account { provider: "anthropic", files: vec![(".credentials.json", anthropic.to_string())], env: vec![] },
        // gemini checks a credential file with Google's token service, so it gets the access token instead.
        Account {
            provider: "google",
            files: vec![],
            env: vec![("GOOGLE_CLOUD_ACCESS_TOKEN", "ya29.bench".to_owned())],
        },
    ]
}
