//! `[pool] reclaim`.

use serde::{Deserialize, Serialize};

/// What is taken from a container when it has come to rest (`[pool] reclaim`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimMode {
    /// Nothing.
    #[default]
    Off,
    /// Pages of files.
    Cache,
    /// Anonymous memory, to the host's swap; pages of files too, where the kernel cannot tell them apart.
    Swap,
}
