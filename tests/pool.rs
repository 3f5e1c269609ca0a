//! Warm pools: filled, handed out, refilled, kept healthy, within the limit.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use support::{ContainerCgroup, Daemon, Outcome, eventually, in_bed, shell};
use thaw_client::client::ClientError;
use thaw_client::types::{ClaimPath, ContainerState};

/// Executions at once, pool size and limits of the load tests. The test bed has one slow CPU.
struct Load {
    executions: usize,
    pool: usize,
    enough: usize,
    too_few: usize,
}

fn load() -> Load {
    if in_bed() {
        Load { executions: 16, pool: 4, enough: 20, too_few: 8 }
    } else {
        Load { executions: 50, pool: 10, enough: 60, too_few: 20 }
    }
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_pool_fills_to_its_target() {
    let daemon = Daemon::start(|setup| setup.set("provider.test.pool_target", 5)).await;
    let warm = daemon.settled().await;
    assert_eq!(warm.len(), 5);
    let pool = daemon.pool().await;
    assert_eq!((pool.target, pool.warm, pool.claimed, pool.hits, pool.misses), (5, 5, 0, 0, 0));
    assert_eq!(pool.last_error, None);
    let ids: BTreeSet<_> = warm.iter().map(|container| &container.id).collect();
    let pids: BTreeSet<_> = warm.iter().map(|container| container.pid).collect();
    assert_eq!((ids.len(), pids.len()), (5, 5));
    daemon.stop().await;
}

#[tokio::test]
async fn the_configuration_decides_before_the_manifest() {
    for (general, own, target) in [(None, None, 1), (Some(3), None, 3), (Some(3), Some(2), 2), (Some(3), Some(0), 0)] {
        let daemon = Daemon::start(|mut setup| {
            setup = setup.pool(1);
            if let Some(general) = general {
                setup = setup.set("pool.target", general);
            }
            if let Some(own) = own {
                setup = setup.set("provider.test.pool_target", own);
            }
            setup
        })
        .await;
        assert_eq!(daemon.settled().await.len(), target, "[pool] {general:?}, [provider.test] {own:?}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_claim_is_warm_and_the_pool_is_refilled() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let before = daemon.settled().await;
    let outcome = daemon.sh("echo hello").await.exited(0);
    assert_eq!(outcome.started.path, ClaimPath::Warm);
    assert!(before.iter().any(|container| container.id == outcome.started.container));
    let after = daemon.settled().await;
    assert!(after.iter().all(|container| container.id != outcome.started.container), "never used again");
    let pool = daemon.pool().await;
    assert_eq!((pool.warm, pool.claimed, pool.hits, pool.misses), (2, 0, 1, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn an_empty_pool_serves_cold() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("pool.concurrent_creations", 1)).await;
    daemon.settled().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(daemon.client.execute_stream(&shell("sleep 0.5; echo done")).await.unwrap());
    }
    let mut paths = Vec::new();
    for stream in streams {
        let outcome = Outcome::of(stream).await.exited(0);
        assert_eq!(outcome.text(), "done\n");
        paths.push(outcome.started.path);
    }
    assert_eq!(paths[0], ClaimPath::Warm);
    assert!(paths.contains(&ClaimPath::Cold), "{paths:?}");
    daemon.settled().await;
    let pool = daemon.pool().await;
    assert_eq!((pool.hits + pool.misses, pool.claimed), (4, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_pool_everything_is_cold() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    for _ in 0..2 {
        let outcome = daemon.sh("echo hello").await.exited(0);
        assert_eq!((outcome.started.path, outcome.text()), (ClaimPath::Cold, "hello\n"));
    }
    assert_eq!(daemon.settled().await.len(), 0);
    assert_eq!(daemon.pool().await.misses, 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_warm_container_that_died_is_replaced() {
    let daemon = Daemon::start(|setup| setup.pool(3).set("pool.health_interval_seconds", 1)).await;
    let before = daemon.settled().await;
    let victim = &before[1];
    kill(victim.pid.unwrap());
    daemon.gone(victim).await;
    let after = daemon.settled().await;
    assert!(after.iter().all(|container| container.id != victim.id));
    for survivor in [&before[0], &before[2]] {
        assert!(after.iter().any(|container| container.id == survivor.id), "the others are left alone");
    }
    assert!(daemon.log().contains("warm container is broken"));
    for _ in 0..3 {
        daemon.sh("true").await.exited(0);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_warm_container_that_somebody_thawed_is_replaced() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("pool.health_interval_seconds", 1)).await;
    let victim = daemon.settled().await.remove(0);
    let core = support::hierarchies().into_iter().find(|(_, controllers)| controllers.is_empty()).unwrap().0;
    std::fs::write(core.join(&victim.cgroup).join("cgroup.freeze"), "0").unwrap();
    daemon.gone(&victim).await;
    assert_ne!(daemon.settled().await[0].id, victim.id);
    daemon.stop().await;
}

#[tokio::test]
async fn a_dead_container_is_never_handed_out() {
    // Long before the next look at their health.
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let dead = daemon.settled().await;
    for container in &dead {
        kill(container.pid.unwrap());
        let cgroup = ContainerCgroup::of(container);
        eventually("it is dead", || async { (!cgroup.exists() || !cgroup.frozen_and_populated().1).then_some(()) })
            .await;
    }
    let outcome = daemon.sh("echo hello").await.exited(0);
    assert!(dead.iter().all(|container| container.id != outcome.started.container));
    for container in &dead {
        daemon.gone(container).await;
    }
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_spawner_that_died_is_replaced() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let spawner = daemon.spawner().unwrap();
    kill(spawner.pid);
    eventually("its death is seen", || async { spawner_gone(&daemon, spawner.pid).then_some(()) }).await;
    // The warm container does not need it; the ones after it do.
    for _ in 0..3 {
        eventually("served", || async {
            match daemon.client.execute_stream(&shell("echo hello")).await {
                Ok(stream) => Some(Outcome::of(stream).await.exited(0)),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    None
                }
            }
        })
        .await;
    }
    daemon.settled().await;
    assert_ne!(daemon.spawner().unwrap().pid, spawner.pid);
    daemon.stop().await;
}

/// Gone, or a zombie that the daemon has not looked at yet.
fn spawner_gone(daemon: &Daemon, pid: i32) -> bool {
    daemon.spawner().is_none_or(|now| now.pid != pid)
}

#[tokio::test]
async fn with_places_for_all_every_execution_succeeds() {
    let Load { executions, pool, enough, .. } = load();
    let daemon = Arc::new(Daemon::start(|setup| setup.pool(pool as i64).set("container.max", enough as i64)).await);
    daemon.settled().await;
    let mut tasks = Vec::new();
    for number in 0..executions {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move {
            let mut request = shell(&format!("echo {number}; sleep 1"));
            request.timeout_ms = Some(120_000);
            let outcome = daemon.run(&request).await.exited(0);
            assert_eq!(outcome.text(), format!("{number}\n"));
            (outcome.started.container, outcome.started.path)
        }));
    }
    let mut containers = BTreeSet::new();
    let mut warm = 0;
    for task in tasks {
        let (container, path) = task.await.unwrap();
        assert!(containers.insert(container), "each has a container of its own");
        warm += usize::from(path == ClaimPath::Warm);
    }
    assert!(warm >= pool, "{warm} of {executions} were warm, with {pool} ready");
    assert_eq!(daemon.settled().await.len(), pool);
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn beyond_the_limit_the_excess_is_told_to_come_back() {
    let Load { executions, pool, too_few, .. } = load();
    let change =
        |setup: support::Setup| setup.pool(pool as i64).set("container.max", too_few as i64).set("queue.timeout_ms", 0);
    let daemon = Arc::new(Daemon::start(change).await);
    daemon.settled().await;
    let mut tasks = Vec::new();
    for number in 0..executions {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move {
            let mut request = shell(&format!("echo {number}; sleep 2"));
            request.timeout_ms = Some(120_000);
            match daemon.client.execute_stream(&request).await {
                Ok(stream) => {
                    // Exactly one exit is asserted there.
                    let outcome = Outcome::of(stream).await.exited(0);
                    assert_eq!(outcome.text(), format!("{number}\n"));
                    Some(outcome.started.execution)
                }
                Err(ClientError::Problem(problem)) => {
                    assert_eq!(
                        (problem.status, problem.code.as_str(), problem.retryable),
                        (503, "container_limit", true)
                    );
                    None
                }
                Err(error) => panic!("{error}"),
            }
        }));
    }
    let counted = eventually("the limit is reached", || async {
        let containers = daemon.containers().await;
        (containers.len() >= too_few).then_some(containers)
    })
    .await;
    assert_eq!(counted.len(), too_few, "never more than the limit");
    let mut accepted = Vec::new();
    for task in tasks {
        accepted.extend(task.await.unwrap());
    }
    assert!(accepted.len() < executions, "some must be refused");
    assert!(accepted.len() >= too_few - 2, "only {} accepted of {executions}, with {too_few} places", accepted.len());
    let known = daemon.client.executions().await.unwrap();
    assert_eq!(known.len(), accepted.len(), "nothing is kept of those refused");
    assert!(known.iter().all(|execution| execution.exit.is_some()), "and every accepted one has ended");
    assert_eq!(daemon.settled().await.len(), pool, "the pool is full again");
    daemon.sh("echo fine").await.exited(0);
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn a_pool_as_large_as_the_limit_serves_all_the_same() {
    let daemon = Daemon::start(|setup| setup.pool(3).set("container.max", 3)).await;
    daemon.settled().await;
    for _ in 0..8 {
        eventually("served", || async {
            match daemon.client.execute_stream(&shell("true")).await {
                Ok(stream) => Some(Outcome::of(stream).await.exited(0)),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    None
                }
            }
        })
        .await;
    }
    for container in daemon.settled().await {
        assert_eq!(container.state, ContainerState::Warm);
        assert_eq!(ContainerCgroup::of(&container).frozen_and_populated(), (true, true));
    }
    daemon.stop().await;
}
