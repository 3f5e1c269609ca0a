//! Who renews the logins of a provider (`[credentials.refresh]`).

use serde::{Deserialize, Serialize};
use thaw_client::config::RefreshPolicy;

/// Who renews logins, and how the provider is asked for it (`[credentials.refresh]`).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// Who does. Default: the daemon (`refresh-ahead`) if endpoint and client are named, and otherwise the CLI, in one
    /// execution at a time (`exclusive`).
    pub(super) policy: Option<RefreshPolicy>,
    /// Address of the token endpoint (RFC 6749, section 3.2).
    pub(super) token_url: Option<String>,
    /// Id of the CLI at the provider; it is public.
    pub(super) client_id: Option<String>,
    /// How the request is written. Default: as a form, as RFC 6749 has it.
    #[serde(default)]
    pub(super) encoding: Encoding,
}

/// How a request for a token is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// `application/x-www-form-urlencoded`
    #[default]
    Form,
    /// `application/json`
    Json,
}
