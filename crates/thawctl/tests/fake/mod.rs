//! A small server on a Unix socket that speaks the API for canned cases, to test its clients.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

/// Id of the one execution.
pub const ID: &str = "e-1";

/// How a connection that streams events ends before the `exit` event.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// In the middle of the event after this many.
    Torn(usize),
    /// Cleanly, after this many.
    Ended(usize),
}

/// What the server does.
#[derive(Debug, Default)]
pub struct Script {
    /// Events of the execution: name and payload; the first has sequence number 1.
    pub events: Vec<(&'static str, Value)>,
    /// How the first connections end; later ones go on to the end.
    pub cuts: VecDeque<Cut>,
    /// Holds back the last event until the execution is cancelled.
    pub wait_for_cancel: bool,
    /// Never sends the last event.
    pub never_ends: bool,
    /// Refuses to create executions, with this status and problem.
    pub refuse: Option<(u16, Value)>,
    /// Sends no `Location` with a stream.
    pub no_location: bool,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub what: String,
    pub last_event_id: Option<String>,
    pub body: Value,
}

#[derive(Debug)]
struct Inner {
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    cancelled: Semaphore,
}

/// The running server; its socket is gone when it is dropped.
#[derive(Debug)]
pub struct Fake {
    pub socket: PathBuf,
    dir: tempfile::TempDir,
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    pub fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("thawd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (script, seen, cancelled) = (Mutex::new(script), Mutex::default(), Semaphore::new(0));
        let inner = Arc::new(Inner { script, seen, cancelled });
        let router = Router::new()
            .route("/v1/executions", post(create).get(|| async { items(&[execution("running"), ended()]) }))
            .route("/v1/executions/{id}", get(one).delete(remove))
            .route("/v1/executions/{id}/events", get(events))
            .route("/v1/executions/{id}/cancel", post(cancel))
            .route("/v1/pools", get(|| async { items(&[pool()]) }))
            .route("/v1/containers", get(|| async { items(&[container("c-1", "claimed"), container("c-2", "warm")]) }))
            .route("/v1/providers", get(|| async { items(&[provider()]) }))
            .route("/v1/images", get(|| async { items(&[image()]) }))
            .route("/healthz", get(|| async { "ok" }))
            .route("/readyz", get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "starting") }))
            .route("/metrics", get(|| async { "thawd_up 1\n" }))
            .with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { socket, dir, inner, task }
    }

    /// The requests that came, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// Waits until a request of that method and path has come.
    pub async fn wait_for(&self, what: &str) {
        for _ in 0..1000 {
            if self.seen().iter().any(|seen| seen.what == what) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} never came: {:?}", self.seen());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    async fn note(&self, request: Request) -> Seen {
        let last_event_id = request.headers().get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
        let what = format!("{} {}", request.method(), request.uri().path());
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let seen = Seen { what, last_event_id, body: serde_json::from_slice(&body).unwrap_or_default() };
        self.seen.lock().unwrap().push(seen.clone());
        seen
    }
}

async fn create(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let streams = request.headers().get("accept").is_some_and(|accept| accept == "text/event-stream");
    inner.note(request).await;
    let (refuse, no_location) = {
        let script = inner.script.lock().unwrap();
        (script.refuse.clone(), script.no_location)
    };
    if let Some((status, problem)) = refuse {
        return problem_of(status, &problem);
    }
    let location = ("location", format!("/v1/executions/{ID}"));
    if !streams {
        return (StatusCode::CREATED, [location], Json(execution("pending"))).into_response();
    }
    let stream = stream(inner, 0);
    if no_location { stream } else { ([location], stream).into_response() }
}

async fn events(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let seen = inner.note(request).await;
    let after = seen.last_event_id.map_or(0, |id| id.parse().unwrap());
    stream(inner, after)
}

async fn cancel(State(inner): State<Arc<Inner>>, Path(id): Path<String>, request: Request) -> Response {
    inner.note(request).await;
    if id != ID {
        return not_found(&id);
    }
    inner.cancelled.add_permits(1);
    (StatusCode::ACCEPTED, Json(execution("running"))).into_response()
}

async fn one(State(inner): State<Arc<Inner>>, Path(id): Path<String>, request: Request) -> Response {
    let waits = request.uri().query().is_some_and(|query| query.starts_with("wait="));
    let end = inner.script.lock().unwrap().events.last().map(|(_, payload)| payload.clone()).unwrap_or_default();
    match id.as_str() {
        ID if waits => {
            let mut ended = execution("exited");
            ended["exit"] = end;
            Json(ended).into_response()
        }
        ID => Json(execution("running")).into_response(),
        "e-0" => Json(ended()).into_response(),
        _ => not_found(&id),
    }
}

async fn remove(State(inner): State<Arc<Inner>>, Path(id): Path<String>, request: Request) -> Response {
    inner.note(request).await;
    if id == "e-0" { StatusCode::NO_CONTENT.into_response() } else { not_found(&id) }
}

fn not_found(id: &str) -> Response {
    problem_of(404, &problem(404, "execution_not_found", &format!("no execution {id}"), false))
}

/// A problem document.
pub fn problem(status: u16, code: &str, detail: &str, retryable: bool) -> Value {
    json!({ "type": "about:blank", "title": "T", "status": status, "detail": detail, "code": code, "retryable": retryable })
}

fn problem_of(status: u16, problem: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, [("content-type", "application/problem+json")], problem.to_string()).into_response()
}

/// Streams the events after sequence number `after`, in odd pieces, with heartbeats and an event of the future.
fn stream(inner: Arc<Inner>, after: usize) -> Response {
    let (send, receive) = mpsc::channel::<io::Result<Bytes>>(1);
    tokio::spawn(async move {
        let (events, cut, hold, never) = {
            let mut script = inner.script.lock().unwrap();
            (script.events.clone(), script.cuts.pop_front(), script.wait_for_cancel, script.never_ends)
        };
        let _ = send.send(Ok(": heartbeat\n\nid: 0\nevent: novelty\ndata: ?\n\n".into())).await;
        for (index, (name, payload)) in events.iter().enumerate().skip(after) {
            let text = format!("id: {}\nevent: {name}\ndata: {payload}\n\n", index + 1);
            match cut {
                Some(Cut::Ended(count)) if index >= count => return,
                Some(Cut::Torn(count)) if index >= count => {
                    let _ = send.send(Ok(text[..text.len() / 2].to_owned().into())).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let _ = send.send(Err(io::Error::other("cut"))).await;
                    return;
                }
                _ => {}
            }
            if index + 1 == events.len() && never {
                send.closed().await;
            }
            if index + 1 == events.len() && hold {
                let _ = inner.cancelled.acquire().await.unwrap();
            }
            // Odd pieces, which also cut characters of several bytes.
            for piece in text.as_bytes().chunks(7.max(text.len() / 50)) {
                if send.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                    return;
                }
            }
        }
    });
    let pieces =
        futures_util::stream::unfold(receive, |mut receive| async { receive.recv().await.map(|p| (p, receive)) });
    ([("content-type", "text/event-stream")], Body::from_stream(pieces.boxed())).into_response()
}

fn items(items: &[Value]) -> Result<Json<Value>, Infallible> {
    Ok(Json(json!({ "items": items, "next_version_field": 1 })))
}

fn execution(state: &str) -> Value {
    json!({ "id": ID, "provider": "openai", "user": "u1", "state": state, "container": "c-1", "path": "warm",
        "created_at_ms": 1, "timeout_ms": 30_000, "command": "sleep 9", "labels": { "name": "mine" }, "new_field": "kept" })
}

fn ended() -> Value {
    let mut execution = execution("exited");
    execution["id"] = "e-0".into();
    execution["created_at_ms"] = 0.into();
    execution["labels"] = json!({});
    execution["exit"] = exit(json!({ "code": 3 }));
    execution
}

/// Payload of `exit`: an unsuccessful end with `changes` on top.
pub fn exit(changes: Value) -> Value {
    let mut exit =
        json!({ "reason": "exited", "success": false, "duration_ms": 12, "cpu_ms": 3, "memory_peak_bytes": 4096 });
    for (key, value) in changes.as_object().unwrap() {
        exit[key] = value.clone();
    }
    exit
}

/// Name and payload of `started`.
pub fn started() -> (&'static str, Value) {
    ("started", json!({ "execution": ID, "container": "c-1", "path": "warm", "claim_us": 540 }))
}

/// Name and payload of an `exit` with code 0 and success.
pub fn success() -> (&'static str, Value) {
    ("exit", exit(json!({ "code": 0, "success": true })))
}

fn pool() -> Value {
    json!({ "provider": "openai", "target": 2, "warm": 1, "creating": 1, "claimed": 1, "hits": 5, "misses": 0,
        "last_error": "no\nspace" })
}

fn container(id: &str, state: &str) -> Value {
    json!({ "id": id, "provider": "openai", "state": state, "pid": 42, "created_at_ms": 0, "memory_bytes": 1_572_864,
        "cpu_ms": 7, "frozen": state == "warm", "cgroup": format!("thawd/{id}") })
}

fn provider() -> Value {
    json!({ "name": "openai", "image": "openai", "default_model": "gpt-5-codex", "ready": true,
        "credential_files": ["auth.json"], "credential_env": ["OPENAI_API_KEY"], "egress": ["api.openai.com:443"] })
}

fn image() -> Value {
    json!({ "name": "openai", "digest": "sha256:0123456789abcdef0123", "compressed_bytes": 1_048_576,
        "unpacked_bytes": 2_097_152, "unpacked_at_ms": 0 })
}
