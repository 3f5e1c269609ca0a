//! `[pool] reclaim`.

use serde::{Deserialize, Serialize};

/// Memory that is reclaimed from a container when it is parked (`[pool] reclaim`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimMode {
    /// None.
    #[default]
    Off,
    /// Cached pages of files.
    Cache,
    /// Anonymous memory, to the host's swap; cached pages too, where the kernel cannot separate them.
    Swap,
}
