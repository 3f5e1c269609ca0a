//! What a daemon says about itself, and what an execution uses.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ExecutionState, Usage};
use crate::time::Timestamp;

/// Answer of `GET /v1/version`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DaemonVersion {
    /// Version of the daemon, as in semantic versioning.
    pub version: String,
    /// The commit that it was built from; absent when the build did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What this daemon can do that an earlier one of the same `/v1` could not, by name.
    pub features: Vec<String>,
    /// What it allows.
    pub limits: LimitsInForce,
}

/// Limits in force: what the configuration says, or what the machine leaves of that.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct LimitsInForce {
    /// Largest body of a request, bytes.
    pub max_body_bytes: usize,
    /// Most containers at a time.
    pub max_containers: usize,
    /// Most executions of one user at a time, those that wait included.
    pub max_executions_per_user: usize,
    /// Longest time limit of an execution, milliseconds.
    pub max_timeout_ms: u64,
    /// How long a request waits for a container unless it says otherwise, milliseconds.
    pub queue_timeout_ms: u64,
    /// Longest such wait, milliseconds.
    pub max_queue_timeout_ms: u64,
    /// Output kept of an execution that runs, bytes.
    pub output_bytes: usize,
    /// How long an ended execution is kept, seconds.
    pub retention_seconds: u64,
    /// Most ended executions that are kept.
    pub max_retained: usize,
    /// Most that a list gives at once when `limit` is asked for.
    pub max_page: usize,
    /// Longest `wait`, milliseconds.
    pub max_wait_ms: u64,
    /// Longest name of a user, characters.
    pub max_user_characters: usize,
}

/// Answer of `GET /v1/executions/{id}/stats`: what an execution uses now, or has used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecutionStats {
    /// The execution.
    pub execution: String,
    /// Its state.
    pub state: ExecutionState,
    /// When these figures were taken.
    pub at: Timestamp,
    /// Its container, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How long its command has run, or ran, milliseconds.
    pub run_ms: u64,
    /// CPU time used, milliseconds.
    pub cpu_ms: u64,
    /// Highest memory charged, bytes.
    pub memory_peak_bytes: u64,
    /// More of it, while its container serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}
