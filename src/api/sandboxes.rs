//! `/v1/sandboxes` and `/v1/users/{user}/sandboxes`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::idempotency::{REPLAYED, idempotency_key};
use super::lookup::Id;
use super::{ApiError, PeerCredentials, body, filter};
use crate::sandbox::{Created, Handle, is_name};
use thaw_client::types::{
    NamedSandboxRequest, Page, Problem, Sandbox, SandboxChange, SandboxRequest, USER_RULE, is_user,
};

/// Which sandbox: user and name in the path, checked.
#[derive(Debug)]
pub struct Named(String, String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (user, name) = path.map(|Path(both)| both).unwrap_or_default();
        let invalid = |detail: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_id", detail);
        if !is_user(&user) {
            return Err(invalid(format!("the user in the path {USER_RULE}")));
        }
        if !is_name(&name) {
            let rule = "1 to 63 characters of a-z, 0-9 and -, beginning with a letter or a digit";
            return Err(invalid(format!("names of sandboxes in a path are {rule}")));
        }
        Ok(Self(user, name))
    }
}

fn find(state: &super::State, id: &str) -> Result<Arc<Handle>, ApiError> {
    state.sandboxes.get(id).ok_or_else(|| ApiError::not_found("sandbox", id))
}

fn created(status: StatusCode, sandbox: &Handle) -> Response {
    let mut response = (status, Json(sandbox.describe())).into_response();
    // An id is plain.
    let location = HeaderValue::try_from(format!("/v1/sandboxes/{}", sandbox.id()));
    response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
    response
}

/// Creates a sandbox: a container of a user that lives on between commands.
///
/// It is one of the provider's warm containers, if there is one, and answered once it is active. Commands run in it with
/// `POST /v1/executions` and `sandbox`. With `Idempotency-Key`, the same request made again creates nothing: it is answered
/// with the sandbox of the first one, and with the header `Idempotency-Replayed: true`. A key is a user's own, and is kept
/// as long as the sandbox is known, but for one that was gone when the daemon restarted.
#[utoipa::path(post, path = "/v1/sandboxes", operation_id = "createSandbox", tag = "sandboxes", params(
    ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable ASCII characters, a UUID for example",
        pattern = "^[ -~]+$", min_length = 1, max_length = 255)),
    request_body = SandboxRequest, responses(
    (status = 201, description = "created", body = Sandbox,
        headers(("Location" = String, description = "path of the sandbox"),
            ("Idempotency-Replayed" = Option<String>, description = "`true` when an earlier request created it"))),
    (status = 400, description = "the request is wrong; see `code`", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 409, description = "the user has one of this name (`name_taken`)", body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
    (status = 422, description = "the key stands for another request (`idempotency_key_reused`)", body = Problem),
    (status = 429, description = "the user has too many sandboxes (`sandbox_user_limit`)", body = Problem),
    (status = 503, description = "there are too many sandboxes (`sandbox_limit`), no container within the time that a \
        request waits, or another reason to try again after `Retry-After`", body = Problem),
    (status = 507, description = "there is no space for its `storage` (`storage_full`)", body = Problem)))]
pub async fn create(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let request: SandboxRequest = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let key = idempotency_key(&headers, &request)?;
    let Created { sandbox, existed } = state.sandboxes.create(request, key).await?;
    let what = if existed { "sandbox asked for again" } else { "sandbox created for a client" };
    sandbox.span().in_scope(|| tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "{what}"));
    let mut response = created(StatusCode::CREATED, &sandbox);
    if existed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Gets the user's sandbox of this name, and creates it if there is none.
///
/// The same request twice gives the same sandbox, however many come at once. One that exists has to be as the body says:
/// otherwise the answer is 409, with the difference.
#[utoipa::path(put, path = "/v1/users/{user}/sandboxes/{name}", operation_id = "putSandbox", tag = "sandboxes", params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("name" = String, Path, description = "name of the sandbox", pattern = "^[a-z0-9][a-z0-9-]*$", min_length = 1,
        max_length = 63)),
    request_body = NamedSandboxRequest, responses(
    (status = 200, description = "it exists", body = Sandbox,
        headers(("Location" = String, description = "path of the sandbox"))),
    (status = 201, description = "created", body = Sandbox,
        headers(("Location" = String, description = "path of the sandbox"))),
    (status = 400, description = "the request is wrong; see `code`", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 409, description = "it exists and is another one (`sandbox_differs`)", body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
    (status = 429, description = "the user has too many sandboxes (`sandbox_user_limit`)", body = Problem),
    (status = 503, description = "as for `POST /v1/sandboxes`", body = Problem),
    (status = 507, description = "there is no space for its `storage` (`storage_full`)", body = Problem)))]
pub async fn put(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Named(user, name): Named,
    body: Body,
) -> Result<Response, ApiError> {
    let request: NamedSandboxRequest = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let Created { sandbox, existed } = state.sandboxes.ensure(request.of(user, name)).await?;
    if !existed {
        let tell = || tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "sandbox created for a client");
        sandbox.span().in_scope(tell);
    }
    Ok(created(if existed { StatusCode::OK } else { StatusCode::CREATED }, &sandbox))
}

/// The user's sandbox of this name; of several that are gone, the last.
#[utoipa::path(get, path = "/v1/users/{user}/sandboxes/{name}", operation_id = "getNamedSandbox", tag = "sandboxes", params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("name" = String, Path, description = "name of the sandbox", pattern = "^[a-z0-9][a-z0-9-]*$", min_length = 1,
        max_length = 63)),
    responses((status = 200, body = Sandbox), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn named(
    State(state): State<Arc<super::State>>,
    Named(user, name): Named,
) -> Result<Json<Sandbox>, ApiError> {
    let found = state.sandboxes.named(&user, &name).ok_or_else(|| ApiError::not_found("sandbox", &name))?;
    Ok(Json(found.describe()))
}

/// Lists the sandboxes that the daemon knows, newest first: those that live, and for a while those that are gone.
///
/// Those are listed that fit everything that is asked for. With `limit`, `next_cursor` in the answer is what to give as
/// `cursor` for the next page.
#[utoipa::path(get, path = "/v1/sandboxes", operation_id = "listSandboxes", tag = "sandboxes",
    params(filter::SandboxParameters),
    responses((status = 200, body = Page<Sandbox>), (status = 400, body = Problem)))]
pub async fn list(
    State(state): State<Arc<super::State>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<Sandbox>>, ApiError> {
    let filter = filter::parse_sandboxes(&query.unwrap_or_default())?;
    Ok(Json(state.sandboxes.list(&filter)))
}

/// One sandbox.
#[utoipa::path(get, path = "/v1/sandboxes/{id}", operation_id = "getSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = Sandbox), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn get(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(find(&state, &id)?.describe()))
}

/// Changes labels and lifecycle of a sandbox, from now on; gives it the variables again whose values were lost.
#[utoipa::path(patch, path = "/v1/sandboxes/{id}", operation_id = "changeSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    request_body = SandboxChange, responses((status = 200, body = Sandbox), (status = 400, body = Problem),
        (status = 404, body = Problem), (status = 408, description = "the body did not arrive in time", body = Problem),
        (status = 409, description = "it is gone (`sandbox_gone`)", body = Problem),
        (status = 413, description = "the body is too large", body = Problem), (status = 503, body = Problem)))]
pub async fn change(State(state): State<Arc<super::State>>, Id(id): Id, body: Body) -> Result<Json<Sandbox>, ApiError> {
    let change: SandboxChange = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    Ok(Json(state.sandboxes.change(&id, change).await?.describe()))
}

/// Ends a sandbox with everything that runs in it and every file in it. One that is gone already is not listed any more.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}", operation_id = "deleteSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 204, description = "it is gone"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem)))]
pub async fn delete(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.delete(&id).await?;
    tracing::info!(sandbox = id, peer_uid = peer.uid, peer_pid = peer.pid, "deleted for a client");
    Ok(StatusCode::NO_CONTENT)
}

/// Freezes a sandbox now, and commands in the background with it. A command that begins wakes it.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/freeze", operation_id = "freezeSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = Sandbox), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "commands run in it (`sandbox_busy`), it is stopped (`sandbox_not_running`), or it is \
            gone (`sandbox_gone`)", body = Problem),
        (status = 503, body = Problem)))]
pub async fn freeze(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(state.sandboxes.freeze(&id).await?.describe()))
}

/// Ends the processes of a sandbox that has storage, and keeps its files. A command that begins starts it again.
///
/// Its processes get SIGTERM, and after `sandbox.stop_grace_seconds` SIGKILL; commands end with the reason `killed`. When this
/// is answered, nothing has its file system open any more.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/stop", operation_id = "stopSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = Sandbox), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "it has no storage (`sandbox_without_storage`), or it is gone (`sandbox_gone`)",
            body = Problem),
        (status = 503, body = Problem)))]
pub async fn stop(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(state.sandboxes.stop(&id).await?.describe()))
}

/// Wakes a sandbox, if it is frozen, stopped or broken. It is idle from now on.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/wake", operation_id = "wakeSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, body = Sandbox), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "its storage cannot be used (`sandbox_broken`), the values of its variables were lost \
            (`sandbox_env_lost`), or it is gone (`sandbox_gone`)", body = Problem), (status = 503, body = Problem)))]
pub async fn wake(State(state): State<Arc<super::State>>, Id(id): Id) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(state.sandboxes.wake(&id).await?.describe()))
}
