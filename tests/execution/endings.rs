//! How executions end, and that each ends once.

use std::time::{Duration, Instant};

use thaw_client::types::{Event, ExecutionState, ExitReason};

use crate::support::{ContainerCgroup, Daemon, command, eventually, shell};

#[tokio::test]
async fn the_exit_code_is_the_commands() {
    let daemon = Daemon::start(|setup| setup).await;
    for code in [0, 3, 255] {
        let outcome = daemon.sh(&format!("exit {code}")).await.exited(code);
        assert_eq!(outcome.exit.success, code == 0);
        assert_eq!(outcome.exit.signal, None);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_executed_exits_like_in_a_shell() {
    let daemon = Daemon::start(|setup| setup).await;
    for (program, code) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("/etc/passwd", 126),
        ("/etc", 126),
        ("/root/hidden", 126),
    ] {
        let outcome = daemon.run(&command([program])).await.exited(code);
        assert!(!outcome.exit.success);
        assert!(outcome.errors().contains("cannot execute"), "{program}: {}", outcome.errors());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_signal_is_reported_as_such() {
    let daemon = Daemon::start(|setup| setup).await;
    for signal in [6, 9, 11, 15] {
        let exit = daemon.sh(&format!("kill -{signal} $$")).await.exit;
        assert_eq!((exit.signal, exit.code, exit.success), (Some(signal), None, false), "{exit:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_time_limit_ends_the_command_politely_first() {
    let daemon = Daemon::start(|setup| setup).await;
    let mut request = shell("trap 'echo saved; exit 4' TERM; echo ready; while :; do sleep 0.1; done");
    request.timeout_ms = Some(700);
    let outcome = daemon.run(&request).await.ended(ExitReason::Timeout);
    assert_eq!((outcome.text(), outcome.exit.code), ("ready\nsaved\n", Some(4)));
    assert!(outcome.exit.detail.unwrap().contains("700 ms"));
    assert!(outcome.exit.duration_ms >= 700, "{}", outcome.exit.duration_ms);

    let mut request = shell("sleep 1000");
    request.timeout_ms = Some(300);
    let exit = daemon.run(&request).await.ended(ExitReason::Timeout).exit;
    assert_eq!((exit.code, exit.signal), (None, Some(15)));
    daemon.stop().await;
}

#[tokio::test]
async fn who_ignores_the_time_limit_is_killed() {
    let daemon = Daemon::start(|setup| setup.set("execution.kill_grace_ms", 400)).await;
    let mut request = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done");
    request.timeout_ms = Some(300);
    let outcome = daemon.run(&request).await.ended(ExitReason::Timeout);
    assert_eq!((outcome.exit.code, outcome.exit.signal), (None, Some(9)));
    assert!(outcome.exit.duration_ms >= 700, "the grace was given: {} ms", outcome.exit.duration_ms);
    daemon.stop().await;
}

#[tokio::test]
async fn cancelling_ends_it_and_can_be_repeated() {
    let daemon = Daemon::start(|setup| setup).await;
    let execution = daemon.client.create(&shell("trap 'echo saved; exit 4' TERM; while :; do sleep 0.1; done")).await;
    let id = execution.unwrap().id;
    // The trap must be set before the signal comes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        daemon.client.cancel(&id).await.unwrap();
    }
    let outcome = crate::support::Outcome::of(daemon.client.events(&id, None).await.unwrap()).await;
    let outcome = outcome.ended(ExitReason::Cancelled);
    assert_eq!((outcome.text(), outcome.exit.code), ("saved\n", Some(4)));
    daemon.client.cancel(&id).await.expect("cancelling what has ended does nothing");
    assert_eq!(daemon.client.execution(&id).await.unwrap().state, ExecutionState::Exited);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_left_behind_by_a_command_dies_with_it() {
    let daemon = Daemon::start(|setup| setup).await;
    // Forked twice, in a session of its own, with its output closed and with it open.
    let script = "(setsid sh -c 'trap \"\" TERM HUP; sleep 1001' >/dev/null 2>&1 &); \
                  (setsid sh -c 'trap \"\" TERM HUP; sleep 1002' &); echo done";
    let begun = Instant::now();
    let mut stream = daemon.client.execute_stream(&shell(script)).await.unwrap();
    let mut container = None;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        let event = event.unwrap();
        if let Event::Started(started) = &event.1 {
            container = daemon.containers().await.into_iter().find(|container| container.id == started.container);
        }
        events.push(event);
    }
    crate::support::Outcome::from_events(events).exited(0);
    assert!(begun.elapsed() < Duration::from_secs(20), "nobody waited for what was left behind");
    // A very quick one may be gone before it could be looked at; its cgroup's name is known all the same.
    if let Some(container) = container {
        daemon.gone(&container).await;
    }
    let sleepers = || {
        let mut found = crate::support::processes_in_cgroup(daemon.cgroup_name());
        found.retain(|process| process.command_line().contains("sleep 100"));
        found
    };
    assert_eq!(sleepers(), [], "still there");
    daemon.stop().await;
}

#[tokio::test]
async fn a_container_that_breaks_is_lost_not_hung() {
    let daemon = Daemon::start(|setup| setup).await;
    let id = daemon.client.create(&shell("echo ready; sleep 1000")).await.unwrap().id;
    let container = daemon.client.execution(&id).await.unwrap().container.unwrap();
    let pid = daemon.container(&container).await.pid.unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let outcome = crate::support::Outcome::of(daemon.client.events(&id, None).await.unwrap()).await;
    let outcome = outcome.ended(ExitReason::Lost);
    assert!(outcome.exit.detail.is_some());
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn the_figures_at_the_end_are_the_containers() {
    let daemon = Daemon::start(|setup| setup).await;
    let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 20000000 /dev/zero > /tmp/file; sleep 0.5";
    let exit = daemon.sh(busy).await.exited(0).exit;
    assert!(exit.cpu_ms > 20 && exit.cpu_ms <= exit.duration_ms, "{exit:?}");
    assert!(exit.memory_peak_bytes > 20_000_000 && exit.memory_peak_bytes < 128 << 20, "{exit:?}");
    assert!(exit.duration_ms >= 500, "{exit:?}");
    let idle = daemon.sh("sleep 0.3").await.exited(0).exit;
    assert!(idle.cpu_ms < exit.cpu_ms && idle.memory_peak_bytes < 20_000_000, "{idle:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_of_the_container_is_left_after_the_exit() {
    let daemon = Daemon::start(|setup| setup).await;
    let id = daemon.client.create(&shell("sleep 1000")).await.unwrap().id;
    let name = daemon.client.execution(&id).await.unwrap().container.unwrap();
    let container = daemon.container(&name).await;
    let cgroup = ContainerCgroup::of(&container);
    assert!(cgroup.exists() && cgroup.processes().len() >= 2);
    daemon.client.cancel(&id).await.unwrap();
    daemon.gone(&container).await;
    eventually("the list forgets it", || async {
        daemon.containers().await.iter().all(|other| other.id != name).then_some(())
    })
    .await;
    daemon.stop().await;
}
