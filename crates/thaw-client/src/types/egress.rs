//! Egress identities, and who has which.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// How the connections of an egress identity leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EgressKind {
    /// Through an HTTP proxy, by CONNECT.
    Http,
    /// The same within TLS.
    Https,
    /// Through a SOCKS 5 proxy.
    Socks5,
    /// From an address of this host.
    Bind,
}

impl EgressKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
            Self::Bind => "bind",
        }
    }
}

/// Whether an egress identity can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EgressState {
    /// It could be used when it was last tried, or has not been tried.
    Up,
    /// It failed `egress.down_after` times in a row. It is tried all the same, and is up again with the first success.
    Down,
}

impl EgressState {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// An address with which users go out: a section `[egress.identity.NAME]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressIdentity {
    /// Its name.
    #[schema(pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)]
    pub name: String,
    /// How its connections leave.
    pub kind: EgressKind,
    /// The proxy, `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The address of this host that connections come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bind: Option<IpAddr>,
    /// The address that others see, if the configuration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The operator's own words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Users who may have it at the same time; any number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_users: Option<usize>,
    /// Users who have it, with those who gave it back and still have a connection open.
    pub users: usize,
    /// Whether it can be used.
    pub state: EgressState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Failures in a row.
    pub failures: u32,
    /// What the last failure was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Connections that were opened since the daemon started.
    pub opened: u64,
    /// Connections that failed because of the identity since the daemon started.
    pub failed: u64,
}

/// Body of `PUT /v1/users/{user}/egress`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRequest {
    /// Name of an identity. When absent, the user keeps the one that there is, or gets the one with the fewest users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)]
    pub identity: Option<String>,
}

/// Which egress identity a user has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressAllocation {
    /// The user.
    pub user: String,
    /// Name of the identity. If the configuration has none of that name any more, the user's connections fail.
    pub identity: String,
    /// The address that others see, if the configuration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Since when.
    pub allocated_at: Timestamp,
}
