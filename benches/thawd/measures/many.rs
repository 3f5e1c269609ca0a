//! Many containers of the real images at the same time, each with a real CLI that was run in it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::Options;
use crate::bed::{Bed, Daemon, check_interrupted};
use crate::http::{Client, Event, Request};
use crate::machine::meminfo;
use crate::real::{self, PROVIDERS, Upstream, Waiting};
use crate::report::{Goal, Outcome};

/// Longest time until the last of them has said its version: two processors start some hundred Node programs.
const PATIENCE: Duration = Duration::from_secs(300);

/// What runs in each: the CLI itself, and then a process that stays, so that all are there at the same time.
fn command(provider: &str) -> [String; 3] {
    let cli = match provider {
        "openai" => "codex",
        "anthropic" => "claude",
        _ => "gemini",
    };
    ["/bin/sh", "-c", &format!("{cli} --version && exec sleep 1000000")].map(str::to_owned)
}

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Many containers of the real images",
        "Containers of the three CLIs' images in equal shares, all claimed at once from full pools; each runs its CLI \
         with `--version` and then stays. It counts when every one of them has printed a version and all are running \
         at the same time.",
    );
    let upstream = Upstream::start(bed)?;
    let shares: Vec<Waiting> = PROVIDERS
        .iter()
        .enumerate()
        .map(|(index, provider)| Waiting {
            provider: (*provider).to_owned(),
            created: (options.many + PROVIDERS.len() - 1 - index) / PROVIDERS.len(),
            prestarted: 0,
        })
        .collect();
    let before = meminfo("MemAvailable") as f64;
    let begun = Instant::now();
    let daemon = real::daemon(bed, upstream.port, &shares, options.many, "")?;
    outcome.fact("created and frozen", options.many as f64 / begun.elapsed().as_secs_f64(), "containers/s");
    run(&daemon, &shares, before, &mut outcome)?;
    daemon.stop()?;
    Ok(outcome)
}

fn run(daemon: &Daemon, shares: &[Waiting], before: f64, outcome: &mut Outcome) -> Result<()> {
    let begun = Instant::now();
    let mut threads = Vec::new();
    for share in shares {
        let body = json!({
            "provider": share.provider, "user": "bench", "command": command(&share.provider), "timeout_ms": 3_600_000,
            // It stays when its client has heard the version and goes away.
            "background": true,
        });
        for _ in 0..share.created {
            let (socket, request) = (daemon.socket.clone(), Request::new(&body));
            threads.push(std::thread::spawn(move || version(&mut Client::new(&socket), &request)));
        }
    }
    let count = threads.len();
    for thread in threads {
        check_interrupted()?;
        thread.join().map_err(|_| anyhow!("a client panicked"))??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let containers = daemon.client().get("/v1/containers")?;
    let containers = containers["items"].as_array().cloned().unwrap_or_default();
    let running = containers.iter().filter(|one| one["state"] == "claimed" && one["frozen"] == false).count();
    let charged: f64 = containers.iter().filter_map(|one| one["memory_bytes"].as_f64()).sum();
    outcome.goal("running at the same time", running as f64, "containers", Goal::AtLeast(count as f64));
    outcome.fact("until the last CLI had said its version", seconds, "s");
    outcome.fact("charged to all of them", charged, "bytes");
    outcome.fact("loss of MemAvailable since before the daemon", before - meminfo("MemAvailable") as f64, "bytes");
    Ok(())
}

/// Starts it and waits for its version.
fn version(client: &mut Client, request: &Request) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut events = client.execute(request)?;
    let mut event = Event::default();
    let mut said = String::new();
    while events.next(&mut event)?.is_some() {
        ensure!(Instant::now() < deadline, "no version within {PATIENCE:?}");
        let data = event.json().context("an event")?;
        match event.name.as_str() {
            "started" => ensure!(data["path"] == "warm", "the claim was not warm: {data}"),
            "stdout" => {
                said += data["data"].as_str().unwrap_or_default();
                if said.chars().any(|digit| digit.is_ascii_digit()) && said.ends_with('\n') {
                    return Ok(());
                }
            }
            "exit" => return Err(anyhow!("it ended: {data}, said {said:?}")),
            _ => {}
        }
    }
    Err(anyhow!("the stream ended, it said {said:?}"))
}
