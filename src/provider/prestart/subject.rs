//! What a conversation with a CLI is about.

use serde::{Deserialize, Serialize};

/// What a conversation is about, besides what is said in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Subject {
    /// Name of the program.
    pub(super) program: String,
    /// Model that it was started with.
    pub(super) model: String,
    /// Directory that it works in.
    pub(super) cwd: String,
}
