//! Points in time that survive a restart of the daemon.

use std::time::{Duration, Instant};

use crate::output;
use thaw_os::kernel;

/// Time since boot, without time asleep: the same clock for every daemon.
pub fn now() -> Duration {
    kernel::since_boot()
}

/// When that was, by the clock of this process.
pub fn instant(since: Duration) -> Instant {
    output::instant(since).into_std()
}

/// Ends at `deadline`; never without one.
pub(super) async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
