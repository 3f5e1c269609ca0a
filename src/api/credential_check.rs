//! `POST /v1/users/{user}/credentials/{provider}/check`: asks the provider once whether a credential is good.

use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

use super::credentials::{Which, asker, provider, vault};
use super::{ApiError, PeerCredentials, request_id};
use crate::execution::{Asked, Audience, StartError};
use crate::provider::Provider;
use crate::vault::VaultError;
use thaw_client::types::{CheckMethod, CheckOutcome, CredentialCheck, ExecutionRequest, Problem};

/// What a CLI is asked: short to ask, and short to answer.
const PROMPT: &str = "Reply with the word OK and nothing else.";

/// What was found.
struct Found {
    outcome: CheckOutcome,
    method: CheckMethod,
    detail: Option<String>,
    execution: Option<String>,
}

impl Found {
    fn new(outcome: CheckOutcome, method: CheckMethod, detail: Option<String>) -> Self {
        Self { outcome, method, detail, execution: None }
    }
}

/// Asks the provider once whether a credential is good.
///
/// Where the daemon renews the provider's logins (`refresh-ahead`), it renews this one now. Otherwise the provider's CLI asks a
/// short prompt, which costs what that costs. A credential that is known not to be usable is not asked about.
#[utoipa::path(post, path = "/v1/users/{user}/credentials/{provider}/check", operation_id = "checkCredential", tag = "vault",
    params(
    ("user" = String, Path, description = "user", min_length = 1, max_length = 128,
        pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$"),
    ("provider" = String, Path, description = "provider name", pattern = "^[a-z0-9-]+$", min_length = 1,
        max_length = 32)),
    responses((status = 200, description = "what was found, good or not", body = CredentialCheck),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 409, description = "the vault is off (`vault_off`), what it has is broken, or the provider can be asked in no way (`cannot_check`)",
            body = Problem),
        (status = 429, description = "the user has too many executions (`user_limit`)", body = Problem),
        (status = 503, description = "no container, or the login is being renewed", body = Problem)))]
pub async fn check(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    Which(user, name): Which,
) -> Result<Json<CredentialCheck>, ApiError> {
    let (vault, provider) = (vault(&state)?, provider(&state, &name)?);
    let missing = || ApiError::not_found("credential for provider", &name);
    vault.describe(&user, &name).await?.ok_or_else(missing)?;
    let patience = state.executions.settings().queue_timeout;
    let found = match vault.check_by_refresh(&user, provider, patience).await {
        Ok(Some(Ok(()))) => Found::new(CheckOutcome::Good, CheckMethod::Refresh, None),
        Ok(Some(Err(reason))) => Found::new(CheckOutcome::Unknown, CheckMethod::Refresh, Some(reason)),
        Ok(None) => ask(&state, provider, &user).await?,
        Err(error @ (VaultError::Refused { .. } | VaultError::Expired { .. })) => {
            Found::new(CheckOutcome::Refused, CheckMethod::Stored, Some(error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    let said = serde_json::to_value(found.outcome).ok().and_then(|word| word.as_str().map(str::to_owned));
    let said = [said, found.detail.clone()].into_iter().flatten().collect::<Vec<_>>().join(": ");
    vault.note_check(&user, &name, found.execution.as_deref(), &said, asker(peer));
    let credential = vault.describe(&user, &name).await?.ok_or_else(missing)?;
    let Found { outcome, method, detail, execution } = found;
    Ok(Json(CredentialCheck { outcome, method, detail, execution, credential }))
}

/// Asks by the provider's CLI, as an execution of the user.
async fn ask(state: &super::State, provider: &Provider, user: &str) -> Result<Found, ApiError> {
    if provider.command.argv.is_empty() {
        let detail = format!(
            "provider `{}` has no CLI that could ask (`command` in its manifest), and thawd does not renew its logins",
            provider.name
        );
        return Err(ApiError::new(StatusCode::CONFLICT, "cannot_check", detail));
    }
    let request = ExecutionRequest {
        provider: provider.name.clone(),
        user: user.to_owned(),
        prompt: Some(PROMPT.to_owned()),
        background: true,
        ..ExecutionRequest::default()
    };
    let asked = Asked { audience: Audience::None, request_id: request_id::current(), key: None };
    let begun = match state.executions.start(request, asked).await {
        Ok(begun) => begun,
        Err(StartError::Vault(error @ (VaultError::Refused { .. } | VaultError::Expired { .. }))) => {
            return Ok(Found::new(CheckOutcome::Refused, CheckMethod::Stored, Some(error.to_string())));
        }
        Err(error) => return Err(error.into()),
    };
    let handle = begun.reader.handle();
    // It has a time limit of its own.
    handle.ended().await;
    let exit = handle.describe().exit;
    let is_good = exit.as_ref().is_some_and(|exit| exit.success);
    let why = exit.and_then(|exit| exit.detail).unwrap_or_else(|| "its CLI failed and does not say why".to_owned());
    let mut found = match is_good {
        true => Found::new(CheckOutcome::Good, CheckMethod::Prompt, None),
        false => Found::new(CheckOutcome::Unknown, CheckMethod::Prompt, Some(why)),
    };
    found.execution = Some(handle.id().to_owned());
    Ok(found)
}
