//! Routing: decodes a request, records it, and hands it to the provider that its path belongs to.

use std::{
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract,
    http::{HeaderMap, Request, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
    routing,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    accounts,
    answer::{answer, tokens},
    anthropic,
    call::Call,
    google,
    images::images,
    misbehave::{Api, Misbehaviour, error},
    openai,
    record::{Arrival, Recorded, Recorder, credential, kept_prompt, sha256},
    script::{self, Reply},
    stream,
};

/// Largest request body, as sent and after decompression, bytes. A CLI's first request is 2 to 90 kB.
const BODY_LIMIT: usize = 32 * 1024 * 1024;

/// Everything that outlives a request.
#[derive(Debug)]
pub struct State {
    recorder: Recorder,
    settings: Mutex<Settings>,
}

#[derive(Debug, Clone)]
struct Settings {
    token_delay: Duration,
    misbehaviour: Option<Misbehaviour>,
    only: Option<Api>,
    /// How many more requests misbehave; `None` means all.
    remaining: Option<u32>,
    /// Behave again once a login was renewed.
    until_renewed: bool,
}

impl State {
    /// A well-behaved upstream.
    pub fn new(recorder: Recorder, token_delay: Duration) -> Arc<Self> {
        let settings = Settings { token_delay, misbehaviour: None, only: None, remaining: None, until_renewed: false };
        Arc::new(Self { recorder, settings: Mutex::new(settings) })
    }

    fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this request of `api` has to do wrong, as set by `/__control`.
    fn misbehaviour(&self, api: Api) -> Option<Misbehaviour> {
        let mut settings = self.settings();
        if settings.only.is_some_and(|only| only != api) {
            return None;
        }
        let misbehaviour = settings.misbehaviour?;
        match &mut settings.remaining {
            Some(0) => return None,
            Some(remaining) => *remaining -= 1,
            None => {}
        }
        Some(misbehaviour)
    }
}

/// Body of `POST /__control`. Keys that are absent keep their value, except that `misbehave` resets `api` and `times`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    /// `401`, `429`, `500`, `stall`, `cut`, or `none`.
    misbehave: Option<String>,
    /// Misbehave only for this provider's API.
    api: Option<Api>,
    /// Misbehave this many times, then behave.
    times: Option<u32>,
    /// Behave again once somebody has renewed a login here.
    #[serde(default)]
    until_renewed: bool,
    token_delay_ms: Option<u64>,
}

/// All routes.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/__control", routing::post(control))
        .route("/__credentials", routing::get(async || Json(accounts::credentials())))
        .route("/__requests", routing::get(requests).delete(forget))
        .fallback(provider)
        .with_state(state)
}

async fn requests(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    Json(json!({"items": state.recorder.all()}))
}

async fn forget(extract::State(state): extract::State<Arc<State>>) -> StatusCode {
    state.recorder.clear();
    StatusCode::NO_CONTENT
}

async fn control(extract::State(state): extract::State<Arc<State>>, Json(control): Json<Control>) -> Response {
    let misbehaviour = match control.misbehave.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(word) => match serde_json::from_value(Value::String(word.to_owned())) {
            Ok(known) => Some(Some(known)),
            Err(error) => return (StatusCode::BAD_REQUEST, format!("misbehave: {error}\n")).into_response(),
        },
    };
    let mut settings = state.settings();
    if let Some(misbehaviour) = misbehaviour {
        settings.misbehaviour = misbehaviour;
        settings.only = control.api;
        settings.remaining = control.times;
        settings.until_renewed = control.until_renewed;
    }
    if let Some(delay) = control.token_delay_ms {
        settings.token_delay = Duration::from_millis(delay);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn provider(extract::State(state): extract::State<Arc<State>>, request: Request<Body>) -> Response {
    let arrival = Arrival::now();
    let (head, body) = request.into_parts();
    let Ok(raw) = axum::body::to_bytes(body, BODY_LIMIT).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 32 MiB, or broke off\n").into_response();
    };
    let body = decode(&head.headers, &raw);
    let path = head.uri.path();
    let call = Call::of(&head.method, path);
    let prompt = call.prompt(&body);
    let model = call.model(path, &body);
    let (turn, results) = call.results(&body);
    let tools = call.tools(&body);
    let last_result = results.last().map(|result| result.text.clone());
    state.recorder.add(Recorded {
        tools: tools.clone(),
        tool_results: results,
        images: images(&body),
        ..record(arrival, &head, raw.len(), model.clone(), prompt.as_deref())
    });

    let Some(api) = call.api() else {
        if path.ends_with("/oauth/token") {
            if accounts::has_nothing_to_renew_with(&body) {
                return error(Api::Openai, StatusCode::UNAUTHORIZED);
            }
            let mut settings = state.settings();
            if std::mem::take(&mut settings.until_renewed) {
                settings.misbehaviour = None;
            }
        }
        return match accounts::answer(host(&head), path, &body) {
            Some(answer) => Json(answer).into_response(),
            None => error(Api::Openai, StatusCode::NOT_FOUND),
        };
    };
    if credential(&head.headers).is_none() {
        return error(api, StatusCode::UNAUTHORIZED);
    }
    let prompt = prompt.unwrap_or_default();
    let misbehaviour = Misbehaviour::in_prompt(&prompt).or_else(|| state.misbehaviour(api));
    if let Some(misbehaviour) = misbehaviour
        && let Some(response) = misbehaviour.instead_of_answer(api).await
    {
        return response;
    }
    let cut = misbehaviour == Some(Misbehaviour::Cut);
    let delay = state.settings().token_delay;
    let model = model.as_deref().unwrap_or("offline");
    let reply = reply(call, &prompt, turn, &tools, last_result);
    match call {
        Call::Responses => stream::respond(openai::frames(model, &reply), delay, cut),
        Call::Messages if body["stream"] == json!(true) => {
            stream::respond(anthropic::frames(model, &reply), delay, cut)
        }
        Call::Messages => Json(anthropic::message(model, &reply)).into_response(),
        Call::CountTokens => Json(json!({"input_tokens": 11})).into_response(),
        Call::Generate { stream: true, wrapped } => stream::respond(google::frames(model, &reply, wrapped), delay, cut),
        Call::Generate { stream: false, wrapped } => Json(google::answer(model, &reply, wrapped)).into_response(),
        Call::CodeAssist(method) => Json(google::code_assist(method)).into_response(),
        // Answered above, since it belongs to no API.
        Call::Side => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What is said to a prompt: the next turn of its script, or the answer. A side request of a CLI, which offers no tools,
/// gets an answer only.
fn reply(call: Call<'_>, prompt: &str, turn: usize, tools: &[String], last_result: Option<String>) -> Reply {
    let (question, script) = script::split(prompt);
    let next = match script.filter(|_| !tools.is_empty()) {
        None => None,
        Some(Err(error)) => Some(Err(error)),
        Some(Ok(turns)) => turns.get(turn).map(|steps| script::reply(turn, steps, |step| call.step(step, tools))),
    };
    let text = match next {
        Some(Ok(reply)) => return reply,
        Some(Err(error)) => format!("The script cannot be followed: {error}"),
        // Nothing is asked besides: the last thing that a tool gave is the answer.
        None => match last_result {
            Some(result) if question.is_empty() => result,
            _ => answer(question),
        },
    };
    Reply { tokens: tokens(&text), ..Reply::default() }
}

/// The body as JSON, or as a string when it is something else; zstd is undone (codex compresses with ChatGPT tokens).
fn decode(headers: &HeaderMap, raw: &Bytes) -> Value {
    let compressed = headers.get(header::CONTENT_ENCODING).is_some_and(|value| value == "zstd");
    let mut plain = Vec::new();
    let bytes = if compressed {
        let decoder = zstd::Decoder::new(raw.as_ref());
        match decoder.and_then(|decoder| decoder.take(BODY_LIMIT as u64).read_to_end(&mut plain)) {
            Ok(_) => plain.as_slice(),
            Err(error) => return json!(format!("broken zstd body: {error}")),
        }
    } else {
        raw.as_ref()
    };
    serde_json::from_slice(bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(bytes)))
}

fn host(head: &Parts) -> &str {
    head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| head.uri.host()).unwrap_or_default()
}

fn record(arrival: Arrival, head: &Parts, body_bytes: usize, model: Option<String>, prompt: Option<&str>) -> Recorded {
    let mut headers: Vec<String> = head.headers.keys().map(|name| name.as_str().to_owned()).collect();
    headers.sort_unstable();
    Recorded {
        monotonic_ns: arrival.monotonic_ns,
        unix_ms: arrival.unix_ms,
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        host: host(head).to_owned(),
        headers,
        credential: credential(&head.headers),
        body_bytes,
        model,
        prompt: prompt.map(kept_prompt),
        prompt_bytes: prompt.map(str::len),
        prompt_sha256: prompt.map(sha256),
        tools: Vec::new(),
        tool_results: Vec::new(),
        images: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn upstream() -> Router {
        router(State::new(Recorder::open(None).unwrap(), Duration::ZERO))
    }

    async fn send(router: &Router, request: Request<Body>) -> (StatusCode, String) {
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn post(path: &str, key: Option<&str>, body: impl Into<Body>) -> Request<Body> {
        let mut request =
            Request::post(path).header("host", "upstream.test").header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(body.into()).unwrap()
    }

    const GEMINI: &str = r#"{"contents": [{"role": "user", "parts": [{"text": "3*67"}]}]}"#;
    const CLAUDE: &str = r#"{"model": "m", "messages": [{"role": "user", "content": "3*67"}]}"#;

    #[tokio::test]
    async fn zstd_bodies_are_read_and_recorded() {
        let router = upstream();
        let plain = br#"{"model": "gpt-5-codex", "input": [{"role": "user", "content": "3*67"}]}"#;
        let mut request = post("/v1/responses", Some("abc"), zstd::encode_all(plain.as_slice(), 3).unwrap());
        request.headers_mut().insert("content-encoding", "zstd".parse().unwrap());
        let (status, body) = send(&router, request).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains(r#""delta":"20""#) && body.contains("response.completed"), "{body}");
        let (_, list) = send(&router, Request::get("/__requests").body(Body::empty()).unwrap()).await;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["items"][0]["model"], "gpt-5-codex");
        assert_eq!(list["items"][0]["prompt"], "3*67");
        assert_eq!(list["items"][0]["credential"]["sha256"], "ba7816bf8f01");
        assert!(!list.to_string().contains("Bearer"));
    }

    #[tokio::test]
    async fn a_request_without_a_credential_is_refused() {
        let router = upstream();
        for (path, body) in [("/v1/messages", CLAUDE), ("/v1beta/models/m:generateContent", GEMINI)] {
            assert_eq!(send(&router, post(path, None, body)).await.0, StatusCode::UNAUTHORIZED, "{path}");
            let (status, text) = send(&router, post(path, Some("k"), body)).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert!(text.contains("201"), "{text}");
        }
    }

    #[tokio::test]
    async fn control_reaches_only_the_api_named_and_as_often_as_said() {
        let router = upstream();
        let control = post("/__control", None, r#"{"misbehave": "500", "api": "google", "times": 1}"#);
        assert_eq!(send(&router, control).await.0, StatusCode::NO_CONTENT);
        assert_eq!(send(&router, post("/v1/messages", Some("k"), CLAUDE)).await.0, StatusCode::OK);
        let path = "/v1beta/models/m:streamGenerateContent";
        let (status, body) = send(&router, post(path, Some("k"), GEMINI)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("INTERNAL"), "{body}");
        assert_eq!(send(&router, post(path, Some("k"), GEMINI)).await.0, StatusCode::OK);
        let (status, body) = send(&router, post("/__control", None, r#"{"misbehave": "418"}"#)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    }

    #[tokio::test]
    async fn a_script_goes_on_where_the_conversation_stands() {
        let router = upstream();
        let mut body = json!({"model": "m", "tools": [{"name": "Bash"}],
            "messages": [{"role": "user", "content": "3*67\nsteps: [[{\"run\": \"ls\"}]]"}]});
        let (_, text) = send(&router, post("/v1/messages", Some("k"), body.to_string())).await;
        assert!(text.contains("tool_use") && text.contains("ls"), "{text}");
        let done = [
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "call_0_0", "name": "Bash", "input": {}}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_0_0", "content": "a\nb"}]}),
        ];
        body["messages"].as_array_mut().unwrap().extend(done);
        let (_, text) = send(&router, post("/v1/messages", Some("k"), body.to_string())).await;
        assert!(text.contains("201") && !text.contains("tool_use"), "{text}");
        let (_, list) = send(&router, Request::get("/__requests").body(Body::empty()).unwrap()).await;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["items"][1]["tool_results"], json!([{"text": "a\nb", "error": false}]));
        assert_eq!(list["items"][1]["tools"], json!(["Bash"]));
    }

    #[tokio::test]
    async fn a_stalled_request_is_never_answered() {
        let router = upstream();
        let body = CLAUDE.replace("3*67", "misbehave:stall");
        let answer = send(&router, post("/v1/messages", Some("k"), body));
        assert!(tokio::time::timeout(Duration::from_millis(100), answer).await.is_err());
    }
}
