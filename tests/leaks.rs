//! A busy daemon is afterwards what it was before.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use support::{
    ContainerCgroup, Daemon, Outcome, children, command, eventually, hierarchies, mounts_below, open_files,
    processes_in_cgroup, prompt, resident_bytes, shell, status_field,
};
use thaw_client::types::{Credentials, ExecutionRequest, Secret};

/// Everything that could grow.
#[derive(Debug, PartialEq)]
struct Census {
    cgroups: usize,
    processes: usize,
    children: usize,
    mounts: usize,
    /// tmpfs mounts of all processes that the containers have.
    tmpfs: usize,
    descriptors: BTreeMap<String, usize>,
}

async fn census(daemon: &Daemon) -> Census {
    let warm = daemon.settled().await;
    let name = daemon.cgroup_name();
    let count = |directory: std::path::PathBuf| {
        let entries = std::fs::read_dir(directory.join(name)).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
        entries.into_iter().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    let tmpfs = warm.iter().map(|container| {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", container.pid.unwrap())).unwrap();
        table.lines().filter(|line| line.contains(" - tmpfs ")).count()
    });
    let mut descriptors = BTreeMap::new();
    for file in open_files(daemon.pid()) {
        // Sockets and pipes have numbers, containers and their processes ids.
        let kind = file.split([':', '[']).next().unwrap();
        let kind = if kind.contains("/c-") { "container" } else { kind };
        *descriptors.entry(kind.to_owned()).or_default() += 1;
    }
    Census {
        cgroups: hierarchies().into_iter().map(|(mount, _)| count(mount)).sum(),
        processes: processes_in_cgroup(name).len(),
        children: children(daemon.pid()).len(),
        mounts: mounts_below(daemon.path("").to_str().unwrap()).len(),
        tmpfs: tmpfs.sum(),
        descriptors,
    }
}

/// Requests that end in every way that there is.
fn mixture() -> Vec<ExecutionRequest> {
    let mut with_token = shell("cat ~/.test/token; echo new > ~/.test/token");
    let mut credentials = Credentials::default();
    credentials.files = BTreeMap::from([("token".to_owned(), Secret::new("secret".to_owned()))]);
    with_token.credentials = Some(credentials);
    let mut slow = shell("sleep 1000");
    slow.timeout_ms = Some(100);
    let mut stubborn = shell("trap '' TERM; while :; do sleep 1; done");
    stubborn.timeout_ms = Some(100);
    vec![
        command(["true"]),
        shell("exit 7"),
        shell("kill -9 $$"),
        command(["no-such-program"]),
        shell("head -c 200000 /dev/urandom; echo error >&2"),
        shell("head -c 1000000 /dev/zero > /tmp/file; mkdir -p ~/a/b/c; (setsid sleep 1000 &)"),
        shell("dd if=/dev/zero of=/dev/null bs=300M count=1; exit 1"),
        with_token,
        slow,
        stubborn,
    ]
}

#[tokio::test]
async fn a_hundred_executions_leave_nothing() {
    let rounds = if support::in_bed() { 3 } else { 10 };
    let daemon = Arc::new(
        Daemon::start(|setup| {
            setup
                .pool(3)
                .set("container.max", 12)
                .set("execution.retained", 0)
                .set("execution.disconnect_grace_ms", 0)
                .set("execution.kill_grace_ms", 100)
        })
        .await,
    );
    // Whatever is only ever made once has been made after a first round.
    busy(&daemon).await;
    let (before, memory) = (eventually_stable(&daemon).await, resident_bytes(daemon.pid()));
    for _ in 0..rounds {
        busy(&daemon).await;
    }
    eventually("everything is as it was", || async { (census(&daemon).await == before).then_some(()) }).await;
    let threads: u32 = status_field(daemon.pid(), "Threads").parse().unwrap();
    assert!(threads < 40, "{threads} threads");
    let grown = resident_bytes(daemon.pid()).saturating_sub(memory);
    assert!(grown < 24 << 20, "grew by {grown} bytes");
    assert!(daemon.client.executions().await.unwrap().is_empty());
    for container in daemon.settled().await {
        assert_eq!(ContainerCgroup::of(&container).frozen_and_populated(), (true, true));
    }
    let log = daemon.log();
    let trouble: Vec<_> = log.lines().filter(|line| line.contains("ERROR") || line.contains("panick")).collect();
    assert!(trouble.is_empty(), "{trouble:?}");
    Arc::into_inner(daemon).unwrap().stop().await;
}

/// The census once it no longer changes.
async fn eventually_stable(daemon: &Daemon) -> Census {
    eventually("the daemon comes to rest", || async {
        let first = census(daemon).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        (census(daemon).await == first).then_some(first)
    })
    .await
}

/// One of each, at once, some of them cancelled or abandoned.
async fn busy(daemon: &Arc<Daemon>) {
    let mut tasks = Vec::new();
    for (number, request) in mixture().into_iter().enumerate() {
        let daemon = Arc::clone(daemon);
        tasks.push(tokio::spawn(async move {
            let mut stream = eventually("a place is free", || async {
                match daemon.client.execute_stream(&request).await {
                    Ok(stream) => Some(stream),
                    Err(error) if error.is_retryable() => None,
                    Err(error) => panic!("{error}"),
                }
            })
            .await;
            match number % 5 {
                3 => drop(stream.next().await),
                4 => {
                    // It may have ended, and been forgotten.
                    let _ = daemon.client.cancel(stream.execution().unwrap()).await;
                    // Or not have begun.
                    while let Some(event) = stream.next().await {
                        event.unwrap();
                    }
                }
                _ => drop(Outcome::of(stream).await),
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Refused ones too.
    assert!(daemon.client.create(&command([""])).await.is_err());
    assert!(daemon.client.create(&prompt("test", "3*67")).await.is_err());
    assert_eq!(daemon.http("GET /nothing", &[], b"").await.status, 404);
}
