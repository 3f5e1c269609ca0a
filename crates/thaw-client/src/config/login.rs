//! `[login]`: logins that the daemon captures.

use serde::{Deserialize, Serialize};

/// `[login]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logins {
    /// Logins at the same time; each takes a container.
    pub max: usize,
    /// Seconds that a login may take, with all that the user does.
    pub timeout_seconds: u64,
}

impl Default for Logins {
    fn default() -> Self {
        Self { max: 8, timeout_seconds: 900 }
    }
}
