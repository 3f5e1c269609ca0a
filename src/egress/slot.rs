//! What a connection holds for as long as any of its tasks runs.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::meter::Account;

/// A connection that the daemon holds, as counted.
#[derive(Debug)]
pub(super) struct Open(Arc<Account>);

impl Open {
    pub(super) fn new(account: &Arc<Account>) -> Self {
        account.opened();
        Self(Arc::clone(account))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

/// A place among a container's connections, held until its last task has ended.
#[derive(Debug)]
pub(super) struct Slot {
    is_served: bool,
    _permit: OwnedSemaphorePermit,
    _open: Open,
}

impl Slot {
    /// `permit` is for being served, or for being told that there was no place.
    pub(super) fn new(is_served: bool, permit: OwnedSemaphorePermit, open: Open) -> Self {
        Self { is_served, _permit: permit, _open: open }
    }

    /// Whether the connection is served; otherwise it only gets to know that it is not.
    pub(super) fn is_served(&self) -> bool {
        self.is_served
    }
}
