//! A clock that jumps. Only in the bed, whose clock is its own: `make test-v2 V2_TESTS=starvation V2_ARGS=clock`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};
use thaw_client::types::ExitReason;

use crate::Counting;
use crate::support::{Daemon, shell};

const YEAR: i64 = 365 * 24 * 3600;

/// Moves the wall clock; moves it back when dropped.
struct Jump(i64);

impl Jump {
    fn by(seconds: i64) -> Self {
        turn(seconds).unwrap();
        Self(seconds)
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        // Nothing that a drop could do about a failure.
        let _ = turn(-self.0);
    }
}

fn turn(seconds: i64) -> rustix::io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let then = Timespec { tv_sec: now.as_secs() as i64 + seconds, tv_nsec: now.subsec_nanos().into() };
    clock_settime(ClockId::Realtime, then)
}

#[tokio::test]
async fn the_clock_may_jump_by_years_without_ending_or_keeping_anything() {
    if !crate::support::in_bed() {
        eprintln!("not run: it would set the clock of this machine");
        return;
    }
    let daemon = Daemon::start(|setup| {
        setup.pool(2).set("execution.retention_seconds", 600).set("execution.disconnect_grace_ms", 10_000)
    })
    .await;
    daemon.settled().await;
    let kept = daemon.sh("echo kept").await.exited(0).started.execution;
    for seconds in [YEAR, -2 * YEAR, 60, -3600] {
        let counting = Counting::start(&daemon, 100).await;
        let streamed = tokio::spawn({
            let client = daemon.client.clone();
            async move {
                let request = shell("for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.1; done");
                crate::Outcome::of(client.execute_stream(&request).await.unwrap()).await
            }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let jump = Jump::by(seconds);
        // A time limit is counted from now on, by a clock that does not jump.
        let mut limited = shell("sleep 1000");
        limited.timeout_ms = Some(1000);
        let begun = Instant::now();
        let outcome = daemon.run(&limited).await.ended(ExitReason::Timeout);
        assert!(begun.elapsed() >= Duration::from_millis(1000) && begun.elapsed() < crate::support::PATIENCE);
        assert!(outcome.exit.duration_ms >= 1000 && outcome.exit.duration_ms < 60_000, "{:?}", outcome.exit);
        streamed.await.unwrap().exited(0);
        counting.assert_complete(&daemon).await;
        daemon.settled().await;
        daemon.client.execution(&kept).await.expect("what has ended is kept for its time");
        drop(jump);
    }
    // Ids stay in the order in which executions began, as far as the clock can tell.
    assert!(daemon.client.executions().await.unwrap().len() > 8);
    daemon.stop().await;
}
