//! No descriptor left for the daemon.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use thaw_client::types::{Event, ExitReason};

use crate::support::{Daemon, Outcome, Process, children, eventually, open_files, shell};
use crate::{Counting, RECOVERY};

fn limit(daemon: &Daemon, files: u64) -> Rlimit {
    // The daemon has raised its own as far as this process could.
    let limit = Rlimit { current: Some(files), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Pid::from_raw(daemon.pid()), Resource::Nofile, limit).unwrap()
}

/// Descriptors of a daemon, but for the logs of executions, which are kept for a while after their end.
fn descriptors(daemon: &Daemon) -> Vec<String> {
    let mut files = open_files(daemon.pid());
    files.retain(|file| !file.ends_with(" (deleted)"));
    files.sort();
    files
}

/// Everything that was begun is over: descriptors, processes and containers are as many as before.
async fn is_as_before(daemon: &Daemon, files: usize) {
    let warm = daemon.settled().await;
    let begun = Instant::now();
    loop {
        let now = descriptors(daemon);
        if now.len() <= files + 2 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{} descriptors instead of {files}: {now:#?}", now.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("no process is left over", || async {
        let known = |child: &Process| {
            warm.iter().any(|container| container.pid == Some(child.pid)) || child.command_line().contains("thawd ")
        };
        children(daemon.pid()).iter().all(known).then_some(())
    })
    .await;
}

/// Whatever went wrong before, the pool is filled again.
async fn fills_up(daemon: &Daemon, target: usize) {
    let begun = Instant::now();
    while daemon.pool().await.warm < target {
        assert!(begun.elapsed() < RECOVERY, "{:?}", daemon.pool().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_daemon_without_descriptors_refuses_and_recovers() {
    let daemon = Daemon::start(|setup| setup.pool(3)).await;
    daemon.settled().await;
    daemon.sh("true").await.exited(0);
    daemon.settled().await;
    let files = descriptors(&daemon).len();
    let mut refused = 0;
    for spare in [0, 1, 2, 3, 5, 8, 13, 21] {
        let counting = Counting::start(&daemon, 50).await;
        let before = limit(&daemon, open_files(daemon.pid()).len() as u64 + spare);
        let mut requests = Vec::new();
        for _ in 0..8 {
            let client = daemon.client.clone();
            requests.push(tokio::spawn(async move {
                let answer = client.create(&shell("echo served")).await;
                answer.map(|execution| execution.id).map_err(|error| error.to_string())
            }));
        }
        // Some of them may not even be accepted before there are descriptors again.
        tokio::time::sleep(Duration::from_millis(300)).await;
        limit(&daemon, before.current.unwrap());
        for request in requests {
            let answer = tokio::time::timeout(RECOVERY, request).await.expect("everybody is answered").unwrap();
            match answer {
                Ok(id) => {
                    let events = daemon.client.events(&id, None).await.unwrap();
                    let outcome = Outcome::of(events).await.exited(0);
                    assert_eq!(outcome.text(), "served\n");
                }
                Err(error) => {
                    assert!(error.contains("Too many open files"), "{spare} to spare: {error}");
                    refused += 1;
                }
            }
        }
        counting.assert_complete(&daemon).await;
        fills_up(&daemon, 3).await;
    }
    assert!(refused > 0, "nobody noticed anything");
    is_as_before(&daemon, files).await;
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_without_descriptors_still_ends_what_has_to_end() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("queue.timeout_ms", 0)).await;
    daemon.settled().await;
    // It ignores the polite signal, so that its control group has to be killed.
    let mut request = shell("trap '' TERM; echo begun; while :; do sleep 0.1; done");
    request.timeout_ms = Some(1500);
    let mut stream = daemon.client.execute_stream(&request).await.unwrap();
    let mut events = Vec::new();
    while !matches!(events.last(), Some((_, Event::Stdout(_)))) {
        events.push(stream.next().await.unwrap().unwrap());
    }
    let Some((_, Event::Started(started))) = events.first() else { panic!("{events:?}") };
    let container = daemon.container(&started.container).await;
    daemon.settled_beside(1).await;
    let init = Process::now(container.pid.unwrap()).unwrap();
    let before = limit(&daemon, 1);
    events.extend(crate::support::collect(stream).await);
    Outcome::from_events(events).ended(ExitReason::Timeout);
    eventually("every process is dead", || async { init.is_dead().then_some(()) }).await;
    // Longer than the first tries to clear it away, after which nothing may be given up.
    tokio::time::sleep(Duration::from_secs(13)).await;
    limit(&daemon, before.current.unwrap());
    daemon.gone(&container).await;
    fills_up(&daemon, 1).await;
    daemon.sh("echo fine").await.exited(0);
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn too_few_descriptors_are_said_at_the_start() {
    let refused = |files: u64| {
        let mut command = std::process::Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(env!("CARGO_BIN_EXE_thawd"));
        // It does not get as far as its directories.
        let daemon = Daemon::prepare(|setup| setup);
        command.arg("--config").arg(daemon.path("thawd.toml"));
        let output = command.output().unwrap();
        assert!(!output.status.success());
        assert!(!daemon.path("state").exists());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(99);
    assert!(said.contains("open files is 99, but at least 100 are needed") && said.contains("LimitNOFILE="), "{said}");
}
