//! A daemon that is killed and started again.

use std::collections::BTreeSet;
use std::time::Duration;

use thaw_client::types::{ExecutionRequest, ExecutionState, ExitReason};

use crate::support::{ContainerCgroup, Daemon, Outcome, eventually, shell};

/// Numbered lines, one every 10 ms.
fn counting(lines: u32) -> ExecutionRequest {
    let script = format!(
        "i=0; while [ $i -lt {lines} ]; do echo line $i; echo error $i >&2; i=$((i+1)); sleep 0.01; done; exit 7"
    );
    ExecutionRequest { background: true, ..shell(&script) }
}

fn numbered(word: &str, lines: u32) -> String {
    (0..lines).map(|number| format!("{word} {number}\n")).collect()
}

/// The events of an execution, from the beginning to `exit`.
async fn whole(daemon: &Daemon, id: &str) -> Outcome {
    let stream = daemon.client.events(id, None).await.unwrap();
    Outcome::of(stream).await
}

#[tokio::test]
async fn warm_containers_stay_warm() {
    let mut daemon = Daemon::start(|setup| setup.pool(3)).await;
    let before: BTreeSet<String> = daemon.settled().await.into_iter().map(|container| container.id).collect();
    daemon.kill();
    for round in 0..2 {
        daemon.launch().await;
        let after = daemon.settled().await;
        let ids: BTreeSet<String> = after.iter().map(|container| container.id.clone()).collect();
        assert_eq!(ids, before, "round {round}");
        assert!(after.iter().all(|container| container.frozen && container.pid.is_some()));
        if round == 0 {
            daemon.kill();
        }
    }
    // They are of use, each once.
    let outcome = daemon.sh("echo used; id -u").await.exited(0);
    assert_eq!(outcome.text(), "used\n1000\n");
    assert!(before.contains(&outcome.started.container));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_execution_goes_on_and_arrives_complete() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    // Long enough to be running still at the last kill, on a slow machine too.
    let started = daemon.client.create(&counting(500)).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        daemon.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        daemon.launch().await;
    }
    let outcome = whole(&daemon, &started.id).await.exited(7);
    assert_eq!(outcome.text(), numbered("line", 500));
    assert_eq!(outcome.errors(), numbered("error", 500));
    let same = daemon.client.execution(&started.id).await.unwrap();
    assert_eq!(
        (same.state, same.container.clone(), same.created_at_ms),
        (ExecutionState::Exited, started.container.clone(), started.created_at_ms)
    );
    // What has ended is still there after one more, and where it ran.
    daemon.kill();
    daemon.launch().await;
    let after = daemon.client.execution(&started.id).await.unwrap();
    assert_eq!((after.state, after.container, after.path), (ExecutionState::Exited, same.container, same.path));
    assert_eq!(whole(&daemon, &started.id).await.exited(7).text(), numbered("line", 500));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_ends_while_there_is_no_daemon_has_ended_for_the_next_one() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let started = daemon
        .client
        .create(&ExecutionRequest { background: true, ..shell("sleep 0.3; echo end; exit 3") })
        .await
        .unwrap();
    let container = daemon.container(started.container.as_deref().unwrap()).await;
    daemon.kill();
    tokio::time::sleep(Duration::from_millis(600)).await;
    daemon.launch().await;
    assert_eq!(whole(&daemon, &started.id).await.exited(3).text(), "end\n");
    daemon.gone(&container).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_time_limit_holds_across_a_restart() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let request = ExecutionRequest { background: true, timeout_ms: Some(700), ..shell("echo begun; sleep 1000") };
    let started = daemon.client.create(&request).await.unwrap();
    daemon.kill();
    tokio::time::sleep(Duration::from_millis(800)).await;
    daemon.launch().await;
    let outcome = whole(&daemon, &started.id).await.ended(ExitReason::Timeout);
    assert_eq!(outcome.text(), "begun\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_come_back_is_waited_for_and_then_not_any_more() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("execution.reconnect_grace_ms", 1500)).await;
    let stream = daemon.client.execute_stream(&shell("echo begun; sleep 1000")).await.unwrap();
    let id = eventually("it runs", || async { daemon.client.executions().await.unwrap().pop() }).await.id;
    daemon.kill();
    drop(stream);
    daemon.launch().await;
    assert_eq!(daemon.client.execution(&id).await.unwrap().state, ExecutionState::Running);
    whole_or_cancelled(&daemon, &id).await;
    daemon.settled().await;
    daemon.stop().await;
}

/// Waits without reading, since a reader would count.
async fn whole_or_cancelled(daemon: &Daemon, id: &str) {
    let exit = eventually("it is cancelled", || async { daemon.client.execution(id).await.unwrap().exit }).await;
    assert_eq!(exit.reason, ExitReason::Cancelled);
}

#[tokio::test]
async fn a_stop_that_keeps_leaves_everything_for_the_next_daemon() {
    let mut daemon = Daemon::start(|setup| setup.pool(2).set("daemon.on_stop", "keep")).await;
    let before: BTreeSet<String> = daemon.settled().await.into_iter().map(|container| container.id).collect();
    let started = daemon.client.create(&counting(100)).await.unwrap();
    daemon.settled_beside(1).await;
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
    daemon.launch().await;
    assert_eq!(whole(&daemon, &started.id).await.exited(7).text(), numbered("line", 100));
    assert!(daemon.settled().await.iter().any(|container| before.contains(&container.id)));
    // For good this time: a configuration that destroys.
    let config = std::fs::read_to_string(daemon.path("thawd.toml")).unwrap();
    std::fs::write(daemon.path("thawd.toml"), config.replace("\"keep\"", "\"destroy\"")).unwrap();
    daemon.kill();
    daemon.launch().await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_daemon_for_too_long_everything_is_destroyed() {
    let mut daemon = Daemon::start(|setup| setup.pool(2).set("daemon.keeper_timeout_seconds", 1)).await;
    daemon.settled().await;
    daemon.client.create(&counting(10_000)).await.unwrap();
    let containers = daemon.settled_beside(1).await;
    let family = daemon.family();
    daemon.kill();
    for container in &containers {
        let cgroup = ContainerCgroup::of(container);
        eventually("it is destroyed", || async { (!cgroup.exists()).then_some(()) }).await;
    }
    eventually("nobody is left", || async { (!family.iter().any(|process| process.exists())).then_some(()) }).await;
    assert!(!daemon.path("run/keeper.sock").exists());
    for directory in daemon.cgroups() {
        assert!(!directory.exists(), "left: {}", directory.display());
    }
    daemon.launch().await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_keeper_that_dies_is_replaced_and_told_everything() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    let before: BTreeSet<String> = daemon.settled().await.into_iter().map(|container| container.id).collect();
    let started = daemon.client.create(&counting(200)).await.unwrap();
    let keeper = daemon.keeper().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(keeper.pid).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually("there is another keeper", || async { daemon.keeper().filter(|other| other.pid != keeper.pid) }).await;
    eventually("it has been told", || async {
        daemon.log().contains("another keeper has taken its place").then_some(())
    })
    .await;
    let metrics = daemon.client.metrics().await.unwrap();
    assert!(metrics.contains("\nthawd_keeper_failures_total 1\n"), "{metrics}");
    daemon.settled_beside(1).await;
    daemon.kill();
    daemon.launch().await;
    assert_eq!(whole(&daemon, &started.id).await.exited(7).text(), numbered("line", 200));
    assert!(daemon.settled().await.iter().any(|container| before.contains(&container.id)));
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_kept_although_the_daemon_is_killed_at_once() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    for round in 0..12 {
        let request = ExecutionRequest { background: true, ..shell("sleep 1000") };
        let id = daemon.client.create(&request).await.unwrap().id;
        daemon.client.cancel(&id).await.unwrap();
        daemon.kill();
        daemon.launch().await;
        let exit = eventually("it ends", || async { daemon.client.execution(&id).await.unwrap().exit }).await;
        assert_eq!(exit.reason, ExitReason::Cancelled, "round {round}: {exit:?}");
    }
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn who_was_cancelled_in_the_queue_is_cancelled_for_the_next_daemon() {
    let mut daemon = Daemon::start(|setup| setup.pool(0).set("container.max", 1)).await;
    let occupant = ExecutionRequest { background: true, ..shell("sleep 1000") };
    let occupant = daemon.client.create(&occupant).await.unwrap().id;
    let stream = daemon.client.execute_stream(&shell("true")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    daemon.client.cancel(&id).await.unwrap();
    daemon.kill();
    daemon.launch().await;
    let exit = eventually("it has ended", || async { daemon.client.execution(&id).await.unwrap().exit }).await;
    assert_eq!(exit.reason, ExitReason::Cancelled, "{exit:?}");
    daemon.client.cancel(&occupant).await.unwrap();
    daemon.stop().await;
}

/// Kills the daemon again and again, each time soon after it has come up, until the execution has ended; for how long that
/// took after `limit`.
async fn restarted_until_it_ends(daemon: &mut Daemon, id: &str, limit: Duration) -> Duration {
    let begun = std::time::Instant::now();
    loop {
        let until = tokio::time::Instant::now() + Duration::from_millis(400);
        while tokio::time::Instant::now() < until {
            if daemon.client.execution(id).await.unwrap().exit.is_some() {
                return begun.elapsed().saturating_sub(limit);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        daemon.kill();
        daemon.launch().await;
        assert!(begun.elapsed() < crate::support::PATIENCE, "the wait begins anew in each daemon");
    }
}

#[tokio::test]
async fn no_grace_period_begins_anew_in_the_next_daemon() {
    let graces = |setup: crate::support::Setup| {
        setup
            .pool(2)
            .set("execution.kill_grace_ms", 1500)
            .set("execution.disconnect_grace_ms", 1500)
            .set("execution.reconnect_grace_ms", 1500)
    };
    let mut daemon = Daemon::start(graces).await;
    // It ignores SIGTERM, and has to be killed.
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let request = ExecutionRequest { background: true, timeout_ms: Some(300), ..shell(script) };
    let id = daemon.client.create(&request).await.unwrap().id;
    let late = restarted_until_it_ends(&mut daemon, &id, Duration::from_millis(1800)).await;
    let exit = daemon.client.execution(&id).await.unwrap().exit.unwrap();
    assert_eq!(exit.reason, ExitReason::Timeout);
    assert!(late < Duration::from_secs(15), "{late:?}");
    // Its client went away before the first kill, and never comes back.
    let stream = daemon.client.execute_stream(&shell("sleep 1000")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    drop(stream);
    let late = restarted_until_it_ends(&mut daemon, &id, Duration::from_millis(1500)).await;
    let exit = daemon.client.execution(&id).await.unwrap().exit.unwrap();
    assert_eq!(exit.reason, ExitReason::Cancelled);
    assert!(late < Duration::from_secs(15), "{late:?}");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_has_ended_is_kept_no_longer_because_of_a_restart() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("execution.retention_seconds", 3)).await;
    let id = daemon.sh("true").await.exited(0).started.execution;
    assert!(daemon.client.execution(&id).await.is_ok());
    daemon.kill();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    daemon.launch().await;
    assert!(daemon.client.execution(&id).await.is_err(), "its time was over before this daemon began");
    daemon.stop().await;
}
