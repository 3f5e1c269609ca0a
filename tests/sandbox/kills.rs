//! The daemon is killed again and again, at random moments, while sandboxes are used: no command is lost or run twice, no
//! byte and no file of a sandbox is lost, and each is in the state that it is said to be in.
//!
//! `THAWD_KILLS` says how often (30; 8 in the test bed, which is slower), `THAWD_KILL_SEED` begins the same sequence once
//! more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use thaw_client::types::{Event, ExitReason, Sandbox, SandboxState};

use super::random::{Random, number, seed};
use super::strict::{NotAccepted, Strict};
use super::{all, created, inside, now, usual};
use crate::support::{Daemon, bytes, eventually, in_bed};

#[derive(Debug, Default)]
struct Counts {
    commands: AtomicU64,
    reconnections: AtomicU64,
    /// Begun, and nobody was told: it ran or not.
    unanswered: AtomicU64,
    freezes: AtomicU64,
}

/// Numbers that commands have written into their sandbox's file, and that must be there.
type Written = Vec<String>;

async fn commands(strict: Strict, sandbox: Sandbox, seed: u64, counts: Arc<Counts>, stop: Arc<AtomicBool>) -> Written {
    let (mut random, mut written) = (Random(seed), Vec::new());
    while !stop.load(Ordering::Acquire) {
        let token = format!("{seed:x}-{}", written.len() as u64 + counts.unanswered.load(Ordering::Relaxed));
        let lines = 1 + random.below(40);
        let script = format!(
            "echo {token} >> ~/log; i=0; while [ $i -lt {lines} ]; do echo out {token} $i; echo err $i >&2; i=$((i+1)); sleep 0.003; done; exit 4"
        );
        match strict.run(&inside(&sandbox, &script), random.below(2) == 0).await {
            Ok(seen) => {
                let Some((_, Event::Exit(exit))) = seen.events.last() else { panic!("{seen:?}") };
                if exit.reason == ExitReason::Lost {
                    // It was not handed over, or not known to be: nobody was told that it runs.
                    let starts = seen.events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count();
                    assert_eq!(starts, 0, "{exit:?}");
                    counts.unanswered.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                assert_eq!((exit.reason, exit.code), (ExitReason::Exited, Some(4)), "{exit:?}");
                let expect = |word: &str| (0..lines).map(|i| format!("{word} {i}\n")).collect::<String>();
                assert_eq!(String::from_utf8(bytes(&seen.events, false)).unwrap(), expect(&format!("out {token}")));
                assert_eq!(String::from_utf8(bytes(&seen.events, true)).unwrap(), expect("err"));
                counts.commands.fetch_add(1, Ordering::Relaxed);
                counts.reconnections.fetch_add(seen.reconnections, Ordering::Relaxed);
                written.push(token);
            }
            Err(NotAccepted::Broken) => {
                counts.unanswered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Err(NotAccepted::Refused(status, why)) => {
                assert!(matches!(status, 409 | 429 | 503), "{status} {why}");
                assert!(!why.contains("sandbox_gone"), "{why}");
                counts.unanswered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_sandbox_loses_anything() {
    let kills = number("THAWD_KILLS").unwrap_or(if in_bed() { 8 } else { 30 });
    let seed = seed();
    println!("seed: THAWD_KILL_SEED={seed}");
    let mut random = Random(seed);
    let mut daemon = Daemon::start(|setup| {
        usual(setup)
            .set("execution.retention_seconds", 3600)
            .set("execution.retained", 100_000)
            .set("execution.reconnect_grace_ms", 10_000)
            .set("log.filter", "thawd=info")
    })
    .await;
    let mut sandboxes = Vec::new();
    for _ in 0..3 {
        sandboxes.push(created(&daemon, "{}").await);
    }
    let frozen = created(&daemon, "{}").await;
    let _: Sandbox = daemon.client.freeze_sandbox(&frozen.id).await.unwrap();
    let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
    let strict = Strict::new(&daemon.socket());
    let mut workers = Vec::new();
    for (index, sandbox) in sandboxes.iter().chain(&sandboxes[..2]).enumerate() {
        let work =
            commands(strict.clone(), sandbox.clone(), seed + index as u64, Arc::clone(&counts), Arc::clone(&stop));
        workers.push((sandbox.clone(), tokio::spawn(work)));
    }
    // Freezes and wakes whatever is idle for a moment, and creates and deletes others.
    let others = tokio::spawn({
        let (client, sandboxes) = (daemon.client.clone(), sandboxes.clone());
        let (counts, stop, mut random) = (Arc::clone(&counts), Arc::clone(&stop), Random(seed ^ 1));
        async move {
            while !stop.load(Ordering::Acquire) {
                let one = &sandboxes[random.below(3) as usize];
                if client.freeze_sandbox::<Sandbox>(&one.id).await.is_ok() {
                    counts.freezes.fetch_add(1, Ordering::Relaxed);
                }
                if random.below(3) == 0
                    && let Ok(made) = client.create_sandbox::<Sandbox>(&super::wanted("{}"), None).await
                {
                    let _ = client.delete_sandbox(&made.id).await;
                }
                tokio::time::sleep(Duration::from_millis(random.below(10))).await;
            }
        }
    });
    for done in 0..kills {
        tokio::time::sleep(Duration::from_micros(random.below(250_000))).await;
        daemon.kill();
        if random.below(5) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(100))).await;
        }
        daemon.launch().await;
        assert!(!workers.iter().any(|(_, worker)| worker.is_finished()), "a worker failed after {done} kills");
        for sandbox in sandboxes.iter().chain([&frozen]) {
            let found = now(&daemon, sandbox).await;
            assert!(
                matches!(found.state, SandboxState::Active | SandboxState::Frozen),
                "after {done} kills: {found:?}"
            );
            assert_eq!(found.container, sandbox.container);
        }
        assert_eq!(now(&daemon, &frozen).await.state, SandboxState::Frozen, "nobody has woken it");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Release);
    others.await.unwrap();
    for (sandbox, worker) in workers {
        let written = worker.await.unwrap();
        let log = super::run(&daemon, &sandbox, "cat ~/log").await;
        for token in written {
            assert_eq!(log.text().lines().filter(|line| **line == token).count(), 1, "{token} in {}", sandbox.id);
        }
    }
    println!("{kills} kills: {counts:?}");
    let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(
        total(&counts.commands) > kills && total(&counts.reconnections) > 0 && total(&counts.freezes) > 0,
        "{counts:?}"
    );
    // Others that were being created or deleted are there, or gone; nothing is there that nobody knows of.
    for one in all(&daemon).await {
        assert_ne!(one.state, SandboxState::Creating, "{one:?}");
        if one.state != SandboxState::Gone {
            daemon.client.delete_sandbox(&one.id).await.unwrap();
        }
    }
    eventually("every sandbox's container is gone", || async {
        let left = daemon.containers().await.into_iter().filter(|container| container.sandbox.is_some()).count();
        (left == 0).then_some(())
    })
    .await;
    daemon.settled().await;
    daemon.stop().await;
}
