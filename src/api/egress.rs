//! `/v1/egress/identities` and `/v1/users/{user}/egress`: the addresses with which users go out.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::credentials::Owner;
use super::lookup::is_id;
use super::{ApiError, body};
use crate::egress::AllocateError;
use crate::identity::IdentityError;
use thaw_client::types::{EgressAllocation, EgressIdentity, EgressRequest, List, Problem};

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        let (status, code) = match &error {
            IdentityError::Allocate(AllocateError::Unknown { .. }) => (StatusCode::BAD_REQUEST, "unknown_identity"),
            IdentityError::Allocate(AllocateError::Full { .. } | AllocateError::NoneFree(_)) => {
                (StatusCode::CONFLICT, "no_identity_free")
            }
            IdentityError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
            IdentityError::ReadOnly => (StatusCode::CONFLICT, "read_only"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// Lists the egress identities, with how they fare and how many users have them.
#[utoipa::path(get, path = "/v1/egress/identities", operation_id = "listEgressIdentities", tag = "egress",
    responses((status = 200, body = List<EgressIdentity>)))]
pub async fn identities(State(state): State<Arc<super::State>>) -> Json<List<EgressIdentity>> {
    Json(List { items: state.identities.list() })
}

/// One egress identity.
#[utoipa::path(get, path = "/v1/egress/identities/{name}", operation_id = "getEgressIdentity", tag = "egress",
    params(("name" = String, Path, description = "name of an identity", pattern = "^[a-z0-9-]+$", min_length = 1,
        max_length = 64)),
    responses((status = 200, body = EgressIdentity), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn identity(
    State(state): State<Arc<super::State>>,
    Path(name): Path<String>,
) -> Result<Json<EgressIdentity>, ApiError> {
    if !is_id(&name) {
        let detail = "names of identities in a path are 1 to 64 characters of a-z, 0-9 and -";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_id", detail));
    }
    state.identities.get(&name).map(Json).ok_or_else(|| ApiError::not_found("egress identity", &name))
}

/// The egress identity of a user.
#[utoipa::path(get, path = "/v1/users/{user}/egress", operation_id = "getUserEgress", tag = "egress",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    responses((status = 200, body = EgressAllocation), (status = 400, body = Problem),
        (status = 404, description = "the user has none", body = Problem), (status = 503, body = Problem)))]
pub async fn of_user(
    State(state): State<Arc<super::State>>,
    Owner(user): Owner,
) -> Result<Json<EgressAllocation>, ApiError> {
    let found = state.identities.of(&user).await.map_err(IdentityError::from)?;
    found.map(Json).ok_or_else(|| ApiError::not_found("egress identity of user", &user))
}

/// Gives a user an egress identity: the named one, or the one with the fewest users if the user has none yet.
///
/// It counts for connections that begin from now on, of containers that run already as well.
#[utoipa::path(put, path = "/v1/users/{user}/egress", operation_id = "putUserEgress", tag = "egress",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    request_body = EgressRequest,
    responses((status = 200, body = EgressAllocation),
        (status = 400, description = "there is no such identity (`unknown_identity`)", body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "none is free (`no_identity_free`), or nothing can be written (`read_only`)",
            body = Problem),
        (status = 413, description = "the body is too large", body = Problem), (status = 503, body = Problem)))]
pub async fn allocate(
    State(state): State<Arc<super::State>>,
    Owner(user): Owner,
    body: Body,
) -> Result<Json<EgressAllocation>, ApiError> {
    let request: EgressRequest = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let given = state.identities.allocate(&user, request.identity.as_deref()).await?;
    tracing::info!(user, identity = given.identity, "audit: egress identity given by request");
    Ok(Json(given))
}

/// Takes the egress identity of a user back. Connections that are open stay; until the last of them has ended, the user
/// counts among those who have the identity.
#[utoipa::path(delete, path = "/v1/users/{user}/egress", operation_id = "deleteUserEgress", tag = "egress",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    responses((status = 204, description = "taken back"), (status = 400, body = Problem),
        (status = 404, description = "the user has none", body = Problem), (status = 503, body = Problem)))]
pub async fn release(State(state): State<Arc<super::State>>, Owner(user): Owner) -> Result<StatusCode, ApiError> {
    if !state.identities.release(&user).await? {
        return Err(ApiError::not_found("egress identity of user", &user));
    }
    tracing::info!(user, "audit: egress identity taken back by request");
    Ok(StatusCode::NO_CONTENT)
}
