//! The end of the daemon itself, in order and out of it.

use rustix::process::Signal;
use thaw_client::types::{Event, ExitReason};

use crate::support::{ContainerCgroup, Daemon, Outcome, Process, eventually, processes_in_cgroup, shell};

#[tokio::test]
async fn a_stop_ends_executions_and_says_so() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(|setup| setup).await;
        let mut stream = daemon.client.execute_stream(&shell("trap '' TERM; echo ready; sleep 1000")).await.unwrap();
        let mut events = Vec::new();
        while !matches!(events.last(), Some((_, Event::Stdout(_)))) {
            events.push(stream.next().await.unwrap().unwrap());
        }
        let family = daemon.family();
        assert!(family.len() > 3, "{family:?}");
        daemon.signal(signal);
        while let Some(event) = stream.next().await {
            events.push(event.unwrap());
        }
        let outcome = Outcome::from_events(events).ended(ExitReason::Killed);
        assert!(outcome.exit.detail.unwrap().contains("stopped"));
        assert!(daemon.ended().await.success());
        daemon.assert_nothing_left(&family);
    }
}

#[tokio::test]
async fn a_stop_while_the_pool_is_being_filled_leaves_nothing() {
    let mut daemon = Daemon::start(|setup| setup.pool(12)).await;
    let family = daemon.family();
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    daemon.assert_nothing_left(&family);
}

#[tokio::test]
async fn what_a_killed_daemon_and_its_keeper_leave_the_next_one_sweeps() {
    let mut daemon = Daemon::start(|setup| setup.pool(3)).await;
    let id = daemon.client.create(&shell("trap '' TERM HUP; (setsid sleep 1000 &) ; sleep 1000")).await.unwrap().id;
    let running = daemon.client.execution(&id).await.unwrap().container.unwrap();
    let running = ContainerCgroup::of(&daemon.container(&running).await);
    let warm = daemon.settled_beside(1).await;
    let family = daemon.family();
    // The keeper holds everything together: without it, nothing survives.
    let keeper = daemon.keeper().unwrap();
    daemon.kill();
    rustix::process::kill_process(rustix::process::Pid::from_raw(keeper.pid).unwrap(), Signal::KILL).unwrap();
    // thaw-init sees that nobody is left who could talk to it, and takes everything with it.
    eventually("the running container ends by itself", || async { running.processes().is_empty().then_some(()) }).await;
    // The warm ones are frozen and cannot notice: they cost no CPU until somebody comes.
    for container in &warm {
        assert_eq!(ContainerCgroup::of(container).frozen_and_populated(), (true, true));
    }
    daemon.launch().await;
    let now = daemon.settled().await;
    for container in &warm {
        assert!(!ContainerCgroup::of(container).exists(), "swept");
        assert!(now.iter().all(|other| other.id != container.id), "never handed out again");
    }
    // Orphans of the killed one: this machine's PID 1 reaps them when it gets to it.
    eventually("every process is gone", || async { (!family.iter().any(Process::exists)).then_some(()) }).await;
    assert!(!running.exists());
    assert!(daemon.log().contains("left behind"));
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_socket_refuses_and_harms_nothing() {
    let daemon = Daemon::start(|setup| setup).await;
    let before = daemon.settled().await;
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_thawd"))
        .arg("--config")
        .arg(daemon.path("thawd.toml"))
        .env_clear()
        .output()
        .unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("another daemon uses"), "{message}");
    let after = daemon.settled().await;
    let ids = |list: &[thaw_client::types::Container]| list.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    daemon.sh("echo fine").await.exited(0);
    assert!(!processes_in_cgroup(daemon.cgroup_name()).is_empty());
    daemon.stop().await;
}
