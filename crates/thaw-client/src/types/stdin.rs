//! Standard input that is sent while a command runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `POST /v1/executions/{id}/stdin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StdinTaken {
    /// Bytes that were taken of all that was ever sent: the `offset` of what comes next.
    pub bytes: u64,
    /// Whether its end was sent.
    pub eof: bool,
}
