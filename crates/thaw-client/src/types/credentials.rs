//! What the API tells about credentials that the daemon keeps. Their contents are never among it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of credential it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A key, in a variable or in the provider's file.
    ApiKey,
    /// A login: an access token, perhaps with what renews it.
    Login,
    /// A file that the daemon does not look into.
    File,
}

/// Whether it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialState {
    /// It can be used.
    Valid,
    /// Its access token has less than ten minutes left, or is over; the provider's CLI can renew it.
    Expiring,
    /// Its access token is over, and there is nothing to renew it with: log in again.
    Expired,
    /// The provider refused to renew it: log in again.
    Refused,
}

/// A credential that the daemon keeps for a user. The secret itself cannot be read back.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Credential {
    /// Whose it is.
    pub user: String,
    /// For which provider.
    pub provider: String,
    /// What kind it is.
    pub kind: CredentialKind,
    /// Names of its files.
    pub files: Vec<String>,
    /// Names of its variables.
    pub env: Vec<String>,
    /// The account, as far as the credential itself tells: an address of the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Tells two credentials apart: 16 hexadecimal digits of a hash of the content.
    pub fingerprint: String,
    /// Grows by one with each change.
    pub version: u64,
    /// Whether it can be used.
    pub state: CredentialState,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the user first stored one for this provider, RFC 3339.
    pub created_at: String,
    /// When it was changed last, by the user or by a CLI, RFC 3339.
    pub updated_at: String,
    /// When its access token is over, RFC 3339; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When an execution got it last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    /// When a CLI renewed it last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refresh_at: Option<String>,
}

/// The vault as a whole.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Vault {
    /// Id of the master key that new user keys are wrapped with; it is derived from the key and tells nothing about it.
    pub master_key: String,
    /// Users who have credentials.
    pub users: u64,
    /// Their credentials.
    pub credentials: u64,
    /// Users whose key is still wrapped with another master key.
    pub users_under_other_master_keys: u64,
}

/// A user's key after its rotation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserKey {
    /// Whose.
    pub user: String,
    /// Id of the new key.
    pub key: String,
    /// Credentials that were encrypted with it.
    pub credentials: u64,
}

/// What asking the provider came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// The provider took it.
    Good,
    /// The provider will not take it any more: log in again.
    Refused,
    /// Nothing is known: the provider could not be asked, or the CLI failed for whatever reason; see `detail`.
    Unknown,
}

/// How the provider was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckMethod {
    /// The daemon had the login renewed.
    Refresh,
    /// The provider's CLI asked a short prompt.
    Prompt,
    /// Nobody was asked: the credential is known not to be usable.
    Stored,
}

/// What is known of a credential after its provider was asked.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CredentialCheck {
    /// What asking the provider came to.
    pub outcome: CheckOutcome,
    /// How it was asked.
    pub method: CheckMethod,
    /// What it said, where it is not `good`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The execution that asked a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// The credential as it is now.
    pub credential: Credential,
}

/// What happened to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditAction {
    /// The user's credential was stored by request.
    Stored,
    /// It was removed by request.
    Removed,
    /// Everything of the user was removed by request, the user's key first.
    AllRemoved,
    /// The user's credentials were encrypted with a new key.
    KeyRotated,
    /// An execution got it.
    Used,
    /// An execution was to get it, and did not.
    UseRefused,
    /// The CLI of an execution renewed it.
    Renewed,
    /// What the CLI of an execution made of it was not taken.
    NotTaken,
    /// The daemon renewed it.
    Refreshed,
    /// The daemon tried to renew it, in vain.
    RefreshFailed,
    /// The provider refused to renew it.
    Refused,
    /// The provider was asked whether it is good.
    Checked,
}

/// Something that happened to a credential. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Id of the record; later ones sort behind earlier ones.
    pub id: String,
    /// When, RFC 3339.
    pub at: String,
    /// Whose credential.
    pub user: String,
    /// For which provider; absent where it was about everything of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// What happened.
    pub action: AuditAction,
    /// Which version it was, or became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Which execution it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// Why, where there is a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// User of the process that asked for it, by uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_uid: Option<u32>,
    /// Its process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_pid: Option<i32>,
}
