//! Logins that the daemon captures: what is asked, and what the API tells of one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Credential, Secret};
use crate::time::Timestamp;

/// What the user has to do in a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoginMethod {
    /// Open an address; the provider then sends the browser to a port of the user's own machine, and what comes there is
    /// handed to the daemon.
    Callback,
    /// Open an address and enter a code.
    Device,
    /// Use a browser that runs beside the CLI. This version has none, and refuses it.
    Browser,
}

/// How far a login is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoginState {
    /// The CLI is being started.
    Waiting,
    /// The user has to act: see `url`, and `code` or `redirect`.
    Code,
    /// The CLI has the user's answer, and fetches the credential for it.
    Exchanging,
    /// The credential is in the vault.
    Done,
    /// Nothing came of it; see `reason` and `detail`.
    Failed,
}

impl LoginState {
    /// Whether nothing follows.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// Why nothing came of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoginReason {
    /// Its time was over.
    Expired,
    /// It was cancelled by request.
    Cancelled,
    /// The CLI gave up, or left nothing that could be used; `detail` has its last words.
    Refused,
    /// The credential could not be stored.
    NotStored,
    /// The daemon stopped.
    Stopped,
}

/// Body of `POST /v1/logins`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// Provider whose CLI logs in.
    #[schema(pattern = "^[a-z0-9-]+$", max_length = 32)]
    pub provider: String,
    /// Whose credential it becomes.
    #[schema(pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$", min_length = 1, max_length = 128)]
    pub user: String,
    /// What the user has to do; the first of the provider's ways when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<LoginMethod>,
}

/// Body of `POST /v1/logins/{id}/code`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginAnswer {
    /// What the user brings back: the whole address that the provider sent the browser to, or what stands behind its `?`.
    #[schema(value_type = String, min_length = 1, max_length = 8192)]
    pub code: Secret,
}

/// A login that the daemon captures. No secret is in it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Login {
    /// Its id.
    pub id: String,
    /// Provider whose CLI logs in.
    pub provider: String,
    /// Whose credential it becomes.
    pub user: String,
    /// What the user has to do.
    pub method: LoginMethod,
    /// How far it is.
    pub state: LoginState,
    /// Address that the user has to open, while the state is `code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Code that the user has to enter there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Where the provider sends the user's browser: a port of the user's own machine. Whatever comes there goes, with its
    /// query, to `GET /v1/logins/{id}/callback`; or the whole address to `POST /v1/logins/{id}/code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When its time is over.
    pub expires_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Why nothing came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<LoginReason>,
    /// What was wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What is stored, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
}
