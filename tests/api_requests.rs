//! Requests that could be read in two ways, or that ask for what is not there.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Daemon, Outcome, shell};

/// Status and code of the problem that a request is answered with.
async fn problem(daemon: &Daemon, request: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let problem = daemon.http(request, headers, body.as_bytes()).await.problem();
    (problem.status, problem.code, problem.detail)
}

#[tokio::test]
async fn a_body_is_read_in_one_way_or_refused() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let with = |field: &str| format!(r#"{{"provider":"test","user":"u","command":["true"],{field}}}"#);
    let create = "POST /v1/executions";
    for (request, body, code, path) in [
        (create, r#"["test","u",null,null,["true"]]"#.to_owned(), "invalid_field", "`.`"),
        (create, r#"["","atk","a",null,["sh","-c","id"]]"#.to_owned(), "invalid_field", "`.`"),
        (create, "[]".to_owned(), "invalid_field", "`.`"),
        (create, with(r#""user":"v""#), "repeated_field", "`user`"),
        (create, with(r#""command":["false"]"#), "repeated_field", "`command`"),
        (create, with(r#""env":{"A":"1","A":"2"}"#), "repeated_field", "`env.A`"),
        (create, with(r#""env":{"A":"1","\u0041":"1"}"#), "repeated_field", "`env.A`"),
        (create, with(r#""env":[["A","1"]]"#), "invalid_field", "`env`"),
        (create, with(r#""labels":{"a":"1","b":"2","a":"3"}"#), "repeated_field", "`labels.a`"),
        (create, with(r#""credentials":[]"#), "invalid_field", "`credentials`"),
        (create, with(r#""credentials":{"env":{"K":"1","K":"2"}}"#), "repeated_field", "`credentials.env.K`"),
        (create, with(r#""credentials":{"env":{},"env":{}}"#), "repeated_field", "`credentials.env`"),
        ("PUT /v1/pools/test", "[3]".to_owned(), "invalid_field", "`.`"),
        ("PUT /v1/pools/test", r#"{"target":0,"target":3}"#.to_owned(), "repeated_field", "`target`"),
    ] {
        let (status, has, detail) = problem(&daemon, request, &[], &body).await;
        assert_eq!((status, has.as_str()), (400, code), "{body}: {detail}");
        assert!(detail.contains(path), "{body}: {detail}");
    }
    assert!(daemon.client.executions().await.unwrap().is_empty(), "nothing was started");
    daemon.stop().await;
}

#[tokio::test]
async fn an_answer_has_the_form_that_the_client_likes_best_or_nothing_is_started() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let body = serde_json::to_string(&shell("echo hi")).unwrap();
    let mut started = 0;
    for (accept, form) in [
        ("*/*", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0, */*", "application/json"),
        ("application/octet-stream;q=0, application/json", "application/json"),
        ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
        ("application/json, text/event-stream;q=0.1", "application/json"),
    ] {
        daemon.settled().await;
        let answer = daemon.http("POST /v1/executions", &[("accept", accept)], body.as_bytes()).await;
        assert_eq!(answer.header("content-type").as_deref(), Some(form), "{accept}: {}", answer.text());
        started += 1;
    }
    for (accept, expected) in [
        ("text/event-stream;q=0", (406, "not_acceptable")),
        ("text/html", (406, "not_acceptable")),
        ("text/event-stream;q=9", (400, "invalid_accept")),
        ("nonsense", (400, "invalid_accept")),
    ] {
        let (status, code, _) = problem(&daemon, "POST /v1/executions", &[("accept", accept)], &body).await;
        assert_eq!((status, code.as_str()), expected, "{accept}");
    }
    assert_eq!(daemon.client.executions().await.unwrap().len(), started);
    let metrics = daemon.http("GET /metrics", &[("accept", "application/openmetrics-text;q=0, text/plain")], b"").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"), "{:?}", metrics.header("content-type"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_query_parameter_that_a_path_does_not_have_is_refused() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let described: serde_json::Value =
        serde_json::from_slice(&daemon.http("GET /openapi.json", &[], b"").await.body).unwrap();
    let mut asked = 0;
    // A provider sends its user back with whatever it likes: all of that is handed on.
    let handed_on = |path: &&String| *path != "/v1/logins/{id}/callback";
    for (path, item) in described["paths"].as_object().unwrap().iter().filter(|(path, _)| handed_on(path)) {
        for method in item.as_object().unwrap().keys().filter(|name| *name != "parameters") {
            let path = path.replace("{id}", "e-1").replace("{name}", "test").replace("{provider}", "test");
            let request = format!("{} {path}?nonsense=1", method.to_uppercase());
            let (status, code, detail) = problem(&daemon, &request, &[], "").await;
            assert_eq!((status, code.as_str()), (400, "invalid_query"), "{request}: {detail}");
            assert!(detail.contains("`nonsense`"), "{request}: {detail}");
            asked += 1;
        }
    }
    assert!(asked >= 16, "{asked}");
    for (request, expected) in [
        ("GET /v1/pools?", 200),
        ("GET /v1/executions/e-1/stdout?offset=0&offset=1", 400),
        ("GET /v1/executions/e-1/stdout?offset=x", 400),
        ("GET /v1/executions/e-1/stdout?Offset=0", 400),
        ("GET /v1/executions/e-1/stdout?offset=0", 404),
        ("GET /nowhere?nonsense=1", 404),
    ] {
        assert_eq!(daemon.http(request, &[], b"").await.status, expected, "{request}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_that_has_ended_says_so() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let outcome = daemon.sh("printf 12345; printf 123 >&2").await.exited(0);
    let id = outcome.started.execution.clone();
    let last = outcome.events.last().unwrap().0;
    let events = format!("GET /v1/executions/{id}/events");
    for (seen, status) in [(last - 1, 200), (last, 204), (last + 1, 204), (u64::MAX, 204)] {
        let answer = daemon.http(&events, &[("last-event-id", &seen.to_string())], b"").await;
        assert_eq!(answer.status, status, "{seen} of {last}");
        assert_eq!(answer.body.is_empty(), status == 204);
    }
    let answer = daemon.http(&events, &[], b"").await.text();
    assert_eq!(answer.matches("retry: 1000\n").count(), 1, "{answer}");
    for (stream, length) in [("stdout", 5), ("stderr", 3)] {
        for (offset, expected) in [(0, "12345"), (length - 1, "5"), (length, "")] {
            let answer = daemon.http(&format!("GET /v1/executions/{id}/{stream}?offset={offset}"), &[], b"").await;
            let expected =
                if stream == "stderr" { expected.replace("12345", "123").replace('5', "3") } else { expected.into() };
            assert_eq!((answer.status, answer.text()), (200, expected), "{stream} {offset}");
        }
        for offset in [length + 1, i64::MAX] {
            let request = format!("GET /v1/executions/{id}/{stream}?offset={offset}");
            let (status, code, detail) = problem(&daemon, &request, &[], "").await;
            assert_eq!((status, code.as_str()), (416, "offset_beyond_end"));
            assert!(detail.contains(&format!("{length} bytes")), "{detail}");
        }
    }
    // While it runs, bytes that are still to come may be asked for.
    let running = daemon.client.create(&shell("sleep 0.5; printf 12345")).await.unwrap();
    let answer = daemon.http(&format!("GET /v1/executions/{}/stdout?offset=3", running.id), &[], b"").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "45"));
    Outcome::of(daemon.client.events(&running.id, None).await.unwrap()).await.exited(0);
    daemon.stop().await;
}
