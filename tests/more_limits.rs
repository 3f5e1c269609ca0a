//! Limits of creating containers, of credentials and of images without a provider, crossed for real.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::{ContainerCgroup, Daemon, Outcome, Program, Setup, eventually, shell};
use thaw_client::client::ClientError;
use thaw_client::types::{Credentials, ExecutionRequest, ExitReason, PoolChange, Problem, Secret};

const MIB: usize = 1 << 20;

async fn refused(daemon: &Daemon, request: &ExecutionRequest) -> Problem {
    match daemon.client.create(request).await.unwrap_err() {
        ClientError::Problem(problem) => *problem,
        other => panic!("{other}"),
    }
}

/// A daemon whose containers never get ready: in place of thaw-init they have a program that waits for ever.
async fn with_silent_init(change: impl FnOnce(Setup) -> Setup) -> Daemon {
    let mut silent = Program::default();
    silent.call(libc::SYS_pause, &[]);
    let mut daemon = Daemon::prepare(|setup| change(setup.pool(0)));
    let program = daemon.path("silent");
    std::fs::write(&program, silent.elf()).unwrap();
    let file = daemon.path("thawd.toml");
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    config["paths"].as_table_mut().unwrap().insert("init_program".to_owned(), program.to_str().unwrap().into());
    std::fs::write(&file, config.to_string()).unwrap();
    daemon.launch().await;
    daemon
}

#[tokio::test]
async fn a_creation_that_takes_too_long_is_given_up() {
    let daemon = with_silent_init(|setup| setup.set("container.create_timeout_seconds", 1)).await;
    let begun = Instant::now();
    let problem = refused(&daemon, &shell("true")).await;
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (503, "container_failed", true));
    assert!(problem.detail.contains("within 1 s"), "{problem:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    eventually("it is gone", || async { daemon.containers().await.is_empty().then_some(()) }).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_pool_creates_no_more_at_once_than_the_configuration_says() {
    let daemon =
        with_silent_init(|setup| setup.set("pool.concurrent_creations", 3).set("container.create_timeout_seconds", 5))
            .await;
    let change = PoolChange { target: Some(10), ..PoolChange::default() };
    daemon.client.change_pool::<serde_json::Value>("test", &change).await.unwrap();
    eventually("three are being created", || async { (daemon.pool().await.creating == 3).then_some(()) }).await;
    // They stay for the 5 s that a creation may take, and no other is begun.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(daemon.pool().await.creating, 3);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn credential_files_that_do_not_fit_start_nothing() {
    // The manifest of the tests gives the credentials a tmpfs of 1 MiB.
    let daemon = Daemon::start(|setup| setup.pool(1).set("api.max_body_bytes", 4 * MIB as i64)).await;
    let with = |bytes: usize| {
        let mut credentials = Credentials::default();
        credentials.files = BTreeMap::from([("token".to_owned(), Secret::new("x".repeat(bytes)))]);
        ExecutionRequest { credentials: Some(credentials), ..shell("wc -c < ~/.test/token") }
    };
    let problem = refused(&daemon, &with(2 * MIB)).await;
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (400, "invalid_credentials", false));
    assert!(problem.detail.contains("1048576 bytes") && !problem.detail.contains("xx"), "{problem:?}");
    let outcome = daemon.run(&with(MIB / 2)).await.exited(0);
    assert_eq!(outcome.text(), format!("{}\n", MIB / 2));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_cannot_fill_more_than_the_credentials_tmpfs() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let outcome = daemon
        .sh("dd if=/dev/zero of=$HOME/.test/f bs=64k count=32 2>&1 | grep -o 'No space left'; wc -c < $HOME/.test/f")
        .await;
    let text = outcome.exited(0).text().to_owned();
    let (full, size) = text.trim().split_once('\n').unwrap();
    assert_eq!((full, size.parse::<usize>().unwrap()), ("No space left", MIB), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn images_without_a_provider_have_limits_of_their_own() {
    let daemon = Daemon::start(|setup| {
        setup
            .pool(1)
            .set("image_run.memory_bytes", 48 * MIB as i64)
            .set("image_run.pids_max", 21)
            .set("image_run.cpu", 0.3)
            .set("image_run.cpu_burst", 0.4)
            .set("image_run.timeout_seconds", 1)
    })
    .await;
    daemon.settled().await;
    let request = ExecutionRequest {
        image: Some("test".to_owned()),
        provider: String::new(),
        timeout_ms: Some(60_000),
        ..shell("sh -c 'f() { f | f & }; f' & exec sleep 1000")
    };
    let execution = daemon.client.create(&request).await.unwrap();
    let cgroup = ContainerCgroup::of(&daemon.container(&execution.container.unwrap()).await);
    eventually("the kernel refuses it more processes", || async { (cgroup.pids_refused() > 0).then_some(()) }).await;
    assert_eq!((cgroup.memory_limit(), cgroup.pids_limit()), (48 * MIB as u64, 21));
    assert_eq!((cgroup.cpu_limit(), cgroup.cpu_burst()), ((30_000, 100_000), 10_000));
    daemon.client.cancel(&execution.id).await.unwrap();
    Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;

    let unlimited = ExecutionRequest { timeout_ms: None, command: shell("sleep 1000").command, ..request };
    let exit = daemon.run(&unlimited).await.ended(ExitReason::Timeout).exit;
    assert!(exit.detail.as_ref().unwrap().contains("1000 ms"), "{exit:?}");
    daemon.stop().await;
}
