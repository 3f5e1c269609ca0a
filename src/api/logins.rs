//! `/v1/logins`: logins of providers' CLIs that the daemon captures. What a user brings back is passed on, and never shown.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::credentials::{asker, vault};
use super::lookup::Id;
use super::{ApiError, PeerCredentials, body, events};
use crate::login::{Handle, Logins, query_of};
use thaw_client::types::{List, Login, LoginAnswer, LoginRequest, LoginState, Problem};

/// Longest body, bytes: an answer is at most 8 KiB, which JSON may write as six times that.
const MAX_BODY: usize = 64 << 10;

/// The logins, if there is a vault to put them into.
fn logins(state: &super::State) -> Result<&Arc<Logins>, ApiError> {
    vault(state)?;
    // There are logins wherever there is a vault.
    state.logins.as_ref().ok_or_else(|| ApiError::not_found("login", ""))
}

fn find(state: &super::State, id: &str) -> Result<Arc<Handle>, ApiError> {
    logins(state)?.get(id).ok_or_else(|| ApiError::not_found("login", id))
}

/// Begins a login of a user: the provider's CLI logs in, in a container of its own, and what it leaves goes into the vault.
///
/// It is answered when the user can act. With `method` `callback`, the user opens `url`, and the provider then sends the browser
/// to `redirect`, a port of the user's own machine: whatever comes there goes, with its query, to
/// `GET /v1/logins/{id}/callback`; or the whole address to `POST /v1/logins/{id}/code`. With `device`, the user opens `url` and
/// enters `code`. One login of a user and provider at a time.
#[utoipa::path(post, path = "/v1/logins", operation_id = "createLogin", tag = "vault", request_body = LoginRequest, responses(
    (status = 201, description = "the user can act", body = Login,
        headers(("Location" = String, description = "path of the login"))),
    (status = 400, description = "the request is wrong, or the provider has no such way to log in (`unknown_login_method`, \
        `no_login`)", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 409, description = "the vault is off (`vault_off`), or the user is logging in already (`login_pending`)",
        body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
    (status = 502, description = "the CLI did not begin to log in (`login_failed`)", body = Problem),
    (status = 503, description = "too many logins (`login_limit`), or no container", body = Problem)))]
pub async fn create(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    body: Body,
) -> Result<Response, ApiError> {
    let request: LoginRequest = body::json(body, MAX_BODY, state.body_timeout).await?;
    let handle = logins(&state)?.begin(request, asker(peer)).await?;
    handle.span().in_scope(|| tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "login begun for a client"));
    let mut response = (StatusCode::CREATED, Json(handle.describe())).into_response();
    // An id is plain.
    let location = HeaderValue::try_from(format!("/v1/logins/{}", handle.id()));
    response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
    Ok(response)
}

/// Lists the logins that the daemon knows, newest first: those that are under way, and the last that have ended.
#[utoipa::path(get, path = "/v1/logins", operation_id = "listLogins", tag = "vault",
    responses((status = 200, body = List<Login>),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem)))]
pub async fn list(State(state): State<Arc<super::State>>) -> Result<Json<List<Login>>, ApiError> {
    Ok(Json(List { items: logins(&state)?.list() }))
}

/// One login.
#[utoipa::path(get, path = "/v1/logins/{id}", operation_id = "getLogin", tag = "vault",
    params(("id" = String, Path, description = "login id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = Login), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem)))]
pub async fn get(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Login>, ApiError> {
    Ok(Json(find(&state, &id)?.describe()))
}

/// Streams how a login goes on, from where it is to its end.
///
/// Each event has the state as its name (`waiting`, `code`, `exchanging`, `done`, `failed`), a `Login` as its data, and a number
/// that grows as its id. What `Last-Event-ID` names is left out.
#[utoipa::path(get, path = "/v1/logins/{id}/events", operation_id = "streamLogin", tag = "vault",
    params(("id" = String, Path, description = "login id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64),
        ("Last-Event-ID" = Option<u64>, Header, nullable = false, description = "id of the last event seen")),
    responses((status = 200, content_type = "text/event-stream", body = String,
            description = "the events; each has a `Login` as its data"),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem)))]
pub async fn stream(
    State(state): State<Arc<super::State>>,
    headers: HeaderMap,
    Id(id): Id,
) -> Result<Response, ApiError> {
    let after = events::last_event_id(&headers)?;
    let handle = find(&state, &id)?;
    let follower = handle.follow();
    let followed =
        futures_util::stream::unfold((handle, follower, after, true), |(handle, mut follower, after, first)| {
            async move {
                let login = next(&mut follower, after).await?;
                let number = number(login.state);
                // Plain data on one line: nothing can break out of the frame.
                let data = serde_json::to_string(&login).unwrap_or_default();
                let event = Event::default().event(name(login.state)).id(number.to_string()).data(data);
                let event = if first { event.retry(events::RETRY) } else { event };
                Some((Ok::<_, Infallible>(event), (handle, follower, number, false)))
            }
        });
    Ok(Sse::new(followed).keep_alive(KeepAlive::new().interval(state.heartbeat).text("heartbeat")).into_response())
}

/// The next state behind the one with this number; `None` when none follows.
async fn next(follower: &mut watch::Receiver<Login>, after: u64) -> Option<Login> {
    if after >= number(LoginState::Done) {
        return None;
    }
    let login = follower.wait_for(|login| number(login.state) > after).await;
    login.ok().map(|login| login.clone())
}

/// States follow in this order; of the last two there is one.
fn number(state: LoginState) -> u64 {
    match state {
        LoginState::Waiting => 1,
        LoginState::Code => 2,
        LoginState::Exchanging => 3,
        LoginState::Done | LoginState::Failed => 4,
    }
}

fn name(state: LoginState) -> &'static str {
    match state {
        LoginState::Waiting => "waiting",
        LoginState::Code => "code",
        LoginState::Exchanging => "exchanging",
        LoginState::Done => "done",
        LoginState::Failed => "failed",
    }
}

/// Takes the callback that the user's browser was sent to: its query as it is. It is passed on once, if its `state` is that of
/// the login; `GET /v1/logins/{id}/events` tells what came of it.
#[utoipa::path(get, path = "/v1/logins/{id}/callback", operation_id = "getLoginCallback", tag = "vault",
    params(("id" = String, Path, description = "login id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64),
        ("state" = String, Query, description = "that of the login; other parameters (`code`, `error` and more) as the provider \
            has them")),
    responses((status = 202, description = "it was passed on", body = Login),
        (status = 400, description = "it is no callback (`invalid_callback`), or that of another login (`login_state`)",
            body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "the login takes none (`login_takes_nothing`), or not now (`login_not_now`)", body = Problem)))]
pub async fn callback(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<(StatusCode, Json<Login>), ApiError> {
    answer(&state, &id, Zeroizing::new(query.unwrap_or_default())).await
}

/// Takes what the user brings back by hand: the address of the page that the browser was sent to, which perhaps could not be
/// loaded, or its query.
#[utoipa::path(post, path = "/v1/logins/{id}/code", operation_id = "putLoginCode", tag = "vault",
    params(("id" = String, Path, description = "login id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    request_body = LoginAnswer,
    responses((status = 202, description = "it was passed on", body = Login),
        (status = 400, description = "it is no callback (`invalid_callback`), or that of another login (`login_state`)",
            body = Problem),
        (status = 404, body = Problem), (status = 408, description = "the body did not arrive in time", body = Problem),
        (status = 409, description = "the login takes none (`login_takes_nothing`), or not now (`login_not_now`)", body = Problem),
        (status = 413, description = "the body is too large", body = Problem)))]
pub async fn code(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    body: Body,
) -> Result<(StatusCode, Json<Login>), ApiError> {
    let given: LoginAnswer = body::json(body, MAX_BODY, state.body_timeout).await?;
    answer(&state, &id, query_of(given.code.expose())).await
}

async fn answer(
    state: &super::State,
    id: &str,
    query: Zeroizing<String>,
) -> Result<(StatusCode, Json<Login>), ApiError> {
    let handle = find(state, id)?;
    handle.answer(query).await?;
    Ok((StatusCode::ACCEPTED, Json(handle.describe())))
}

/// Cancels a login: its container is gone, and nothing is stored. One that has ended is not listed any more.
#[utoipa::path(delete, path = "/v1/logins/{id}", operation_id = "cancelLogin", tag = "vault",
    params(("id" = String, Path, description = "login id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 204, description = "it has ended"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem)))]
pub async fn cancel(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    if !logins(&state)?.cancel(&id).await {
        return Err(ApiError::not_found("login", &id));
    }
    tracing::info!(login = id, peer_uid = peer.uid, peer_pid = peer.pid, "login cancelled for a client");
    Ok(StatusCode::NO_CONTENT)
}
