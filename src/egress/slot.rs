//! What a connection holds until its last task has ended: a slot and a count.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::meter::Account;

/// Counts a connection as open until it is dropped.
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

/// A slot among a container's connections, held until the connection's last task has ended.
#[derive(Debug)]
pub(super) struct Slot {
    is_served: bool,
    _permit: OwnedSemaphorePermit,
    _open: Open,
}

impl Slot {
    /// `permit` is either one to be served, or one to be answered with 503.
    pub(super) fn new(is_served: bool, permit: OwnedSemaphorePermit, open: Open) -> Self {
        Self { is_served, _permit: permit, _open: open }
    }

    /// Whether the connection is served; otherwise it is answered with 503.
    pub(super) fn is_served(&self) -> bool {
        self.is_served
    }
}
