//! What happens in the daemon as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ClaimPath, ExitReason, Stage};
use crate::time::Timestamp;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DaemonEventKind {
    /// An execution waits for a container, or its position has changed; see `position`.
    ExecutionQueued,
    /// The command of an execution runs; see `container`, `path` and `stage`.
    ExecutionStarted,
    /// An execution has ended; see `reason` and `success`.
    ExecutionExited,
    /// Somebody deleted an execution that had ended.
    ExecutionDeleted,
    /// A sandbox has its container; see `sandbox` and `container`.
    SandboxCreated,
    /// The processes of a sandbox are frozen; `detail` says why.
    SandboxFrozen,
    /// They run again, or it was started again after it had been stopped; `detail` says why.
    SandboxWoken,
    /// The processes of a sandbox have ended, and its files are kept; `detail` says why. What starts it again is
    /// `sandbox_woken`.
    SandboxStopped,
    /// The storage of a sandbox cannot be used; `detail` says why.
    SandboxBroken,
    /// A sandbox is gone; `detail` says why.
    SandboxGone,
    /// How many warm containers a pool wants has changed; see `target` and `detail`.
    PoolChanged,
    /// A pool cannot be filled; see `detail`.
    PoolFailing,
    /// A pool can be filled again.
    PoolRecovered,
    /// A job has begun; see `job`.
    JobStarted,
    /// A job is at its next stage, or still at work; see `detail`.
    JobProgress,
    /// A job has ended; see `success` and `detail`.
    JobEnded,
    /// Events are missing: they are not kept any more, or another daemon had them. List again what you watch.
    Gap,
}

impl DaemonEventKind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ExecutionQueued,
        Self::ExecutionStarted,
        Self::ExecutionExited,
        Self::ExecutionDeleted,
        Self::SandboxCreated,
        Self::SandboxFrozen,
        Self::SandboxWoken,
        Self::SandboxStopped,
        Self::SandboxBroken,
        Self::SandboxGone,
        Self::PoolChanged,
        Self::PoolFailing,
        Self::PoolRecovered,
        Self::JobStarted,
        Self::JobProgress,
        Self::JobEnded,
        Self::Gap,
    ];

    /// As in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExecutionQueued => "execution_queued",
            Self::ExecutionStarted => "execution_started",
            Self::ExecutionExited => "execution_exited",
            Self::ExecutionDeleted => "execution_deleted",
            Self::SandboxCreated => "sandbox_created",
            Self::SandboxFrozen => "sandbox_frozen",
            Self::SandboxWoken => "sandbox_woken",
            Self::SandboxStopped => "sandbox_stopped",
            Self::SandboxBroken => "sandbox_broken",
            Self::SandboxGone => "sandbox_gone",
            Self::PoolChanged => "pool_changed",
            Self::PoolFailing => "pool_failing",
            Self::PoolRecovered => "pool_recovered",
            Self::JobStarted => "job_started",
            Self::JobProgress => "job_progress",
            Self::JobEnded => "job_ended",
            Self::Gap => "gap",
        }
    }
}

/// One event of `GET /v1/events`; the SSE `event:` field is its kind, `id:` says where to go on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DaemonEvent {
    /// What happened.
    pub kind: DaemonEventKind,
    /// When.
    pub at: Timestamp,
    /// Of which provider; `image` for commands in an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// To which execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// To which sandbox, or in which one the execution runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Whose that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// In which container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How the container was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<ClaimPath>,
    /// How far the container, or those of the pool, had been taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// How many requests are served before it is, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// Whether it did its job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// How many warm containers are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<usize>,
    /// More about it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl DaemonEvent {
    /// One that happens now, without particulars.
    pub fn new(kind: DaemonEventKind) -> Self {
        Self {
            kind,
            at: Timestamp::now(),
            provider: None,
            execution: None,
            sandbox: None,
            user: None,
            job: None,
            container: None,
            path: None,
            stage: None,
            position: None,
            reason: None,
            success: None,
            target: None,
            detail: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DaemonEventKind;

    #[test]
    fn names_are_those_of_the_json() {
        for kind in DaemonEventKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
