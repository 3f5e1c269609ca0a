//! The daemon is killed again and again, at random moments, while sandboxes with storage are used, stopped, created and
//! deleted: what a command has written and closed is there, and nothing is left over.
//!
//! `THAWD_KILLS` says how often (20; 6 in the test bed, which is slower), `THAWD_KILL_SEED` begins the same sequence once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use thaw_client::types::{Sandbox, SandboxState};

use super::random::{Random, number, seed};
use super::storage::{SMALL, attached, image, nothing_attached};
use super::{all, created, inside, now, usual, wanted};
use crate::support::{Daemon, collect, eventually, in_bed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_storage_loses_anything() {
    let kills = number("THAWD_KILLS").unwrap_or(if in_bed() { 6 } else { 20 });
    let seed = seed();
    println!("seed: THAWD_KILL_SEED={seed}");
    let mut random = Random(seed);
    let mut daemon = Daemon::start(|setup| {
        usual(setup)
            .set("sandbox.stop_grace_seconds", 1)
            .set("sandbox.retention_seconds", 3600)
            .set("log.filter", "thawd=info")
    })
    .await;
    let sandboxes = [created(&daemon, SMALL).await, created(&daemon, SMALL).await];
    let stop = Arc::new(AtomicBool::new(false));
    let stops = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for sandbox in &sandboxes {
        let (client, sandbox, stop) = (daemon.client.clone(), sandbox.clone(), Arc::clone(&stop));
        workers.push(tokio::spawn(async move {
            let (mut written, mut next) = (Vec::new(), 0);
            while !stop.load(Ordering::Acquire) {
                next += 1;
                // What it says is written and closed.
                let script =
                    format!("echo {next} >> ~/log && mkdir -p ~/d/{next} && echo {next} > ~/d/{next}/f && echo done");
                let Ok(stream) = client.execute_stream(&inside(&sandbox, &script)).await else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let events = tokio::spawn(collect(stream)).await;
                if events.is_ok_and(|events| crate::support::bytes(&events, false) == b"done\n") {
                    written.push(next);
                }
            }
            written
        }));
    }
    let others = tokio::spawn({
        let (client, sandboxes, stop, stops) =
            (daemon.client.clone(), sandboxes.clone(), Arc::clone(&stop), Arc::clone(&stops));
        let mut random = Random(seed ^ 1);
        async move {
            while !stop.load(Ordering::Acquire) {
                let one = &sandboxes[random.below(2) as usize];
                match random.below(4) {
                    0 => drop(client.freeze_sandbox::<Sandbox>(&one.id).await),
                    1 => {
                        if let Ok(made) = client.create_sandbox::<Sandbox>(&wanted(SMALL), None).await {
                            let _ = client.delete_sandbox(&made.id).await;
                        }
                    }
                    _ => {
                        if client.stop_sandbox::<Sandbox>(&one.id).await.is_ok() {
                            stops.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(random.below(100))).await;
            }
        }
    });
    for done in 0..kills {
        tokio::time::sleep(Duration::from_micros(random.below(600_000))).await;
        daemon.kill();
        daemon.launch().await;
        assert!(!workers.iter().any(|worker| worker.is_finished()), "a worker failed after {done} kills");
        for sandbox in &sandboxes {
            let found = now(&daemon, sandbox).await;
            assert!(
                matches!(found.state, SandboxState::Active | SandboxState::Frozen | SandboxState::Stopped),
                "after {done} kills: {found:?}"
            );
        }
    }
    eventually("somebody was stopped", || async { (stops.load(Ordering::Relaxed) > 0).then_some(()) }).await;
    stop.store(true, Ordering::Release);
    others.await.unwrap();
    for (sandbox, worker) in sandboxes.iter().zip(workers) {
        let written = worker.await.unwrap();
        assert!(!written.is_empty(), "nothing was ever written in {}", sandbox.id);
        let found = super::run(&daemon, sandbox, "cat ~/log; echo --; cat ~/d/*/f").await;
        let (log, files) = found.text().split_once("--\n").unwrap();
        for text in [log, files] {
            let lines: std::collections::BTreeSet<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
            for number in &written {
                assert!(lines.contains(number), "{number} is lost in {}", sandbox.id);
            }
        }
        println!("{}: {} commands, {} stops", sandbox.id, written.len(), stops.load(Ordering::Relaxed));
    }
    // Others that were being created or deleted are whole or gone, and take no space then.
    for one in all(&daemon).await {
        assert_ne!(one.state, SandboxState::Creating, "{one:?}");
        if one.state != SandboxState::Gone {
            daemon.client.delete_sandbox(&one.id).await.unwrap();
        }
        eventually(&format!("{} takes no space", one.id), || async { (!image(&daemon, &one).exists()).then_some(()) })
            .await;
    }
    nothing_attached(&daemon).await;
    assert!(attached(&daemon).is_empty());
    daemon.settled().await;
    daemon.stop().await;
}
