//! Time limits at their full length: minutes, an hour, a day.
//!
//! Ignored by `cargo test`, since they last as long as they say. `make test-hours` runs them in the test bed in virtual
//! time, where a guest that has nothing to do jumps to its next timer: seconds for all of them. Nothing in the daemon
//! knows of it; its clocks are the kernel's.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Daemon, Outcome, Setup, eventually, shell};
use thaw_client::client::{Client, ClientError};
use thaw_client::types::{ClaimPath, ContainerState, ExecutionRequest, ExecutionState, ExitReason};
use thaw_image::progress::Quiet;
use thaw_image::registry::{self, RegistryError};
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What may be added to a time limit: the work done until it is noticed, which takes real time.
const SLACK: Duration = Duration::from_secs(20);

fn assert_lasted(what: &str, lasted: Duration, limit: Duration) {
    assert!(lasted >= limit && lasted < limit + SLACK, "{what} lasted {lasted:?}, wanted {limit:?}");
}

fn background(script: &str) -> ExecutionRequest {
    ExecutionRequest { background: true, timeout_ms: Some(3_600_000), ..shell(script) }
}

async fn state(daemon: &Daemon, id: &str) -> Option<ExecutionState> {
    match daemon.client.execution(id).await {
        Ok(execution) => Some(execution.state),
        Err(ClientError::Problem(problem)) if problem.status == 404 => None,
        Err(error) => panic!("{error}"),
    }
}

async fn wait_until_running(daemon: &Daemon, id: &str) {
    eventually("it runs", || async { (state(daemon, id).await == Some(ExecutionState::Running)).then_some(()) }).await;
}

#[tokio::test]
#[ignore = "11 minutes: make test-hours"]
async fn a_pool_that_was_too_large_for_ten_minutes_shrinks() {
    // As configured by default: more than 5 idle for 600 s.
    let daemon =
        Daemon::start(|setup| setup.set("pool.scaling", true).set("pool.min", 2).set("pool.max", 12).pool(9)).await;
    let full = Instant::now();
    eventually("it fills", || async { (daemon.pool().await.warm == 9).then_some(()) }).await;
    sleep(MINUTE * 9).await;
    let pool = daemon.pool().await;
    assert_eq!((pool.target, pool.warm), (9, 9), "{:?}", pool.reason);
    sleep((MINUTE * 10).saturating_sub(full.elapsed())).await;
    let pool = eventually("it shrinks", || async {
        let pool = daemon.pool().await;
        (pool.target != 9).then_some(pool)
    })
    .await;
    assert_lasted("the large pool", full.elapsed(), MINUTE * 10);
    assert_eq!(pool.target, 5, "{:?}", pool.reason);
    assert!(pool.reason.unwrap().contains("were idle for 600 s, more than 5"));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "a minute: make test-hours"]
async fn who_waits_in_vain_is_told_after_ten_seconds_or_a_minute() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("container.max", 1)).await;
    let occupant = daemon.client.create(&background("sleep 1000")).await.unwrap().id;
    wait_until_running(&daemon, &occupant).await;
    for (asked, granted) in [(None, SECOND * 10), (Some(60_000), MINUTE)] {
        let begun = Instant::now();
        let body = serde_json::to_vec(&ExecutionRequest { queue_timeout_ms: asked, ..shell("true") }).unwrap();
        let answer = daemon.http("POST /v1/executions", &[("content-type", "application/json")], &body).await;
        assert_lasted("the wait", begun.elapsed(), granted);
        assert_eq!((answer.status, answer.problem().code.as_str()), (503, "queue_timeout"));
    }
    daemon.client.cancel(&occupant).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "an hour: make test-hours"]
async fn an_execution_may_last_for_an_hour_and_no_longer() {
    let daemon = Arc::new(Daemon::start(|setup| setup.pool(2)).await);
    // The longest limit that a request may ask for.
    let limited = |script: &str| ExecutionRequest { timeout_ms: Some(3_600_000), ..shell(script) };
    let begun = Instant::now();
    let silent = {
        let daemon = Arc::clone(&daemon);
        let request = limited("echo begun; sleep 100000");
        tokio::spawn(async move { daemon.run(&request).await })
    };
    let outcome = daemon.run(&limited("for n in $(seq 59); do sleep 60; echo minute $n; done")).await.exited(0);
    assert_lasted("the one that ends by itself", begun.elapsed(), MINUTE * 59);
    assert_eq!(outcome.text(), (1..60).map(|n| format!("minute {n}\n")).collect::<String>());
    let outcome = silent.await.unwrap().ended(ExitReason::Timeout);
    assert_lasted("the one that is ended", begun.elapsed(), HOUR);
    assert_eq!(outcome.text(), "begun\n");
    daemon.settled().await;
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
#[ignore = "10 minutes: make test-hours"]
async fn a_silent_stream_shows_a_sign_of_life_every_quarter_of_a_minute() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let request = ExecutionRequest { timeout_ms: Some(3_600_000), ..shell("sleep 600") };
    let body = serde_json::to_vec(&request).unwrap();
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let mut stream = daemon.open("POST /v1/executions", &headers, &body).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("event: exit"), "{text}");
    let beats = text.lines().filter(|line| line.starts_with(':')).count();
    assert!((39..=41).contains(&beats), "{beats} in 600 s");
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "10 minutes: make test-hours"]
async fn what_an_execution_said_is_kept_for_ten_minutes() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let id = daemon.client.create(&background("echo kept")).await.unwrap().id;
    let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.text(), "kept\n");
    sleep(MINUTE * 10 - SECOND * 5).await;
    let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await;
    assert_eq!(outcome.text(), "kept\n");
    // Looked for every 10 s.
    sleep(SECOND * 5 + SLACK).await;
    assert_eq!(state(&daemon, &id).await, None);
    assert_eq!(daemon.http(&format!("GET /v1/executions/{id}/events"), &[], b"").await.status, 404);
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "10 seconds: make test-hours"]
async fn who_goes_away_has_ten_seconds_to_come_back() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let request = ExecutionRequest { timeout_ms: Some(3_600_000), ..shell("sleep 1000") };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut stream = daemon.client.execute_stream(&request).await.unwrap();
        stream.next().await.unwrap().unwrap();
        ids.push(stream.execution().unwrap().to_owned());
    }
    let gone = Instant::now();
    sleep(SECOND * 8).await;
    let back = daemon.client.events(&ids[1], None).await.unwrap();
    eventually("the first is cancelled", || async {
        (state(&daemon, &ids[0]).await == Some(ExecutionState::Exited)).then_some(())
    })
    .await;
    assert!(gone.elapsed() >= SECOND * 10 && gone.elapsed() < SECOND * 10 + SLACK);
    sleep(MINUTE).await;
    assert_eq!(state(&daemon, &ids[1]).await, Some(ExecutionState::Running), "somebody reads it again");
    daemon.client.cancel(&ids[1]).await.unwrap();
    Outcome::of(back).await.ended(ExitReason::Cancelled);
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "a day: make test-hours"]
async fn what_has_waited_for_a_day_is_as_good_as_new() {
    let daemon = Daemon::start(|setup: Setup| setup.pool(3)).await;
    let before = daemon.settled().await;
    sleep(HOUR * 24).await;
    let after = daemon.containers().await;
    assert!(after.iter().all(|container| container.state == ContainerState::Warm));
    let ids = |containers: &[thaw_client::types::Container]| {
        let mut ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&before), ids(&after), "the same ones, none replaced");
    let outcome = daemon.sh("echo awake").await.exited(0);
    assert_eq!((outcome.started.path, outcome.text()), (ClaimPath::Warm, "awake\n"));
    assert!(ids(&before).contains(&outcome.started.container));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "half a minute: make test-hours"]
async fn a_dead_warm_container_is_found_within_half_a_minute() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let warm = daemon.settled().await;
    let begun = Instant::now();
    let pid = rustix::process::Pid::from_raw(warm[0].pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("it is replaced", || async {
        let now = daemon.containers().await;
        let replaced = now.iter().filter(|container| container.state == ContainerState::Warm).count() == 2
            && now.iter().all(|container| container.id != warm[0].id);
        replaced.then_some(())
    })
    .await;
    assert!(begun.elapsed() < SECOND * 30 + SLACK, "{:?}", begun.elapsed());
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "10 minutes: make test-hours"]
async fn what_no_daemon_comes_back_for_ends_after_ten_minutes() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    let id = daemon.client.create(&background("sleep 100000")).await.unwrap().id;
    wait_until_running(&daemon, &id).await;
    daemon.settled_beside(1).await;
    let keeper = daemon.keeper().unwrap();
    let family = daemon.family();
    daemon.kill();
    sleep(MINUTE * 10 - SECOND * 5).await;
    assert!(keeper.exists(), "it waits for another daemon");
    let alone = Instant::now();
    eventually("all of it ends", || async { (!family.iter().any(|process| process.exists())).then_some(()) }).await;
    assert!(alone.elapsed() < SLACK, "{:?}", alone.elapsed());
    // Its own cgroup, which it cannot remove, is for the next one.
    for directory in daemon.cgroups() {
        let mut left = std::fs::read_dir(directory).into_iter().flatten().flatten();
        assert!(!left.any(|entry| entry.file_name().to_string_lossy().starts_with("c-")), "containers left");
    }
    daemon.launch().await;
    assert_eq!(daemon.client.executions().await.unwrap().len(), 0, "nothing to go on with");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
#[ignore = "half a minute: make test-hours"]
async fn a_daemon_that_says_nothing_is_given_up_after_half_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thawd.sock");
    // Connections are made by the kernel; nobody reads from them.
    let _silent = tokio::net::UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).unwrap();
    let begun = Instant::now();
    let error = client.pools().await.unwrap_err();
    assert_lasted("the silence", begun.elapsed(), SECOND * 30);
    assert!(matches!(error, ClientError::Broken(_)), "{error:?}");
}

#[tokio::test]
#[ignore = "a minute: make test-hours"]
async fn a_registry_that_says_nothing_is_given_up_after_a_minute() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = registry::reference(&format!("{}/x:1", silent.local_addr().unwrap())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let to = folder.path().join("to");
    let error = registry::pull(&image, &registry::Options::default(), &to, "x", &Quiet).await.unwrap_err();
    assert_lasted("the silence", begun.elapsed(), MINUTE);
    assert!(matches!(error, RegistryError::Network { .. }), "{error:?}");
}
