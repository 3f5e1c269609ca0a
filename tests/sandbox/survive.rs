//! What a daemon that was killed leaves, the next one goes on with.

use rustix::process::{Pid, Signal, kill_process};
use thaw_client::types::{ExecutionRequest, ExitReason, Sandbox, SandboxReason, SandboxState};

use super::{all, becomes, created, inside, now, run, usual};
use crate::support::{Daemon, Outcome};

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_and_their_commands_go_on_with_the_next_daemon() {
    let mut daemon = Daemon::start(usual).await;
    let active = created(&daemon, r#"{"name":"active","env":{"KEY":"hush"},"labels":{"a":"b"}}"#).await;
    let frozen = created(&daemon, r#"{"name":"frozen"}"#).await;
    let gone = created(&daemon, r#"{"name":"gone"}"#).await;
    daemon.client.delete_sandbox(&gone.id).await.unwrap();
    run(&daemon, &frozen, "echo kept > /tmp/file; sleep 1000 & echo $! > /tmp/pid").await;
    let _: Sandbox = crate::support::eventually("it can be frozen", || async {
        daemon.client.freeze_sandbox(&frozen.id).await.ok()
    })
    .await;
    let count = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 7";
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(daemon.client.create(&inside(&active, count)).await.unwrap());
    }
    let background = ExecutionRequest { background: true, ..inside(&active, "while :; do sleep 0.1; done") };
    let background = daemon.client.create(&background).await.unwrap();
    // What is written behind is on the disk by then.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let database = std::fs::read(daemon.path("state/store.db")).unwrap();
    let journal = std::fs::read(daemon.path("state/store.db-wal")).unwrap();
    let is_in = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(is_in(&[database.clone(), journal.clone()].concat(), active.id.as_bytes()));
    assert!(!is_in(&database, b"hush") && !is_in(&journal, b"hush"), "values of variables are on no disk");
    daemon.kill();
    daemon.launch().await;
    let found = now(&daemon, &active).await;
    assert_eq!((found.state, found.commands, found.container), (SandboxState::Active, 3, active.container.clone()));
    assert_eq!((found.env, found.labels["a"].as_str()), (vec!["KEY".to_owned()], "b"));
    let found = now(&daemon, &frozen).await;
    assert_eq!((found.state, found.reason), (SandboxState::Frozen, SandboxReason::Requested));
    assert!(daemon.container(frozen.container.as_ref().unwrap()).await.frozen);
    assert_eq!(now(&daemon, &gone).await.reason, SandboxReason::Requested);
    let expected: String = (0..200).map(|number| format!("{number}\n")).collect();
    for execution in running {
        let outcome = Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
        assert_eq!((outcome.text(), outcome.exit.code), (&*expected, Some(7)));
        assert!(outcome.exit.cpu_ms > 0, "{:?}", outcome.exit);
    }
    daemon.client.cancel(&background.id).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&background.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Cancelled);
    assert_eq!(run(&daemon, &active, "echo $KEY").await.text(), "hush\n");
    let kept = run(&daemon, &frozen, "cat /tmp/file; kill -0 $(cat /tmp/pid) && echo alive").await;
    assert_eq!(kept.text(), "kept\nalive\n");
    let by_name = daemon.http("PUT /v1/users/u1/sandboxes/frozen", &[], br#"{"template":"test"}"#).await;
    assert_eq!((by_name.status, by_name.json()["id"].as_str()), (200, Some(&*frozen.id)));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ended_between_two_daemons_is_told_of() {
    let mut daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let running = daemon.client.create(&inside(&sandbox, "sleep 0.3; echo said; exit 9")).await.unwrap();
    daemon.kill();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    daemon.launch().await;
    let outcome = Outcome::of(daemon.client.events(&running.id, None).await.unwrap()).await;
    assert_eq!((outcome.text(), outcome.exit.code), ("said\n", Some(9)));
    assert_eq!(run(&daemon, &sandbox, "echo alive").await.text(), "alive\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_keeper_they_are_gone_and_say_so() {
    let mut daemon = Daemon::start(usual).await;
    let active = created(&daemon, r#"{"name":"dev"}"#).await;
    let frozen = created(&daemon, "{}").await;
    let _: Sandbox = daemon.client.freeze_sandbox(&frozen.id).await.unwrap();
    let running = daemon.client.create(&inside(&active, "exec sleep 1000")).await.unwrap();
    let keeper = daemon.keeper().unwrap();
    daemon.kill();
    kill_process(Pid::from_raw(keeper.pid).unwrap(), Signal::KILL).unwrap();
    daemon.launch().await;
    for sandbox in [&active, &frozen] {
        let gone = becomes(&daemon, sandbox, SandboxState::Gone).await;
        assert_eq!(gone.reason, SandboxReason::Lost, "{gone:?}");
        assert!(gone.detail.as_ref().unwrap().contains("restarted"), "{gone:?}");
    }
    assert!(daemon.client.execution(&running.id).await.is_err(), "what the keeper had is not known any more");
    // Its name is free.
    let again = created(&daemon, r#"{"name":"dev"}"#).await;
    assert_eq!(run(&daemon, &again, "echo new").await.text(), "new\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_ends_them_unless_they_are_to_stay() {
    let mut daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    daemon.launch().await;
    let gone = now(&daemon, &sandbox).await;
    assert_eq!((gone.state, gone.reason), (SandboxState::Gone, SandboxReason::Stopped));
    daemon.stop().await;

    let mut daemon = Daemon::start(|setup| usual(setup).set("daemon.on_stop", "keep")).await;
    let sandbox = created(&daemon, "{}").await;
    run(&daemon, &sandbox, "echo kept > /tmp/file").await;
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    daemon.launch().await;
    assert_eq!(run(&daemon, &sandbox, "cat /tmp/file").await.text(), "kept\n");
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(all(&daemon).await.len(), 1);
    daemon.kill();
}
