//! Points in time that survive a restart of the daemon.

use std::time::{Duration, Instant};

use crate::output;
use thaw_os::kernel;

/// Time since boot, without time asleep: the same clock for every daemon.
pub fn now() -> Duration {
    kernel::since_boot()
}

/// When that was, or will be, by the clock of this process.
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{instant, now};

    #[test]
    fn what_is_to_come_is_later_than_what_was() {
        let hour = Duration::from_secs(3600);
        let (before, after) = (instant(now().saturating_sub(Duration::from_millis(10))), instant(now() + hour));
        assert!(before <= Instant::now());
        let left = after.duration_since(Instant::now());
        assert!(left > hour - Duration::from_secs(60) && left <= hour, "{left:?}");
    }
}
