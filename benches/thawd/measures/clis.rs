//! The real command-line tools: from the prompt being known to the first request that reaches the upstream.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use thaw_image::Store;
use thawd::provider::{self, Dialect, DialectParser, Invocation, PromptSpec, Provider, ResourceClass};

use crate::Options;
use crate::bed::{Bed, Daemon, check_interrupted, repository};
use crate::contender::succeed;
use crate::http::{Event, Request};
use crate::machine::is_hybrid;
use crate::peers::podman::{limits, podman, remove};
use crate::real::{self, Account, TENTH, Upstream, Waiting, monotonic_ns};
use crate::report::{Goal, Outcome};
use crate::stats::Series;

/// What each is asked, and what must be in its answer.
const PROMPT: &str = "What is 3*67? Answer with the number only.";
const ANSWER: &str = "201";

/// Containers of each kind that wait, and rounds until they are replaced: starting a CLI in the idle class takes 10 s,
/// so they are started side by side, and not while anything is measured.
const BATCH: usize = 10;

/// Pools refill when nothing was asked for so long, which happens between batches only.
const REFILLING: &str = "refill_quiet_ms = 6000\nrefill_max_hold_ms = 3600000\nrefill_low_water_percent = 0\n\
                         concurrent_creations = 10\n";

/// Pause before each sample: what the one before left to be cleared away must not be paid by the next.
const PAUSE: Duration = Duration::from_millis(150);

const PRESTARTED: &str = "thawd, prestarted";
const PRESTARTED_TENTH: &str = "thawd, prestarted, idle class (0.1 CPU)";
const CREATED: &str = "thawd, created";
const PODMAN: &str = "podman exec";

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Real CLIs: prompt to first upstream request",
        "Each CLI in its own image, asked the same question against an upstream on this machine, which notes when the \
         first request arrives (same clock). thawd: the request with prompt and credentials over HTTP on the Unix \
         socket, a frozen container, the upstream reached through the egress proxy; prestarted: the CLI waits already \
         started; created: it is started at the claim. Run class of the manifest (0.5 CPU over a second, burst 1.0, \
         512 MiB), and prestarted also in the idle class (0.1 CPU over a second, burst 0.2), which the container then \
         keeps. Ten of each wait at the beginning of ten rounds, and are replaced between these. podman: `podman exec -i` of the same command with the same environment in a running container of the \
         same root file system with the same CPU quota, period, burst and memory as the run class, in a fresh home \
         with the credentials already in place, on the host's network. codex with an account asks for that account \
         before it sends the prompt, so that the request with the prompt is measured too.",
    );
    let upstream = Upstream::start(bed)?;
    let accounts = real::accounts();
    for account in &accounts {
        if !options.providers.is_empty() && !options.providers.iter().any(|name| name == account.provider) {
            continue;
        }
        let waiting = [
            Waiting { provider: account.provider.to_owned(), created: BATCH, prestarted: BATCH },
            Waiting { provider: format!("{}{TENTH}", account.provider), created: 0, prestarted: BATCH },
        ];
        let daemon = real::daemon(bed, upstream.port, &waiting, 4 * BATCH, REFILLING)?;
        let providers = provider::load_dir(&repository().join("providers"))?;
        let image =
            Store::open(&bed.cache.join("state/images"))?.ensure(&real::layouts(bed)?.join(account.provider))?;
        let provider = providers.get(account.provider).context("no manifest")?;
        let peer = Peer::start(bed, account, provider, &image, &upstream);
        one(&daemon, account, &waiting, peer, &upstream, options, &mut outcome)?;
        daemon.stop()?;
    }
    Ok(outcome)
}

/// Times to the first request, and to the one with the prompt.
struct Times {
    first: Series,
    prompt: Series,
}

impl Times {
    fn new(name: &str) -> Self {
        Self { first: Series::new(name), prompt: Series::new(name) }
    }

    fn push(&mut self, (first, prompt): (Duration, Duration)) {
        self.first.push(first);
        self.prompt.push(prompt);
    }
}

fn one(
    daemon: &Daemon,
    account: &Account,
    waiting: &[Waiting; 2],
    peer: Result<Peer>,
    upstream: &Upstream,
    options: &Options,
    outcome: &mut Outcome,
) -> Result<()> {
    let [prestarted, tenth, created, podman] = &mut [PRESTARTED, PRESTARTED_TENTH, CREATED, PODMAN].map(Times::new);
    // The first round fills caches and does not count.
    for round in 0..=options.n {
        check_interrupted()?;
        if round % BATCH == 0 {
            waiting.iter().try_for_each(|one| real::full(daemon, one))?;
        }
        for (times, provider, is_prestarted) in [
            (&mut *prestarted, &waiting[0].provider, true),
            (&mut *tenth, &waiting[1].provider, true),
            (&mut *created, &waiting[0].provider, false),
        ] {
            std::thread::sleep(PAUSE);
            let asked = ask_thawd(daemon, account, provider, is_prestarted, upstream)?;
            if round > 0 {
                times.push(asked);
            }
        }
        if let Ok(running) = &peer {
            running.reset()?;
            std::thread::sleep(PAUSE);
            let asked = running.ask(upstream)?;
            if round > 0 {
                podman.push(asked);
            }
        }
    }
    let who = account.provider;
    let ms = |times: &Times| times.first.median() / 1e3;
    outcome.goal(
        format!("{who}: podman exec / thawd, prestarted"),
        podman.first.median() / prestarted.first.median(),
        "×",
        Goal::AtLeast(5.0),
    );
    outcome.fact(
        format!("{who}: thawd, created / thawd, prestarted"),
        created.first.median() / prestarted.first.median(),
        "×",
    );
    outcome.goal(format!("{who}: prestarted, run class"), ms(prestarted), "ms", Goal::AtMost(100.0));
    outcome.goal(format!("{who}: prestarted, idle class"), ms(tenth), "ms", Goal::AtMost(200.0));
    if let Err(error) = peer {
        outcome.note(format!("{who}: podman is not in the comparison: {error:#}"));
    }
    let all = [prestarted, tenth, created, podman];
    let series = |pick: fn(&Times) -> &Series| -> Vec<Series> {
        all.iter().map(|times| pick(times).clone()).filter(|series| !series.micros.is_empty()).collect()
    };
    outcome.compare(who, series(|times| &times.first), PODMAN);
    if who == "openai" {
        outcome.compare(&format!("{who}: the request with the prompt"), series(|times| &times.prompt), PODMAN);
    }
    Ok(())
}

fn ask_thawd(
    daemon: &Daemon,
    account: &Account,
    provider: &str,
    prestarted: bool,
    upstream: &Upstream,
) -> Result<(Duration, Duration)> {
    let mut body = json!({"provider": provider, "user": "bench", "prompt": PROMPT, "credentials": account.json()});
    if !prestarted {
        // What a running process cannot be given.
        body["env"] = json!({"BENCH": "1"});
    }
    let request = Request::new(&body);
    let mut client = daemon.client();
    client.connect()?;
    let asked = monotonic_ns();
    let mut events = client.execute(&request)?;
    let mut event = Event::default();
    let (mut answer, mut exit) = (String::new(), None);
    while events.next(&mut event)?.is_some() {
        let data = event.json()?;
        match event.name.as_str() {
            "started" => {
                ensure!(data["path"] == "warm", "{provider}: the claim was not warm: {data}");
                ensure!(
                    data["prestarted"].as_bool().unwrap_or(false) == prestarted,
                    "{provider}: not the stage that was asked for: {data}"
                );
            }
            "delta" => answer += data["text"].as_str().unwrap_or_default(),
            "exit" => exit = Some(data),
            _ => {}
        }
    }
    let exit = exit.context("the stream ended without an exit")?;
    ensure!(exit["success"] == true && answer.contains(ANSWER), "{provider}: {exit}, said {answer:?}");
    upstream.first_after(asked)
}

/// Gives every container of the engine the CPU time of `class`, burst included, which podman has no flag for.
fn limit_cpu(parent: &str, class: &ResourceClass) -> Result<()> {
    let us = class.cpu_period.as_micros() as f64;
    let (quota, period) = ((class.cpu * us).round(), us);
    let burst = (class.cpu_burst.unwrap_or(class.cpu) * us - quota).clamp(0.0, quota).round();
    let root = Path::new(if is_hybrid() { "/sys/fs/cgroup/cpu" } else { "/sys/fs/cgroup" }).join(parent);
    for entry in fs::read_dir(&root).with_context(|| root.display().to_string())? {
        let directory = entry?.path();
        let files: &[(&str, String)] = if is_hybrid() {
            &[
                ("cpu.cfs_period_us", period.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.cfs_burst_us", burst.to_string()),
            ]
        } else {
            &[("cpu.max", format!("{quota} {period}")), ("cpu.max.burst", burst.to_string())]
        };
        for (name, value) in files {
            let path = directory.join(name);
            if directory.is_dir() {
                fs::write(&path, value).with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
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
        image: &thaw_image::Image,
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
        limit_cpu(&bed.cgroup, &provider.resources.run)?;
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

    fn ask(&self, upstream: &Upstream) -> Result<(Duration, Duration)> {
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
