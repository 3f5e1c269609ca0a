//! A daemon that is killed and started again.

use super::support::{Daemon, Outcome, eventually};
use super::{file, listed, with};
use thaw_client::types::{ExecutionRequest, ExecutionState};

async fn whole(daemon: &Daemon, id: &str) -> Outcome {
    Outcome::of(daemon.client.events(id, None).await.unwrap()).await
}

#[tokio::test]
async fn files_come_back_from_an_execution_that_has_survived_its_daemon() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let script = "while [ ! -e /tmp/go ]; do echo x >> log; sleep 0.05; done; echo end > done";
    let script = &script.replace("[ ! -e /tmp/go ]", "[ $(wc -l < log) -lt 40 ]");
    let request = ExecutionRequest { background: true, ..with(script, &[("log", ""), ("given", "in")], &["."]) };
    let started = daemon.client.create(&request).await.unwrap();
    for _ in 0..2 {
        daemon.kill();
        daemon.launch().await;
    }
    let outcome = whole(&daemon, &started.id).await.exited(0);
    assert_eq!(file(&daemon, &outcome, "done").await, "end\n");
    assert_eq!(file(&daemon, &outcome, "given").await, "in");
    assert_eq!(file(&daemon, &outcome, "log").await, "x\n".repeat(40));
    // And what has been collected is there after one more.
    let before = (listed(&daemon, &outcome).await, daemon.client.archive(&started.id).await.unwrap());
    daemon.kill();
    daemon.launch().await;
    let after = (listed(&daemon, &outcome).await, daemon.client.archive(&started.id).await.unwrap());
    assert_eq!(after, before);
    daemon.stop().await;
}

#[tokio::test]
async fn an_end_that_is_interrupted_is_collected_once_more() {
    for step in ["end.drained", "end.collected"] {
        let mut daemon = Daemon::prepare(|setup| setup.pool(0));
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        let request = ExecutionRequest { background: true, ..with("echo one > a; sleep 0.2", &[("b", "two")], &["."]) };
        let started = daemon.client.create(&request).await.unwrap();
        daemon.ended().await;
        daemon.launch().await;
        let ended = eventually("it has ended", || async {
            let execution = daemon.client.execution(&started.id).await.unwrap();
            (execution.state == ExecutionState::Exited).then_some(execution)
        })
        .await;
        let outcome = whole(&daemon, &ended.id).await.exited(0);
        assert_eq!(file(&daemon, &outcome, "a").await, "one\n", "{step}");
        assert_eq!(file(&daemon, &outcome, "b").await, "two", "{step}");
        daemon.stop().await;
    }
}
