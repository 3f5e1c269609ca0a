//! The HTTP surface: every mistake has its own answer and starts nothing; what it says about itself is right.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use serde_json::{Value, json};
use support::{Daemon, Outcome, shell};
use thaw_client::types::Problem;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Something that must not come back in an error or a log.
const SECRET: &str = "sk-marker-9b41";

async fn post(daemon: &Daemon, body: &Value) -> support::Answer {
    daemon.http("POST /v1/executions", &[JSON], &serde_json::to_vec(body).unwrap()).await
}

/// A request that would run, with some fields replaced (or, by null, removed).
fn changed(changes: Value) -> Value {
    let mut request = json!({ "provider": "test", "user": "u1", "command": ["true"] });
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            request.as_object_mut().unwrap().remove(key);
        } else {
            request[key] = value.clone();
        }
    }
    request
}

fn assert_problem(problem: &Problem, status: u16, code: &str, about: &str) {
    assert_eq!((problem.status, problem.code.as_str()), (status, code), "{about}: {}", problem.detail);
    assert!(!problem.detail.is_empty() && !problem.title.is_empty(), "{about}");
    assert_eq!(problem.retryable, status == 503, "{about}");
    assert!(!problem.detail.contains(SECRET), "{about}: {}", problem.detail);
}

#[tokio::test]
async fn every_mistake_in_a_request_has_its_code_and_starts_nothing() {
    let prompting = r#"
        name = "prompting"
        image = "test"
        home = "/home/runtime"
        pool_target = 0
        egress = []
        [command]
        argv = ["cat"]
        [models]
        default = "m1"
        allowed = ["m1"]
        [efforts.high]
        [credentials]
        dir = ".test"
        files = ["token"]
        env = ["TEST_TOKEN"]
        tmpfs_mib = 1
        [resources.idle]
        memory_mib = 64
        cpu = 0.1
        [resources.run]
        memory_mib = 64
        cpu = 0.1
    "#;
    let daemon = Daemon::start(|setup| setup.set("log.filter", "thawd=trace,info").add_provider(prompting)).await;
    let before = daemon.settled().await;
    let prompt = |changes: Value| {
        let mut request = changed(json!({ "command": null, "provider": "prompting", "prompt": "3*67" }));
        request.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        request
    };
    let key = json!({ "env": { "TEST_TOKEN": SECRET } });
    let too_many: serde_json::Map<String, Value> = (0..40).map(|i| (format!("l{i}"), json!("x"))).collect();
    let mistakes = [
        (changed(json!({ "promt": SECRET })), "unknown_field"),
        (changed(json!({ "credentials": { "file": { "token": SECRET } } })), "unknown_field"),
        (changed(json!({ "provider": null })), "provider_or_image"),
        (changed(json!({ "user": null })), "missing_field"),
        (changed(json!({ "command": SECRET })), "invalid_field"),
        (changed(json!({ "command": [1, SECRET] })), "invalid_field"),
        (changed(json!({ "timeout_ms": -1 })), "invalid_field"),
        (changed(json!({ "timeout_ms": 0 })), "invalid_field"),
        (changed(json!({ "timeout_ms": 999_999_999 })), "invalid_field"),
        (changed(json!({ "background": SECRET })), "invalid_field"),
        (changed(json!({ "user": "" })), "invalid_field"),
        (changed(json!({ "user": "a b" })), "invalid_field"),
        (changed(json!({ "user": "a/../b" })), "invalid_field"),
        (changed(json!({ "user": "u".repeat(129) })), "invalid_field"),
        (changed(json!({ "env": { "A=B": SECRET } })), "invalid_field"),
        (changed(json!({ "env": { "": SECRET } })), "invalid_field"),
        (changed(json!({ "env": { "A\u{0}B": SECRET } })), "invalid_field"),
        (changed(json!({ "labels": { "a\nb": "c" } })), "invalid_field"),
        (changed(json!({ "labels": { "a": "\u{1b}[31m" } })), "invalid_field"),
        (changed(json!({ "labels": { "a": "x".repeat(257) } })), "invalid_field"),
        (changed(json!({ "labels": too_many })), "invalid_field"),
        (changed(json!({ "provider": "no-such" })), "unknown_provider"),
        (changed(json!({ "provider": "../test" })), "unknown_provider"),
        (changed(json!({ "command": null })), "prompt_or_command"),
        (changed(json!({ "prompt": "3*67" })), "prompt_or_command"),
        (changed(json!({ "model": "m1" })), "only_with_prompt"),
        (changed(json!({ "effort": "high" })), "only_with_prompt"),
        (changed(json!({ "command": [] })), "invalid_command"),
        (changed(json!({ "command": [""] })), "invalid_command"),
        (changed(json!({ "command": ["echo", "a\u{0}b"] })), "invalid_command"),
        (changed(json!({ "env": { "A": "a\u{0}b" } })), "invalid_field"),
        (changed(json!({ "credentials": { "files": { "other": SECRET } } })), "invalid_credentials"),
        (changed(json!({ "credentials": { "files": { "../token": SECRET } } })), "invalid_credentials"),
        (changed(json!({ "credentials": { "env": { "LD_PRELOAD": SECRET } } })), "invalid_credentials"),
        (
            changed(json!({ "credentials": { "files": { "token": SECRET }, "env": { "TEST_TOKEN": SECRET } } })),
            "invalid_credentials",
        ),
        (prompt(json!({})), "missing_credentials"),
        (prompt(json!({ "provider": "test", "credentials": key })), "invalid_prompt"),
        (prompt(json!({ "prompt": "", "credentials": key })), "invalid_prompt"),
        (prompt(json!({ "model": "m2", "credentials": key })), "unknown_model"),
        (prompt(json!({ "model": "m1; id", "credentials": key })), "unknown_model"),
        (prompt(json!({ "effort": "higher", "credentials": key })), "unknown_effort"),
    ];
    for (request, code) in &mistakes {
        assert_problem(&post(&daemon, request).await.problem(), 400, code, &request.to_string());
    }
    for body in ["", "{", "[]", "nonsense", "{\"provider\":\"test\",}", "{} {}", "\u{feff}{}"] {
        let problem = daemon.http("POST /v1/executions", &[JSON], body.as_bytes()).await.problem();
        assert!(
            ["invalid_json", "invalid_field", "missing_field"].contains(&problem.code.as_str()),
            "{body}: {problem:?}"
        );
        assert_eq!(problem.status, 400);
    }
    let problem = daemon.http("POST /v1/executions", &[JSON], &[b' '; (1 << 20) + 1]).await.problem();
    assert_problem(&problem, 413, "body_too_large", "a large body");
    // Twice the same field: which one counts must not be a guess.
    let twice = r#"{"provider":"test","user":"u1","command":["true"],"command":["false"]}"#;
    assert_eq!(daemon.http("POST /v1/executions", &[JSON], twice.as_bytes()).await.status, 400);

    let after = daemon.settled().await;
    let ids = |list: &[thaw_client::types::Container]| list.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after), "no container was touched");
    assert!(daemon.client.executions().await.unwrap().is_empty(), "and nothing is remembered");
    assert_eq!(daemon.pool().await.hits + daemon.pool().await.misses, 0);
    assert!(!daemon.log().contains(SECRET), "in the log");
    daemon.stop().await;
}

#[tokio::test]
async fn secrets_stay_out_of_the_log_at_its_most_talkative() {
    let daemon = Daemon::start(|setup| setup.set("log.filter", "trace")).await;
    let body = json!({
        "provider": "test", "user": "u1", "command": ["sh", "-c", "cat ~/.test/token; echo $SECRET_ENV"],
        "credentials": { "files": { "token": SECRET } }, "env": { "SECRET_ENV": SECRET },
    });
    let answer = post(&daemon, &body).await;
    assert_eq!(answer.status, 201);
    assert!(!answer.text().contains(SECRET));
    let id = serde_json::from_slice::<Value>(&answer.body).unwrap()["id"].as_str().unwrap().to_owned();
    let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.text().matches(SECRET).count(), 2, "the command itself has both");
    // A file that is larger than its tmpfs is refused without being repeated.
    let large = format!("{SECRET}{}", "x".repeat(1 << 20));
    let body = json!({ "provider": "test", "user": "u1", "command": ["true"], "credentials": { "files": { "token": large } } });
    let body = serde_json::to_vec(&body).unwrap();
    let answer = daemon.http("POST /v1/executions", &[JSON], &body).await;
    assert!((400..500).contains(&answer.status) && !answer.text().contains(SECRET), "{}", answer.text());
    for path in ["/v1/executions", "/v1/containers", "/v1/pools", "/metrics"] {
        assert!(!daemon.http(&format!("GET {path}"), &[], b"").await.text().contains(SECRET), "{path}");
    }
    let log = daemon.log();
    assert!(log.contains("execution started") && log.contains("DEBUG"), "the log is on");
    assert!(!log.contains(SECRET));
    daemon.stop().await;
}

/// Method and path, headers, and the status and code that have to come back.
type Wrong<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);

#[tokio::test]
async fn paths_methods_and_ids_are_checked() {
    let daemon = Daemon::start(|setup| setup).await;
    let id = daemon.sh("true").await.started.execution;
    let (long, own) = ("e".repeat(65), format!("/v1/executions/{id}"));
    let wrong: &[Wrong<'_>] = &[
        ("GET /v1/executions/e-unknown", &[], 404, "not_found"),
        ("GET /v1/executions/e-unknown/events", &[], 404, "not_found"),
        ("POST /v1/executions/e-unknown/cancel", &[], 404, "not_found"),
        ("GET /v1/executions/E-UPPER", &[], 400, "invalid_id"),
        ("GET /v1/executions/..%2f..%2fetc", &[], 400, "invalid_id"),
        ("GET /v1/executions/a%0ab", &[], 400, "invalid_id"),
        ("GET /v1/executions/%ff", &[], 400, "invalid_id"),
        (&format!("GET /v1/executions/{long}"), &[], 400, "invalid_id"),
        (&format!("GET {own}/events"), &[("last-event-id", "x")], 400, "invalid_last_event_id"),
        (&format!("GET {own}/events"), &[("last-event-id", "-1")], 400, "invalid_last_event_id"),
        (&format!("GET {own}/events"), &[("last-event-id", "99999999999999999999")], 400, "invalid_last_event_id"),
        ("GET /", &[], 404, "no_such_path"),
        ("GET /v1", &[], 404, "no_such_path"),
        ("GET /v1/executions/", &[], 404, "no_such_path"),
        ("GET /v1/executions/a/b/c", &[], 404, "no_such_path"),
        ("DELETE /v1/executions", &[], 405, "method_not_allowed"),
        ("POST /v1/pools", &[], 405, "method_not_allowed"),
        (&format!("GET {own}/cancel"), &[], 405, "method_not_allowed"),
    ];
    for (request, headers, status, code) in wrong {
        assert_problem(&daemon.http(request, headers, b"").await.problem(), *status, code, request);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_lists_say_what_there_is() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    daemon.settled().await;
    let providers = daemon.client.providers().await.unwrap();
    let [test] = &providers[..] else { panic!("{providers:?}") };
    assert_eq!((test.name.as_str(), test.image.as_str(), test.ready), ("test", "test", true));
    assert_eq!(
        (&test.credential_files[..], &test.credential_env[..]),
        (&["token".to_owned()][..], &["TEST_TOKEN".to_owned()][..])
    );
    let images = daemon.client.images().await.unwrap();
    let [image] = &images[..] else { panic!("{images:?}") };
    assert_eq!(image.name, "test");
    assert!(image.digest.starts_with("sha256:") && image.digest.len() == 71);
    assert!(image.compressed_bytes > 0 && image.unpacked_bytes > image.compressed_bytes);
    for path in ["/v1/executions", "/v1/pools", "/v1/containers", "/v1/providers", "/v1/images"] {
        let answer = daemon.http(&format!("GET {path}"), &[], b"").await;
        assert_eq!(
            (answer.status, answer.header("content-type").as_deref()),
            (200, Some("application/json")),
            "{path}"
        );
        let list: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(list["items"].is_array(), "{path}");
    }
    daemon.client.healthz().await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn the_description_is_the_committed_one() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let served = daemon.http("GET /openapi.json", &[], b"").await;
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    assert_eq!(served.header("content-type").as_deref(), Some("application/json"));
    assert!(served.text() == committed, "run: THAWD_UPDATE_GOLDEN=1 cargo test --lib openapi");
    daemon.stop().await;
}

#[tokio::test]
async fn the_socket_is_for_root_alone_without_a_group() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let socket = std::fs::metadata(daemon.socket()).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let state = std::fs::metadata(daemon.path("state")).unwrap();
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    daemon.stop().await;
}

/// Value of one series of the metrics.
fn series(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn the_metrics_count_what_happened() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.max", 2).set("queue.timeout_ms", 0)).await;
    daemon.settled().await;
    daemon.sh("true").await.exited(0);
    daemon.settled().await;
    daemon.sh("exit 3").await.exited(3);
    daemon.settled().await;
    let mut timeout = shell("sleep 1000");
    timeout.timeout_ms = Some(50);
    daemon.run(&timeout).await;
    daemon.settled().await;
    // Two places: with both taken, the next one is refused.
    let running = shell("sleep 1000");
    for _ in 0..2 {
        daemon.client.create(&running).await.unwrap();
    }
    daemon.client.create(&running).await.unwrap_err();
    let answer = daemon.http("GET /metrics", &[], b"").await;
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let metrics = answer.text();
    for (name, value) in [
        (r#"thawd_executions_total{provider="test",reason="success"}"#, 1.0),
        (r#"thawd_executions_total{provider="test",reason="failure"}"#, 1.0),
        (r#"thawd_executions_total{provider="test",reason="timeout"}"#, 1.0),
        (r#"thawd_refused_total{provider="test",reason="limit"}"#, 1.0),
        (r#"thawd_containers{provider="test",stage="created",state="warm"}"#, 0.0),
        (r#"thawd_containers{provider="test",stage="created",state="claimed"}"#, 2.0),
        (r#"thawd_pool_target{provider="test",stage="created"}"#, 1.0),
        ("thawd_egress_connections_open", 0.0),
    ] {
        assert_eq!(series(&metrics, name), Some(value), "{name} in\n{metrics}");
    }
    let claims = |path| series(&metrics, &format!("thawd_claim_seconds_count{{provider=\"test\",path=\"{path}\"}}"));
    assert_eq!(claims("warm").unwrap() + claims("cold").unwrap_or(0.0), 5.0);
    assert!(series(&metrics, "thawd_containers_memory_bytes").unwrap() > 0.0);
    // Each line is a comment or `name{labels} number`, and each family is described.
    assert!(metrics.ends_with("# EOF\n"));
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("thawd_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for family in ["thawd_claim_seconds", "thawd_executions", "thawd_refused", "thawd_containers", "thawd_pool_target"]
    {
        assert!(
            metrics.contains(&format!("# HELP {family} ")) && metrics.contains(&format!("# TYPE {family} ")),
            "{family}"
        );
    }
    daemon.stop().await;
}
