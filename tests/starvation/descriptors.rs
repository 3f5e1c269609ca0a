//! No descriptor left for the daemon.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::{Daemon, Process, children, eventually, open_files, shell};
use crate::{Counting, RECOVERY};

fn limit(daemon: &Daemon, files: u64) -> Rlimit {
    // The daemon has raised its own as far as this process could.
    let limit = Rlimit { current: Some(files), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Pid::from_raw(daemon.pid()), Resource::Nofile, limit).unwrap()
}

/// Everything that was begun is over: descriptors, processes and containers are as many as before.
async fn is_as_before(daemon: &Daemon, files: usize) {
    let warm = daemon.settled().await;
    eventually("its descriptors are as before", || async { (open_files(daemon.pid()).len() <= files + 2).then_some(()) })
        .await;
    eventually("no process is left over", || async {
        let known = |child: &Process| {
            warm.iter().any(|container| container.pid == Some(child.pid)) || child.command_line().contains("thawd ")
        };
        children(daemon.pid()).iter().all(known).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_daemon_without_descriptors_refuses_and_recovers() {
    let daemon = Daemon::start(|setup| setup.pool(3)).await;
    daemon.settled().await;
    daemon.sh("true").await.exited(0);
    daemon.settled().await;
    let files = open_files(daemon.pid()).len();
    let mut refused = 0;
    for spare in [0, 1, 2, 3, 5, 8, 13, 21] {
        let counting = Counting::start(&daemon, 50).await;
        daemon.settled_beside(1).await;
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
                    let outcome = crate::Outcome::of(events).await.exited(0);
                    assert_eq!(outcome.text(), "served\n");
                }
                Err(error) => {
                    assert!(error.contains("Too many open files"), "{spare} to spare: {error}");
                    refused += 1;
                }
            }
        }
        counting.is_complete(&daemon).await;
    }
    assert!(refused > 0, "nobody noticed anything");
    let begun = Instant::now();
    while daemon.pool().await.warm < 3 {
        assert!(begun.elapsed() < RECOVERY, "{:?}", daemon.pool().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    is_as_before(&daemon, files).await;
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}
