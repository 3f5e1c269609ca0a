//! One id from the request to the log, the execution and its events.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{Answer, Daemon, Outcome, eventually};
use thaw_client::types::{Event, Execution};

const GIVEN: &str = "5f0c9b2e-8d1a-4c55:b0f3/1";

async fn post(daemon: &Daemon, headers: &[(&str, &str)], body: &Value) -> Answer {
    let headers: Vec<_> = [("content-type", "application/json")].into_iter().chain(headers.iter().copied()).collect();
    daemon.http("POST /v1/executions", &headers, &serde_json::to_vec(body).unwrap()).await
}

fn shell(script: &str) -> Value {
    json!({ "provider": "test", "user": "alice", "command": ["sh", "-c", script] })
}

#[tokio::test]
async fn a_clients_id_goes_all_the_way() {
    let daemon = Daemon::start(|setup| setup.set("log.format", "json").set("log.filter", "warn,thawd=debug")).await;
    let answer = post(&daemon, &[("x-request-id", GIVEN)], &shell("echo hello")).await;
    assert_eq!((answer.status, answer.header("x-request-id").as_deref()), (201, Some(GIVEN)));
    let execution: Execution = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(execution.request_id.as_deref(), Some(GIVEN));
    let outcome = Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.started.request_id.as_deref(), Some(GIVEN));
    assert_eq!(outcome.exit.request_id.as_deref(), Some(GIVEN));
    assert_eq!(daemon.client.execution(&execution.id).await.unwrap().request_id.as_deref(), Some(GIVEN));

    // Every line that the execution caused says whose it is.
    let lines = eventually("its end is logged", || async {
        let log = daemon.log();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |line: &Value| line["span"]["execution"] == execution.id.as_str();
        let lines: Vec<Value> = lines.into_iter().filter(of).collect();
        lines.iter().any(|line| line["message"] == "execution ended").then_some(lines)
    })
    .await;
    assert!(lines.len() >= 2, "{lines:?}");
    for line in &lines {
        let span = &line["span"];
        assert_eq!(
            (&span["user"], &span["provider"], &span["request_id"]),
            (&json!("alice"), &json!("test"), &json!(GIVEN))
        );
    }
    let all = daemon.log();
    let stray = all.lines().filter(|line| line.contains(&execution.id)).count();
    let mentioned = all.lines().filter(|line| line.contains(&execution.id) && line.contains("\"request_id\"")).count();
    assert_eq!(stray, mentioned, "a line names the execution without the request:\n{all}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_and_a_wrong_one_is_refused() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let answer = post(&daemon, &[], &shell("true")).await;
    let id = answer.header("x-request-id").unwrap();
    assert!(id.starts_with("r-") && id.len() == 28, "{id}");
    assert_eq!(answer.header("x-request-id"), serde_json::from_slice::<Execution>(&answer.body).unwrap().request_id);
    for path in ["GET /healthz", "GET /metrics", "GET /nowhere", "DELETE /v1/pools"] {
        let one = daemon.http(path, &[], b"").await;
        assert!(one.header("x-request-id").is_some_and(|other| other != id), "{path}");
        let given = daemon.http(path, &[("x-request-id", "a-1")], b"").await;
        assert_eq!(given.header("x-request-id").as_deref(), Some("a-1"), "{path}");
    }
    for wrong in ["a b", "a\"b", "<script>", &"x".repeat(129)] {
        let answer = post(&daemon, &[("x-request-id", wrong)], &shell("true")).await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.code.as_str()), (400, "invalid_request_id"), "{wrong}");
        assert_eq!(problem.request_id, answer.header("x-request-id"));
        assert!(problem.request_id.unwrap().starts_with("r-"));
    }
    assert_eq!(daemon.client.executions().await.unwrap().len(), 1, "nothing was started");
    daemon.stop().await;
}

#[tokio::test]
async fn problems_and_refusals_carry_the_id() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("container.max", 1).set("queue.timeout_ms", 200)).await;
    let unknown = json!({ "provider": "nobody", "user": "u1", "command": ["true"] });
    let answer = post(&daemon, &[("x-request-id", "bad-1")], &unknown).await;
    assert_eq!((answer.status, answer.problem().request_id.as_deref()), (400, Some("bad-1")));
    // thawctl and other clients show it with the error.
    let error = daemon.client.execution("e-unknown").await.unwrap_err().to_string();
    assert!(error.contains(", request r-"), "{error}");

    post(&daemon, &[], &shell("sleep 1000")).await;
    let headers = [("x-request-id", "queued-1"), ("accept", "text/event-stream")];
    let answer = post(&daemon, &headers, &shell("true")).await;
    let id = answer.header("location").unwrap().rsplit('/').next().unwrap().to_owned();
    let mut stream = daemon.client.events(&id, None).await.unwrap();
    let mut ids = Vec::new();
    while let Some(event) = stream.next().await {
        match event.unwrap().1 {
            Event::Queued(queued) => ids.push(("queued", queued.request_id)),
            Event::Exit(exit) => ids.push(("exit", exit.request_id)),
            other => panic!("{other:?}"),
        }
    }
    let given = Some("queued-1".to_owned());
    assert_eq!(ids, [("queued", given.clone()), ("exit", given)]);
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_container_is_refused_names_its_execution() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("log.format", "json")).await;
    daemon.settled().await;
    let script = "http_proxy=http://127.0.0.1:3128 wget -q -O - http://forbidden.example/";
    let answer = post(&daemon, &[("x-request-id", "egress-1")], &shell(script)).await;
    let execution: Execution = serde_json::from_slice(&answer.body).unwrap();
    Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("forbidden.example")).unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["target"], &line["span"]["execution"]), (&json!("egress"), &json!(execution.id)), "{line}");
    assert_eq!(line["span"]["request_id"], "egress-1");
    daemon.stop().await;
}
