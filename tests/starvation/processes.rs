//! Processes of thawd's own that are killed or stopped.

use rustix::process::{Pid, Signal, kill_process};
use thaw_client::types::{Event, ExitReason};

use crate::support::{ContainerCgroup, Daemon, Outcome, Process, eventually, shell};
use crate::{Counting, RECOVERY};

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_killed_spawner_is_replaced_and_containers_go_on_without_it() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let warm = daemon.settled().await;
    let counting = Counting::start(&daemon, 150).await;
    daemon.settled_beside(1).await;
    let first = daemon.spawner().unwrap();
    send(first.pid, Signal::KILL);
    eventually("it is gone and reaped", || async { (!first.exists()).then_some(()) }).await;
    let survivors = daemon.settled_beside(1).await;
    assert!(survivors.iter().any(|one| warm.iter().any(|other| one.id == other.id)), "warm ones are still warm");
    for _ in 0..5 {
        daemon.sh("echo served").await.exited(0);
    }
    let second = eventually("there is another one", || async { daemon.spawner() }).await;
    assert_ne!(first, second);
    counting.assert_complete(&daemon).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_spawner_that_hangs_is_replaced_too() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 300).await;
    daemon.settled_beside(1).await;
    let hung = daemon.spawner().unwrap();
    send(hung.pid, Signal::STOP);
    // A warm one is handed out; the refill is what hangs.
    daemon.sh("echo served").await.exited(0);
    let begun = std::time::Instant::now();
    while daemon.pool().await.warm == 0 {
        assert!(begun.elapsed() < RECOVERY, "{:?}", daemon.pool().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!hung.exists(), "it was killed and reaped");
    counting.assert_complete(&daemon).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_killed_thaw_init_ends_its_execution_and_nothing_else() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 100).await;
    let mut stream = daemon.client.execute_stream(&shell("echo begun; sleep 1000")).await.unwrap();
    let (mut events, mut killed) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        events.push(event.unwrap());
        if let (Some((_, Event::Stdout(_))), None) = (events.last(), &killed) {
            let Some((_, Event::Started(started))) = events.first() else { panic!("{events:?}") };
            let container = daemon.container(&started.container).await;
            let init = Process::now(container.pid.unwrap()).unwrap();
            send(init.pid, Signal::KILL);
            killed = Some((container, init));
        }
    }
    let outcome = Outcome::from_events(events).ended(ExitReason::Lost);
    assert_eq!((outcome.text(), outcome.exit.code, outcome.exit.success), ("begun\n", None, false));
    let detail = outcome.exit.detail.unwrap();
    assert!(detail.contains("the container ended unexpectedly"), "{detail}");
    let (container, init) = killed.unwrap();
    daemon.gone(&container).await;
    assert!(!ContainerCgroup::of(&container).exists() && !init.exists());
    counting.assert_complete(&daemon).await;
    daemon.settled().await;
    daemon.sh("echo served").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn warm_containers_whose_thaw_init_was_killed_are_replaced() {
    let daemon = Daemon::start(|setup| setup.pool(3).set("pool.health_interval_seconds", 1)).await;
    let warm = daemon.settled().await;
    for container in &warm {
        send(container.pid.unwrap(), Signal::KILL);
    }
    for container in &warm {
        daemon.gone(container).await;
    }
    let now = daemon.settled().await;
    assert!(now.iter().all(|one| warm.iter().all(|other| one.id != other.id)), "none of them is handed out");
    daemon.sh("echo served").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_creation_takes_no_longer_than_its_limit_whatever_part_of_it_hangs() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("container.create_timeout_seconds", 1)).await;
    daemon.sh("echo served").await.exited(0);
    let hung = daemon.spawner().unwrap();
    send(hung.pid, Signal::STOP);
    let begun = std::time::Instant::now();
    let error = daemon.client.create(&shell("echo never")).await.unwrap_err().to_string();
    let took = begun.elapsed();
    assert!(error.contains("not created within 1 s (`container.create_timeout_seconds`)"), "{error}");
    assert!((900..10_000).contains(&took.as_millis()), "{took:?}");
    // It gets to it after all: what it makes then is nobody's, and is cleared away.
    send(hung.pid, Signal::CONT);
    daemon.sh("echo served").await.exited(0);
    eventually("nothing is left but the spawner and the keeper", || async {
        let own = |child: &Process| child.command_line().contains("thawd ");
        let others = crate::support::children(daemon.pid()).into_iter().filter(|child| !own(child)).count();
        (daemon.containers().await.is_empty() && others == 0).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn jobs_that_nobody_waits_for_are_not_done() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("container.create_timeout_seconds", 1)).await;
    daemon.sh("echo served").await.exited(0);
    let hung = daemon.spawner().unwrap();
    send(hung.pid, Signal::STOP);
    let mut asked = Vec::new();
    for _ in 0..10 {
        let client = daemon.client.clone();
        asked.push(tokio::spawn(async move { client.create(&shell("echo never")).await }));
    }
    for one in asked {
        one.await.unwrap().unwrap_err();
    }
    // The first of them takes as long as it may; the other nine are not even begun.
    let begun = std::time::Instant::now();
    while daemon.client.create(&shell("echo served")).await.is_err() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(15), "the spawner still works off what nobody wants");
    }
    assert!(!hung.exists(), "it was killed and reaped");
    daemon.stop().await;
}

#[tokio::test]
async fn a_keeper_that_hangs_is_replaced_and_told_everything() {
    let stall = 5_000;
    let mut daemon = Daemon::start(|setup| setup.pool(2).set("daemon.keeper_stall_ms", stall)).await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 1500).await;
    let hung = daemon.keeper().unwrap();
    send(hung.pid, Signal::STOP);
    // Until its socket is full nobody notices; then claims wait for it, and nobody else.
    let (begun, client) = (std::time::Instant::now(), daemon.client.clone());
    let healthy = tokio::spawn(async move {
        let mut slowest = std::time::Duration::ZERO;
        loop {
            let asked = std::time::Instant::now();
            if client.healthz().await.is_err() {
                return slowest;
            }
            slowest = slowest.max(asked.elapsed());
            assert!(slowest.as_millis() < stall as u128 / 2, "{slowest:?}: a thread is blocked");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    while daemon.keeper().is_none_or(|keeper| keeper.pid == hung.pid) {
        daemon.sh("echo served").await.exited(0);
        assert!(begun.elapsed() < RECOVERY, "it is still there");
    }
    eventually("it was killed", || async { (!hung.exists()).then_some(()) }).await;
    assert!(daemon.log().contains("`daemon.keeper_stall_ms`"), "{}", daemon.log());
    eventually("the other one has been told", || async {
        daemon.log().contains("another keeper has taken its place").then_some(())
    })
    .await;
    daemon.kill();
    healthy.await.unwrap();
    daemon.launch().await;
    counting.assert_complete(&daemon).await;
    daemon.settled().await;
    daemon.stop().await;
}
