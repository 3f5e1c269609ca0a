//! `/v1/executions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::idempotency::{REPLAYED, idempotency_key};
use super::lookup::{Id, find};
use super::{ApiError, PeerCredentials, accept, body, events, filter, output, request_id};
use crate::execution::{Asked, Audience, Begun, Cursor, DeleteError, Stream};
use thaw_client::time::Timestamp;
use thaw_client::types::{Execution, ExecutionRequest, ExecutionState, ExecutionStats, Page, Problem};

/// Starts an execution.
///
/// With `Accept: text/event-stream` the answer is the stream of its events, with `Accept: application/octet-stream` its
/// standard output as it is written; otherwise 201 with the execution. `Location` is in each answer. A streamed
/// execution is cancelled when its last reader has been gone for a grace period, unless `background` is set; one that
/// was not streamed from the start always runs in the background.
///
/// When no container can be had, the request waits (`queue_timeout_ms`): each user is served first come, first served,
/// users take turns, and so do providers. One whose events are streamed is told by `queued` events and ends with an
/// `exit` whose reason is `refused` when it waited in vain; another one is answered then, with 503 if it did. A client
/// that goes away before it is answered leaves the queue; one that streams events has the grace period to come back,
/// unless it asked for `background`.
///
/// With `Idempotency-Key`, the same request made again starts nothing: it is answered with the execution that the first
/// one started, from its first event on, and with the header `Idempotency-Replayed: true`. While the first is still on
/// its way, the second waits with it. A key is a user's own, and is kept as long as the execution, also when the daemon
/// restarts. A request that started nothing has not used up its key.
///
/// With `sandbox`, the command runs in that sandbox beside whatever else does, and wakes it. What it leaves running goes on
/// after its end, when nobody reads its output any more. It ends with the sandbox.
#[utoipa::path(post, path = "/v1/executions", operation_id = "createExecution", tag = "executions", params(
    ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable ASCII characters, a UUID for example",
        pattern = "^[ -~]+$", min_length = 1, max_length = 255)),
    request_body = ExecutionRequest, responses(
    (status = 200, description = "the events, or the standard output", content(
        (String = "text/event-stream"), (String = "application/octet-stream")),
        headers(("Location" = String, description = "path of the execution"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` when an earlier request started it"))),
    (status = 201, description = "started", body = Execution,
        headers(("Location" = String, description = "path of the execution"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` when an earlier request started it"))),
    (status = 400, description = "the request is wrong; see `code`", body = Problem),
    (status = 406, description = "`Accept` leaves no form of the answer", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 404, description = "the user has no such sandbox", body = Problem),
    (status = 409, description = "cancelled before it started, or the sandbox is gone (`sandbox_gone`)", body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
    (status = 422, description = "the key stands for another request (`idempotency_key_reused`)", body = Problem),
    (status = 429, description = "the user has too many executions (`user_limit`); try again after `Retry-After`",
        body = Problem),
    (status = 503, description = "no container within the time that it could wait (`queue_timeout`, `queue_full`; \
        `container_limit`, `host_pressure` without waiting), or another reason to try again after `Retry-After`",
        body = Problem)))]
pub async fn create(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: ExecutionRequest = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let forms = [events::MEDIA_TYPE, output::MEDIA_TYPE, "application/json"];
    let wanted = accept::choose(&headers, &forms, "application/json")?;
    let (events, raw) = (wanted == events::MEDIA_TYPE, wanted == output::MEDIA_TYPE);
    let audience = match (events, raw) {
        (true, _) => Audience::Events,
        (false, true) => Audience::Output,
        (false, false) => Audience::None,
    };
    let key = idempotency_key(&headers, &request)?;
    let asked = Asked { audience, request_id: request_id::current(), key };
    let Begun { reader, replayed } = state.executions.start(request, asked).await?;
    let location = format!("/v1/executions/{}", reader.handle().id());
    reader.handle().span().in_scope(|| {
        let what = if replayed { "execution asked for again" } else { "execution started" };
        tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "{what}");
    });
    let mut response = if events {
        events::stream(reader, 0, state.heartbeat).into_response()
    } else if raw {
        output::body(reader, Cursor::new(Stream::Stdout, 0))?
    } else {
        (StatusCode::CREATED, Json(reader.handle().describe())).into_response()
    };
    let headers = response.headers_mut();
    // An id is plain.
    headers.extend(HeaderValue::try_from(location).map(|location| (header::LOCATION, location)));
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Lists the executions that the daemon knows, newest first: those that wait or run, and ended ones for a while.
///
/// Those are listed that fit everything that is asked for. With `limit`, `next_cursor` in the answer is what to give as
/// `cursor` for the next page; executions that start meanwhile do not shift it.
#[utoipa::path(get, path = "/v1/executions", operation_id = "listExecutions", tag = "executions", params(filter::Parameters),
    responses((status = 200, body = Page<Execution>), (status = 400, body = Problem)))]
pub async fn list(
    State(state): State<Arc<super::State>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Execution>>, ApiError> {
    let filter = filter::parse(&query.unwrap_or_default())?;
    Ok(Json(state.executions.list(&filter)))
}

/// One execution.
///
/// With `wait` the answer comes when it has ended, or when that time is over; `state` tells which. Who waits is no
/// reader: an execution that ends without readers does so all the same.
#[utoipa::path(get, path = "/v1/executions/{id}", operation_id = "getExecution", tag = "executions",
    params(("id" = String, Path, description = "execution id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64),
    ("wait" = Option<String>, Query, description = "how long to wait for its end, up to 300 s: `30s`, `500ms`, `2m`",
        pattern = "^[0-9]+(ms|s|m)?$")),
    responses((status = 200, body = Execution), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn get(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<Execution>, ApiError> {
    let wait = filter::wait(&query.unwrap_or_default())?;
    let handle = find(&state, &id)?;
    if let Some(wait) = wait {
        // Over or not, it is described as it is then.
        let _ = tokio::time::timeout(wait, handle.ended()).await;
    }
    Ok(Json(handle.describe()))
}

/// Deletes an execution that has ended, with all that it has written. Nothing of it is left in the daemon, and whoever
/// still reads it gets no more.
#[utoipa::path(delete, path = "/v1/executions/{id}", operation_id = "deleteExecution", tag = "executions",
    params(("id" = String, Path, description = "execution id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 204, description = "it is gone"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "it has not ended: cancel it first (`still_running`)", body = Problem)))]
pub async fn delete(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    state.executions.delete(&id).await.map_err(|error| match error {
        DeleteError::Unknown => ApiError::not_found("execution", &id),
        DeleteError::Running => ApiError::new(StatusCode::CONFLICT, "still_running", error.to_string()),
    })?;
    tracing::info!(execution = id, peer_uid = peer.uid, peer_pid = peer.pid, "deleted for a client");
    Ok(StatusCode::NO_CONTENT)
}

/// What an execution uses now, or has used.
#[utoipa::path(get, path = "/v1/executions/{id}/stats", operation_id = "getExecutionStats", tag = "executions",
    params(("id" = String, Path, description = "execution id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = ExecutionStats), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 500, body = Problem)))]
pub async fn stats(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<ExecutionStats>, ApiError> {
    let handle = find(&state, &id)?;
    let execution = handle.describe();
    let usage = {
        let (containers, id) = (Arc::clone(&state.containers), id.clone());
        // What is used in a sandbox is used by all of it.
        let shared = execution.sandbox.as_ref().and_then(|_| execution.container.clone());
        let read = tokio::task::spawn_blocking(move || match shared {
            Some(container) => containers.usage_in(&container),
            None => containers.usage_of(&id),
        })
        .await;
        read.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "containers", error.to_string()))?
    };
    let usage = usage.filter(|_| execution.state != ExecutionState::Exited);
    let exit = execution.exit.as_ref();
    Ok(Json(ExecutionStats {
        run_ms: exit.map_or_else(|| handle.run_ms(), |exit| exit.duration_ms),
        cpu_ms: exit.map_or_else(|| usage.map_or(0, |usage| usage.cpu_us / 1000), |exit| exit.cpu_ms),
        memory_peak_bytes: exit
            .map_or_else(|| usage.map_or(0, |usage| usage.memory_peak_bytes), |exit| exit.memory_peak_bytes),
        execution: execution.id,
        state: execution.state,
        at: Timestamp::now(),
        container: execution.container,
        usage,
    }))
}

/// Streams the events of an execution from the beginning, or from behind `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/executions/{id}/events", operation_id = "streamExecutionEvents", tag = "executions", params(
    ("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64),
    ("Last-Event-ID" = Option<u64>, Header, nullable = false, description = "id of the last event seen")),
    responses((status = 200, content_type = "text/event-stream", body = String, description = "the events"),
        (status = 204, description = "the execution has ended, and all its events have been seen"),
        (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn events(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let handle = find(&state, &id)?;
    let after = events::last_event_id(&headers)?;
    let reader = handle.read();
    if reader.is_over(after) {
        // What makes a browser's EventSource stop: it comes back after whatever else ends.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(events::stream(reader, after, state.heartbeat).into_response())
}

/// Asks for an execution to end: SIGTERM, then SIGKILL after a grace period. Its `exit` event says when it has.
#[utoipa::path(post, path = "/v1/executions/{id}/cancel", operation_id = "cancelExecution", tag = "executions",
    params(("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 202, body = Execution), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn cancel(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
) -> Result<(StatusCode, Json<Execution>), ApiError> {
    let handle = find(&state, &id)?;
    handle.cancel();
    Ok((StatusCode::ACCEPTED, Json(handle.describe())))
}
