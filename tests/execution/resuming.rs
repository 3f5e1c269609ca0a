//! Reading an execution later, again, and from the middle.

use std::time::Duration;

use thaw_client::types::{ClaimPath, Event, ExecutionState, ExitReason};

use crate::support::{Daemon, Outcome, command, eventually, shell};

#[tokio::test]
async fn without_a_stream_the_answer_is_201_and_a_location() {
    let daemon = Daemon::start(|setup| setup).await;
    let body = serde_json::to_vec(&shell("echo hello")).unwrap();
    let answer = daemon.http("POST /v1/executions", &[("content-type", "application/json")], &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let execution: thaw_client::types::Execution = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.header("location").unwrap(), format!("/v1/executions/{}", execution.id));
    assert_eq!(execution.path, Some(ClaimPath::Warm));
    // Read twice, and both times from the beginning to the end.
    for _ in 0..2 {
        let outcome = Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await.exited(0);
        assert_eq!((outcome.text(), outcome.started.execution.as_str()), ("hello\n", execution.id.as_str()));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let daemon = Daemon::start(|setup| setup.set("execution.disconnect_grace_ms", 60_000)).await;
    let script = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; [ $((i % 25)) = 0 ] && sleep 0.02; done";
    let mut stream = daemon.client.execute_stream(&shell(script)).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    let mut events: Vec<(u64, Event)> = Vec::new();
    let mut connections = 1;
    loop {
        let Some(event) = stream.next().await else { break };
        let (last, event) = event.unwrap();
        let ended = matches!(event, Event::Exit(_));
        events.push((last, event));
        if events.len().is_multiple_of(3) && !ended {
            stream = daemon.client.events(&id, Some(last)).await.unwrap();
            connections += 1;
        }
    }
    let outcome = Outcome::from_events(events).exited(0);
    let expected: String = (1..=500).map(|line| format!("line {line}\n")).collect();
    assert_eq!(outcome.text(), expected);
    assert!(connections > 3, "only {connections} connections");
    // Nothing follows the exit, and a number from the future is answered with an end, not with a hang.
    let last = outcome.events.last().unwrap().0;
    for after in [last, last + 1000] {
        let path = format!("GET /v1/executions/{id}/events");
        let answer = daemon.http(&path, &[("last-event-id", &after.to_string())], b"").await;
        assert_eq!((answer.status, answer.text().as_str()), (204, ""), "after {after}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn who_goes_away_for_good_cancels() {
    let daemon = Daemon::start(|setup| setup.set("execution.disconnect_grace_ms", 300)).await;
    let mut stream = daemon.client.execute_stream(&shell("echo ready; sleep 1000")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let outcome = Outcome::of({
        eventually("it is cancelled", || async {
            (daemon.client.execution(&id).await.unwrap().state == ExecutionState::Exited).then_some(())
        })
        .await;
        daemon.client.events(&id, None).await.unwrap()
    });
    outcome.await.ended(ExitReason::Cancelled);
    daemon.stop().await;
}

#[tokio::test]
async fn who_comes_back_in_time_does_not_cancel() {
    let daemon = Daemon::start(|setup| setup.set("execution.disconnect_grace_ms", 3000)).await;
    let mut stream = daemon.client.execute_stream(&shell("echo ready; sleep 4; echo done")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.text(), "ready\ndone\n");
    daemon.stop().await;
}

#[tokio::test]
async fn in_the_background_nobody_needs_to_read() {
    let daemon = Daemon::start(|setup| setup.set("execution.disconnect_grace_ms", 50)).await;
    let mut request = shell("echo ready; sleep 1; echo done");
    request.background = true;
    let mut stream = daemon.client.execute_stream(&request).await.unwrap();
    let streamed = stream.execution().unwrap().to_owned();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let created = daemon.client.create(&shell("sleep 1; echo done")).await.unwrap().id;
    for id in [streamed, created] {
        let exited =
            || async { (daemon.client.execution(&id).await.unwrap().state == ExecutionState::Exited).then_some(()) };
        eventually("it ends by itself", exited).await;
        let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
        assert!(outcome.text().ends_with("done\n"));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn executions_are_listed_with_their_labels_and_forgotten_in_time() {
    let daemon = Daemon::start(|setup| setup.set("execution.retention_seconds", 1).set("execution.retained", 2)).await;
    let mut request = command(["true"]);
    request.labels = [("job".to_owned(), "nightly 7 ✓".to_owned())].into();
    request.timeout_ms = Some(4321);
    let first = daemon.run(&request).await.exited(0).started.execution;
    let described = daemon.client.execution(&first).await.unwrap();
    assert_eq!((described.provider.as_str(), described.user.as_str()), ("test", "u1"));
    assert_eq!((described.labels, described.timeout_ms), (request.labels, 4321));
    assert_eq!(described.exit.unwrap().code, Some(0));
    let ids = || async {
        let list = daemon.client.executions().await.unwrap();
        list.into_iter().map(|execution| execution.id).collect::<Vec<_>>()
    };
    assert_eq!(ids().await, std::slice::from_ref(&first));
    // No more than two ended ones are kept, the newest.
    let second = daemon.run(&command(["true"])).await.started.execution;
    let third = daemon.run(&command(["true"])).await.started.execution;
    let wanted = [third, second];
    eventually("the oldest is forgotten", || async { (ids().await == wanted).then_some(()) }).await;
    assert_eq!(daemon.http(&format!("GET /v1/executions/{first}"), &[], b"").await.status, 404);
    // And none of them for longer than a second or so.
    eventually("all are forgotten", || async { ids().await.is_empty().then_some(()) }).await;
    daemon.stop().await;
}

#[tokio::test]
async fn old_outputs_make_room_for_new_ones() {
    let limit = 1 << 20;
    let daemon =
        Daemon::start(|setup| setup.set("execution.output_bytes", limit).set("execution.retained_bytes", limit)).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let outcome = daemon.sh("head -c 400000 /dev/zero | tr '\\0' x").await.exited(0);
        ids.push(outcome.started.execution);
    }
    eventually("only the newest two fit", || async {
        let list = daemon.client.executions().await.unwrap();
        let left: Vec<_> = list.into_iter().map(|execution| execution.id).collect();
        left.iter().rev().eq(&ids[2..]).then_some(())
    })
    .await;
    daemon.stop().await;
}
