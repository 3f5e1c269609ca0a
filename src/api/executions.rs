//! `/v1/executions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::lookup::{Id, find};
use super::{ApiError, PeerCredentials, accept, body, events, output, request_id};
use crate::execution::{Audience, Cursor, Stream};
use thaw_client::types::{Execution, ExecutionRequest, List, Problem};

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
#[utoipa::path(post, path = "/v1/executions", request_body = ExecutionRequest, responses(
    (status = 200, description = "the events, or the standard output", content(
        (String = "text/event-stream"), (String = "application/octet-stream"))),
    (status = 201, description = "started", body = Execution),
    (status = 400, description = "the request is wrong; see `code`", body = Problem),
    (status = 406, description = "`Accept` leaves no form of the answer", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 409, description = "cancelled before it started", body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
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
    let reader = state.executions.start(request, audience, request_id::current()).await?;
    let id = reader.handle().id();
    reader.handle().span().in_scope(|| {
        tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "execution started");
    });
    let location = format!("/v1/executions/{id}");
    if events {
        let stream = events::stream(reader, 0, state.heartbeat);
        return Ok(([(header::LOCATION, location)], stream).into_response());
    }
    if raw {
        let stream = output::body(reader, Cursor::new(Stream::Stdout, 0))?;
        return Ok(([(header::LOCATION, location)], stream).into_response());
    }
    let execution = reader.handle().describe();
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(execution)).into_response())
}

/// Lists the executions that the daemon knows: running ones, and ended ones for a while.
#[utoipa::path(get, path = "/v1/executions", responses((status = 200, body = List<Execution>)))]
pub async fn list(State(state): State<Arc<super::State>>) -> Json<List<Execution>> {
    Json(List { items: state.executions.list() })
}

/// One execution.
#[utoipa::path(get, path = "/v1/executions/{id}", params(("id" = String, Path, description = "execution id")),
    responses((status = 200, body = Execution), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn get(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Execution>, ApiError> {
    Ok(Json(find(&state, &id)?.describe()))
}

/// Streams the events of an execution from the beginning, or from behind `Last-Event-ID`.
#[utoipa::path(get, path = "/v1/executions/{id}/events", params(
    ("id" = String, Path, description = "execution id"),
    ("Last-Event-ID" = Option<u64>, Header, description = "id of the last event seen")),
    responses((status = 200, content_type = "text/event-stream", description = "the events"),
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
#[utoipa::path(post, path = "/v1/executions/{id}/cancel",
    params(("id" = String, Path, description = "execution id")),
    responses((status = 202, body = Execution), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn cancel(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
) -> Result<(StatusCode, Json<Execution>), ApiError> {
    let handle = find(&state, &id)?;
    handle.cancel();
    Ok((StatusCode::ACCEPTED, Json(handle.describe())))
}
