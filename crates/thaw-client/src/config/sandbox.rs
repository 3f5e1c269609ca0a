//! `[sandbox]`: containers of users that live on between commands.

use serde::{Deserialize, Serialize};

/// `[sandbox]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// Seconds without a command after which a sandbox is frozen, if its lifecycle does not say.
    pub freeze_after_seconds: u64,
    /// Sandboxes at the same time; each takes a place of `container.max`, for as long as it lives.
    pub max: usize,
    /// Sandboxes of one user at the same time; beyond it a request gets 429.
    pub max_per_user: usize,
    /// Seconds for which a sandbox that is gone is still listed, so that it tells why.
    pub retention_seconds: u64,
    /// Those that are listed at most, whatever their age.
    pub retained: usize,
    /// Calls for files of sandboxes at the same time; beyond it a request gets 503.
    pub file_calls: usize,
    /// Largest file or archive that goes into a sandbox or comes out in one request, bytes.
    pub file_bytes: u64,
    /// Files, directories and links of such an archive, and those that one request removes.
    pub file_entries: u64,
    /// Bytes of the root to write to of a sandbox whose request asks for none; 0 for none.
    pub storage_bytes: u64,
    /// Seconds without a command after which one with storage is stopped, if its lifecycle does not say.
    pub stop_after_seconds: u64,
    /// Seconds that its processes have for ending then, before they are killed.
    pub stop_grace_seconds: u64,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            freeze_after_seconds: 60,
            max: 25,
            max_per_user: 5,
            retention_seconds: 86_400,
            retained: 1_000,
            file_calls: 32,
            file_bytes: 4 << 30,
            file_entries: 100_000,
            storage_bytes: 0,
            stop_after_seconds: 1800,
            stop_grace_seconds: 10,
        }
    }
}
