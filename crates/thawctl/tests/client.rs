//! The API client against a server that cuts, refuses and talks nonsense.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod fake;

use std::path::Path;

use fake::{Cut, Fake, Script, exit, problem, started, success};
use serde_json::json;
use thaw_client::client::{Client, ClientError, EventStream};
use thaw_client::types::{Event, ExecutionRequest};

fn delta(text: &str) -> (&'static str, serde_json::Value) {
    ("delta", json!({ "text": text }))
}

fn answer() -> Vec<(&'static str, serde_json::Value)> {
    vec![started(), delta("grüß "), delta("dich, "), delta("世界"), success()]
}

fn client(fake: &Fake) -> Client {
    Client::new(&fake.socket).unwrap()
}

fn request() -> ExecutionRequest {
    ExecutionRequest {
        provider: "openai".into(),
        user: "u1".into(),
        prompt: Some("hi".into()),
        ..ExecutionRequest::default()
    }
}

/// Reads to the end: sequence numbers and the answer's text.
async fn collect(stream: &mut EventStream) -> Result<(Vec<u64>, String), ClientError> {
    let (mut ids, mut text) = (Vec::new(), String::new());
    while let Some(next) = stream.next().await {
        let (id, event) = next?;
        ids.push(id);
        if let Event::Delta(delta) = event {
            text.push_str(&delta.text);
        }
    }
    Ok((ids, text))
}

#[tokio::test]
async fn a_stream_gives_each_event_and_ends_after_exit() {
    let fake = Fake::start(Script { events: answer(), ..Script::default() });
    let mut stream = client(&fake).execute_stream(&request()).await.unwrap();
    assert_eq!(stream.execution(), Some("e-1"), "known before the first event");
    assert_eq!(collect(&mut stream).await.unwrap(), (vec![1, 2, 3, 4, 5], "grüß dich, 世界".into()));
    assert!(stream.next().await.is_none());
    assert_eq!(stream.last_event_id(), Some(5));
    let seen = fake.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].body, json!({ "provider": "openai", "user": "u1", "prompt": "hi" }));
}

#[tokio::test]
async fn a_broken_stream_is_resumed_without_loss_or_repetition() {
    let cuts = [Cut::Torn(2), Cut::Ended(2), Cut::Torn(3)].into();
    let fake = Fake::start(Script { events: answer(), cuts, ..Script::default() });
    let mut stream = client(&fake).execute_stream(&request()).await.unwrap();
    assert_eq!(collect(&mut stream).await.unwrap(), (vec![1, 2, 3, 4, 5], "grüß dich, 世界".into()));
    let resumed: Vec<_> =
        fake.seen().into_iter().skip(1).map(|seen| (seen.what, seen.last_event_id.unwrap())).collect();
    let at = |last: &str| ("GET /v1/executions/e-1/events".to_owned(), last.to_owned());
    assert_eq!(resumed, [at("2"), at("2"), at("3")]);
}

#[tokio::test]
async fn without_a_location_the_started_event_names_the_execution() {
    let cuts = [Cut::Torn(1)].into();
    let fake = Fake::start(Script { events: answer(), cuts, no_location: true, ..Script::default() });
    let mut stream = client(&fake).execute_stream(&request()).await.unwrap();
    assert_eq!(stream.execution(), None);
    assert_eq!(collect(&mut stream).await.unwrap().0, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_stream_that_breaks_before_the_execution_has_a_name_fails() {
    let cuts = [Cut::Torn(0)].into();
    let fake = Fake::start(Script { events: answer(), cuts, no_location: true, ..Script::default() });
    let mut stream = client(&fake).execute_stream(&request()).await.unwrap();
    let error = collect(&mut stream).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken(_)), "{error}");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn resuming_is_bounded() {
    let fake = Fake::start(Script { events: answer(), cuts: [Cut::Ended(1); 9].into(), ..Script::default() });
    let mut stream = client(&fake).with_resume_tries(2).execute_stream(&request()).await.unwrap();
    let error = collect(&mut stream).await.unwrap_err().to_string();
    assert!(error.contains("gave up after 2 tries to resume execution e-1"), "{error}");
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn events_are_read_from_a_sequence_number_on() {
    let fake = Fake::start(Script { events: answer(), ..Script::default() });
    let mut stream = client(&fake).events("e-1", Some(3)).await.unwrap();
    assert_eq!(collect(&mut stream).await.unwrap(), (vec![4, 5], "世界".into()));
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_an_error_and_not_skipped() {
    let events = vec![started(), ("exit", exit(json!({ "reason": "sunspots" })))];
    let fake = Fake::start(Script { events, ..Script::default() });
    let mut stream = client(&fake).execute_stream(&request()).await.unwrap();
    let error = collect(&mut stream).await.unwrap_err();
    assert!(matches!(&error, ClientError::Protocol(text) if text.contains("exit")), "{error}");
}

#[tokio::test]
async fn a_problem_carries_its_code() {
    let refuse = Some((503, problem(503, "container_limit", "all containers are in use", true)));
    let fake = Fake::start(Script { refuse, ..Script::default() });
    for error in [
        client(&fake).execute_stream(&request()).await.unwrap_err(),
        client(&fake).create(&request()).await.unwrap_err(),
    ] {
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), "all containers are in use (container_limit); try again later");
        let ClientError::Problem(problem) = error else { panic!("{error}") };
        assert_eq!((problem.status, problem.code.as_str()), (503, "container_limit"));
    }
}

#[tokio::test]
async fn every_resource_is_read() {
    let fake = Fake::start(Script::default());
    let client = client(&fake);
    assert_eq!(client.create(&request()).await.unwrap().id, "e-1");
    assert_eq!(client.executions().await.unwrap().len(), 2);
    assert_eq!(client.execution("e-1").await.unwrap().user, "u1");
    client.cancel("e-1").await.unwrap();
    assert_eq!(client.pools().await.unwrap()[0].hits, 5);
    assert_eq!(client.containers().await.unwrap()[1].id, "c-2");
    assert_eq!(client.providers().await.unwrap()[0].default_model, "gpt-5-codex");
    assert_eq!(client.images().await.unwrap()[0].compressed_bytes, 1_048_576);
    assert_eq!(client.metrics().await.unwrap(), "thawd_up 1\n");
    client.healthz().await.unwrap();
    assert!(matches!(client.readyz().await.unwrap_err(), ClientError::Protocol(text) if text.contains("503")));
    assert!(
        matches!(client.execution("e-9").await.unwrap_err(), ClientError::Problem(problem) if problem.status == 404)
    );
}

#[tokio::test]
async fn a_bad_id_never_becomes_a_request() {
    let fake = Fake::start(Script::default());
    assert!(matches!(client(&fake).cancel("../pools").await.unwrap_err(), ClientError::BadId(_)));
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn a_missing_or_deserted_socket_asks_for_the_daemon() {
    let missing = Client::new(Path::new("/nonexistent/thawd.sock")).unwrap().healthz().await.unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/thawd.sock: No such file"), "{missing}");
    assert!(missing.to_string().contains("is thawd running?"), "{missing}");

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let deserted = Client::new(&socket).unwrap().healthz().await.unwrap_err();
    assert!(deserted.to_string().contains("nothing listens there any more"), "{deserted}");
}
