//! What is sent to the process that asks a token endpoint, and what comes back from it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thaw_client::types::Secret;

use crate::provider::Encoding;

/// Most bytes of an answer. Those of the three providers have up to 6,000.
pub const MAX_ANSWER: usize = 64 << 10;

/// Most bytes of a message between the two processes: an answer, or a refresh token, and what is around it.
pub const MAX_MESSAGE: usize = MAX_ANSWER + (16 << 10);

/// What to ask.
#[derive(Debug, Serialize, Deserialize)]
pub struct TokenRequest {
    /// Address of the token endpoint.
    pub url: String,
    /// How the request is written.
    pub encoding: Encoding,
    /// Id of the CLI.
    pub client_id: String,
    /// What the login is renewed with.
    pub refresh_token: Secret,
    /// Addresses of a host that the operator has given.
    pub resolve: Vec<(String, Vec<SocketAddr>)>,
    /// Milliseconds for all tries.
    pub timeout_ms: u64,
}

/// What the endpoint said: exactly one of these.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TokenReply<'a> {
    /// Its answer.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<&'a RawValue>,
    /// It will not renew this login any more, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Nothing came of it, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
