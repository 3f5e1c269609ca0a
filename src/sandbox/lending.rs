//! Credentials that a prompt in a sandbox has: there while it runs, and gone after it.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::container::Sandbox as Container;

/// Names of credential files, which are removed when this is dropped. There is one of a sandbox at a time.
#[derive(Debug)]
pub(super) struct Lending {
    pub container: Arc<Container>,
    pub names: Vec<String>,
    /// The turn of this prompt.
    pub _turn: OwnedSemaphorePermit,
}

impl Drop for Lending {
    fn drop(&mut self) {
        if let Err(error) = self.container.withdraw(&self.names) {
            tracing::error!(%error, "a credential stays in its user's sandbox until the next prompt, or its end");
        }
    }
}
