//! Containers as the kernel sees them: limits, freezing, and the end.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use support::{ContainerCgroup, Daemon, Outcome, Process, eventually, in_bed, open_files, shell};
use thaw_client::types::{ClaimPath, ContainerState};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_warm_container_is_frozen_and_has_exactly_the_idle_limits() {
    let daemon = Daemon::start(|setup| {
        setup
            .pool(3)
            .provider("resources.idle.memory_mib", 48)
            .provider("resources.idle.cpu", 0.2)
            .provider("pids_max", 37)
    })
    .await;
    let warm = daemon.settled().await;
    assert_eq!(warm.len(), 3);
    for container in &warm {
        let cgroup = ContainerCgroup::of(container);
        assert_eq!(cgroup.frozen_and_populated(), (true, true), "{container:?}");
        assert_eq!(cgroup.memory_limit(), 48 * MIB);
        assert_eq!(cgroup.cpu_limit(), (20_000, 100_000));
        assert_eq!(cgroup.pids_limit(), 37);
        assert_eq!(cgroup.processes(), [container.pid.unwrap()], "thaw-init and nothing else");
        assert!(container.frozen && container.state == ContainerState::Warm && container.execution.is_none());
        assert!(container.memory_bytes > 0 && container.memory_bytes < 4 * MIB, "{} bytes", container.memory_bytes);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn idle_containers_use_no_cpu_at_all() {
    let seconds = if in_bed() { 3 } else { 10 };
    let daemon = Daemon::start(|setup| setup.pool(4)).await;
    let warm = daemon.settled().await;
    let cgroups: Vec<_> = warm.iter().map(ContainerCgroup::of).collect();
    let used = || cgroups.iter().map(ContainerCgroup::cpu_us).collect::<Vec<_>>();
    let before = used();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(used(), before, "microseconds of CPU within {seconds} s");
    // The API's figures agree with the kernel's, and asking does not wake anybody.
    for container in daemon.containers().await {
        assert!(container.frozen);
    }
    assert_eq!(used(), before);
    daemon.stop().await;
}

#[tokio::test]
async fn a_claimed_container_has_exactly_the_run_limits() {
    let daemon = Daemon::start(|setup| {
        setup
            .pool(1)
            .provider("resources.run.memory_mib", 96)
            .provider("resources.run.cpu", 0.25)
            .provider("resources.run.cpu_burst", 0.5)
    })
    .await;
    let warm = daemon.settled().await.remove(0);
    let execution = daemon.client.create(&shell("sleep 1000")).await.unwrap();
    assert_eq!((execution.container.as_ref(), execution.path), (Some(&warm.id), Some(ClaimPath::Warm)));
    let container = daemon.container(&warm.id).await;
    assert_eq!(
        (container.state, container.execution, container.frozen),
        (ContainerState::Claimed, Some(execution.id), false)
    );
    let cgroup = ContainerCgroup::of(&warm);
    assert_eq!(cgroup.memory_limit(), 96 * MIB);
    assert_eq!(cgroup.cpu_limit(), (25_000, 100_000));
    assert_eq!(cgroup.frozen_and_populated(), (false, true));
    assert_eq!(container.pid, warm.pid, "the very same container");
    daemon.stop().await;
}

#[tokio::test]
async fn a_cold_container_has_the_same_run_limits() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let execution = daemon.client.create(&shell("sleep 1000")).await.unwrap();
    assert_eq!(execution.path, Some(ClaimPath::Cold));
    let container = daemon.container(&execution.container.unwrap()).await;
    let cgroup = ContainerCgroup::of(&container);
    assert_eq!(cgroup.memory_limit(), 128 * MIB);
    assert_eq!(cgroup.cpu_limit(), (50_000, 100_000));
    assert_eq!(cgroup.pids_limit(), 64);
    daemon.stop().await;
}

#[tokio::test]
async fn one_container_serves_one_execution_and_is_gone() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let mut used = Vec::new();
    for _ in 0..6 {
        let execution = daemon.client.create(&shell("sleep 0.2")).await.unwrap();
        let container = daemon.container(&execution.container.unwrap()).await;
        assert!(used.iter().all(|id| *id != container.id), "used twice: {}", container.id);
        Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await.exited(0);
        daemon.gone(&container).await;
        used.push(container.id);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_half_made_is_cleared_away() {
    // Each creation fails after its process exists: the image has no such home directory to mount on.
    let daemon = Daemon::start(|setup| {
        setup.pool(1).add_provider(
            r#"
            name = "broken"
            image = "test"
            home = "/no/such/place"
            pool_target = 0
            egress = []
            [credentials]
            dir = ".test"
            tmpfs_mib = 1
            [resources.idle]
            memory_mib = 64
            cpu = 0.1
            [resources.run]
            memory_mib = 64
            cpu = 0.1
            "#,
        )
    })
    .await;
    let warm = daemon.settled().await;
    let before = open_files(daemon.pid()).len();
    for _ in 0..5 {
        let mut request = shell("true");
        request.provider = "broken".to_owned();
        let error = daemon.client.create(&request).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("no/such/place"), "it says what is missing: {error}");
    }
    eventually("only the warm one is left", || async {
        let ids: Vec<_> = daemon.containers().await.into_iter().map(|container| container.id).collect();
        (ids == [warm[0].id.clone()]).then_some(())
    })
    .await;
    eventually("no process is left", || async {
        let mut children = support::children(daemon.pid());
        children.retain(Process::exists);
        // The spawner, the keeper, and the warm container.
        (children.len() == 3).then_some(())
    })
    .await;
    eventually("no descriptor is left", || async { (open_files(daemon.pid()).len() <= before).then_some(()) }).await;
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}
