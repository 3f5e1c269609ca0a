//! `/v1/users/{user}/credentials` and `/v1/vault`: credentials that the daemon keeps. None can be read back.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::lookup::is_id;
use super::{ApiError, PeerCredentials, body, filter};
use crate::provider::Provider;
use crate::vault::{Asker, AuditQuery, Vault};
use thaw_client::types::{
    AuditRecord, Credential, Credentials, List, Page, Problem, USER_RULE, UserKey, Vault as VaultStatus, is_user,
};

/// Whose credentials: the user in the path, checked.
#[derive(Debug)]
pub struct Owner(pub String);

/// Which credential: user and provider in the path, checked.
#[derive(Debug)]
pub struct Which(pub String, pub String);

fn checked(user: &str) -> Result<(), ApiError> {
    if is_user(user) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_id", format!("the user in the path {USER_RULE}")))
}

impl<S: Send + Sync> FromRequestParts<S> for Owner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let user = path.map(|Path(user)| user).unwrap_or_default();
        checked(&user)?;
        Ok(Self(user))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Which {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (user, provider) = path.map(|Path(both)| both).unwrap_or_default();
        checked(&user)?;
        if !is_id(&provider) {
            let detail = "providers in a path are 1 to 64 characters of a-z, 0-9 and -";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_id", detail));
        }
        Ok(Self(user, provider))
    }
}

/// The process at the other end, as the vault puts it on record.
pub fn asker(peer: PeerCredentials) -> Asker {
    Asker { uid: Some(peer.uid), pid: peer.pid }
}

/// The vault, if there is one.
pub fn vault(state: &super::State) -> Result<&Arc<Vault>, ApiError> {
    state.vault.as_ref().ok_or_else(|| {
        let detail = "the vault is off, because thawd has no master key: run `thawd vault init`, set `vault.key_file` in \
                      thawd.toml and restart thawd (docs/vault.md)";
        ApiError::new(StatusCode::CONFLICT, "vault_off", detail)
    })
}

/// A provider that is served.
pub fn provider<'a>(state: &'a super::State, name: &str) -> Result<&'a Provider, ApiError> {
    let served = state.executions.served().get(name).ok_or_else(|| ApiError::not_found("provider", name))?;
    Ok(&served.provider)
}

/// Lists the credentials of a user, without the secrets.
#[utoipa::path(get, path = "/v1/users/{user}/credentials", operation_id = "listCredentials", tag = "vault",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    responses((status = 200, body = List<Credential>), (status = 400, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn list(
    State(state): State<Arc<super::State>>,
    Owner(user): Owner,
) -> Result<Json<List<Credential>>, ApiError> {
    Ok(Json(List { items: vault(&state)?.list(&user).await? }))
}

/// Removes everything that the vault has of a user: the user's key first, so that no copy can be read any more.
#[utoipa::path(delete, path = "/v1/users/{user}/credentials", operation_id = "deleteCredentials", tag = "vault",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    responses((status = 204, description = "removed"), (status = 400, body = Problem),
        (status = 404, description = "the user has nothing", body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn remove_all(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Owner(user): Owner,
) -> Result<StatusCode, ApiError> {
    let removed = vault(&state)?.remove_user(&user, asker(peer)).await?;
    removed.ok_or_else(|| ApiError::not_found("credential of user", &user))?;
    tracing::info!(user, peer_uid = peer.uid, peer_pid = peer.pid, "audit: all credentials removed by request");
    Ok(StatusCode::NO_CONTENT)
}

/// One credential, without the secret.
#[utoipa::path(get, path = "/v1/users/{user}/credentials/{provider}", operation_id = "getCredential", tag = "vault", params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("provider" = String, Path, description = "provider name", pattern = "^[a-z0-9-]+$", min_length = 1,
        max_length = 32)),
    responses((status = 200, body = Credential), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn get(
    State(state): State<Arc<super::State>>,
    Which(user, provider): Which,
) -> Result<Json<Credential>, ApiError> {
    let found = vault(&state)?.describe(&user, &provider).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("credential for provider", &provider))
}

/// Stores a credential: the files that the provider's CLI wrote at its login, or one variable with a key.
///
/// It replaces the one before. From then on executions of this user that name no `credentials` get it.
#[utoipa::path(put, path = "/v1/users/{user}/credentials/{provider}", operation_id = "putCredential", tag = "vault", params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("provider" = String, Path, description = "provider name", pattern = "^[a-z0-9-]+$", min_length = 1,
        max_length = 32)),
    request_body = Credentials, responses(
        (status = 200, description = "stored instead of the one before", body = Credential),
        (status = 201, description = "stored", body = Credential),
        (status = 400, description = "no version of the CLI would read it, or it is over (`invalid_credential`)",
            body = Problem),
        (status = 404, description = "no such provider", body = Problem), (status = 408, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`), or what it has of the user is broken",
            body = Problem),
        (status = 413, description = "the body is too large", body = Problem), (status = 503, body = Problem)))]
pub async fn put(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Which(user, name): Which,
    body: Body,
) -> Result<(StatusCode, Json<Credential>), ApiError> {
    let vault = vault(&state)?;
    let provider = provider(&state, &name)?;
    let mut given: Credentials = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let twice = |error: crate::provider::CredentialError| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_credential", error.to_string())
    };
    let mut credentials = Credentials::default();
    credentials.files = provider.file_names(std::mem::take(&mut given.files)).map_err(twice)?;
    credentials.env = provider.without_aliases(std::mem::take(&mut given.env)).map_err(twice)?;
    let (stored, is_new) = vault.put(&user, provider, &credentials, asker(peer)).await?;
    tracing::info!(
        user,
        provider = name,
        peer_uid = peer.uid,
        peer_pid = peer.pid,
        "audit: credential stored by request"
    );
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(stored)))
}

/// Removes a credential.
#[utoipa::path(delete, path = "/v1/users/{user}/credentials/{provider}", operation_id = "deleteCredential", tag = "vault", params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("provider" = String, Path, description = "provider name", pattern = "^[a-z0-9-]+$", min_length = 1,
        max_length = 32)),
    responses((status = 204, description = "removed"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn remove(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Which(user, provider): Which,
) -> Result<StatusCode, ApiError> {
    if !vault(&state)?.remove(&user, &provider, asker(peer)).await? {
        return Err(ApiError::not_found("credential for provider", &provider));
    }
    tracing::info!(user, provider, peer_uid = peer.uid, peer_pid = peer.pid, "audit: credential removed by request");
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a user a new key, and encrypts the user's credentials with it.
#[utoipa::path(post, path = "/v1/users/{user}/rotate-key", operation_id = "rotateUserKey", tag = "vault",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")),
    responses((status = 200, body = UserKey), (status = 400, body = Problem),
        (status = 404, description = "the user has no credentials", body = Problem),
        (status = 409, description = "the vault is off (`vault_off`), or a credential cannot be read", body = Problem),
        (status = 503, body = Problem)))]
pub async fn rotate_user_key(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Owner(user): Owner,
) -> Result<Json<UserKey>, ApiError> {
    let rotated = vault(&state)?.rotate_user_key(&user, asker(peer)).await?;
    rotated.map(Json).ok_or_else(|| ApiError::not_found("credential of user", &user))
}

/// The vault as a whole: its master key, by id, and how much is in it.
#[utoipa::path(get, path = "/v1/vault", operation_id = "getVault", tag = "vault", responses((status = 200, body = VaultStatus),
    (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn status(State(state): State<Arc<super::State>>) -> Result<Json<VaultStatus>, ApiError> {
    Ok(Json(vault(&state)?.status().await?))
}

/// Reads the master keys again, and wraps every user's key with the first of them.
#[utoipa::path(post, path = "/v1/vault/rotate-key", operation_id = "rotateMasterKey", tag = "vault",
    responses((status = 200, body = VaultStatus),
    (status = 409, description = "the vault is off (`vault_off`), or a key is missing (`master_key`)", body = Problem),
    (status = 503, body = Problem)))]
pub async fn rotate_master_key(State(state): State<Arc<super::State>>) -> Result<Json<VaultStatus>, ApiError> {
    Ok(Json(vault(&state)?.rotate_master_key().await?))
}

/// Lists what happened to the credentials of a user, newest first: changes, uses, renewals and refusals.
///
/// With `limit`, `next_cursor` in the answer is what to give as `cursor` for the next page.
#[utoipa::path(get, path = "/v1/users/{user}/audit", operation_id = "listAuditRecords", tag = "vault",
    params(("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
        filter::AuditParameters),
    responses((status = 200, body = Page<AuditRecord>), (status = 400, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`)", body = Problem), (status = 503, body = Problem)))]
pub async fn audit(
    State(state): State<Arc<super::State>>,
    Owner(user): Owner,
    RawQuery(query): RawQuery,
) -> Result<Json<Page<AuditRecord>>, ApiError> {
    let vault = vault(&state)?;
    let filter::Audit { provider, limit, cursor } = filter::audit(query.as_deref().unwrap_or_default())?;
    Ok(Json(vault.audit(&AuditQuery { user, provider, limit, cursor }).await?))
}
