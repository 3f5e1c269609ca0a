//! Token buckets, which limit a rate. Bytes have one bucket per container and direction, shared by the container's
//! connections; `budget` has those of requests and CPU time.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Bytes per second in a megabit per second.
const MBIT: f64 = 1_000_000.0 / 8.0;

/// A token bucket. After a pause, a second's worth of bytes passes at once, so that a prompt does not wait; then the
/// rate applies.
///
/// A piece passes whenever the bucket holds any token, and may take more tokens than there are. Later pieces wait until
/// the debt is paid. Pieces are some 16 KiB, so the rate is kept exactly without cutting pieces.
#[derive(Debug)]
pub(super) struct Bucket(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Tokens per second; `None` for no limit.
    rate: Option<f64>,
    /// Most tokens that gather during a pause.
    most: f64,
    /// Tokens available; below zero when more has passed than there was.
    tokens: f64,
    at: Instant,
}

impl State {
    fn refill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let since = now.saturating_duration_since(self.at).as_secs_f64();
            self.tokens = (self.tokens + since * rate).min(self.most);
        }
        self.at = now;
    }
}

impl Bucket {
    /// A full bucket for bytes that holds a second's worth; 0 means no limit.
    pub(super) fn new(mbit_per_second: u32) -> Self {
        let rate = rate(mbit_per_second);
        Self::with(rate, rate.unwrap_or(0.0))
    }

    /// A full bucket with this many tokens per second, and at most `most` tokens after a pause.
    pub(super) fn with(rate: Option<f64>, most: f64) -> Self {
        Self(Mutex::new(State { rate, most, tokens: most, at: Instant::now() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is plain numbers, valid also after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the rate and fills the bucket: what passed before belonged to another use of the container.
    pub(super) fn set(&self, mbit_per_second: u32) {
        let rate = rate(mbit_per_second);
        let most = rate.unwrap_or(0.0);
        *self.state() = State { rate, most, tokens: most, at: Instant::now() };
    }

    /// Takes tokens for what has passed.
    pub(super) fn take(&self, tokens: f64) {
        let mut state = self.state();
        if state.rate.is_some() {
            state.tokens -= tokens;
        }
    }

    /// Time until something may pass again; `None` is now.
    pub(super) fn wait(&self) -> Option<Duration> {
        let mut state = self.state();
        state.refill(Instant::now());
        let rate = state.rate?;
        // Waits at least 1 ms rather than for the first token: the rate is the same with fewer wake-ups.
        (state.tokens <= 0.0).then(|| Duration::from_secs_f64(-state.tokens / rate).max(Duration::from_millis(1)))
    }
}

fn rate(mbit_per_second: u32) -> Option<f64> {
    (mbit_per_second > 0).then(|| f64::from(mbit_per_second) * MBIT)
}

/// One connection's wait for a bucket.
#[derive(Debug, Default)]
pub(super) struct Turn(Option<Pin<Box<Sleep>>>);

impl Turn {
    /// Ready when the bucket lets something pass.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, bucket: &Bucket) -> Poll<()> {
        loop {
            if let Some(sleep) = &mut self.0 {
                ready!(sleep.as_mut().poll(cx));
                self.0 = None;
            }
            match bucket.wait() {
                None => return Poll::Ready(()),
                Some(time) => self.0 = Some(Box::pin(sleep(time))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 16 * 1024;

    /// Seconds that `bytes` take in pieces, from a bucket as it is.
    async fn pass(bucket: &Bucket, bytes: usize) -> f64 {
        let (begun, mut turn) = (Instant::now(), Turn::default());
        for _ in 0..bytes / PIECE {
            std::future::poll_fn(|cx| turn.poll(cx, bucket)).await;
            bucket.take(PIECE as f64);
        }
        begun.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_passes_at_once_and_the_rest_at_the_rate() {
        let bucket = Bucket::new(8);
        assert!(pass(&bucket, 900_000).await < 0.01);
        let seconds = pass(&bucket, 10_100_000).await;
        assert!((9.9..10.1).contains(&seconds), "{seconds}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(pass(&bucket, 900_000).await < 0.01, "after a pause, but no more than a second's worth");
        assert!(pass(&bucket, 1_100_000).await > 0.9);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_share_one_rate() {
        let bucket = Bucket::new(8);
        pass(&bucket, 1_000_000).await;
        let begun = Instant::now();
        tokio::join!(pass(&bucket, 2_000_000), pass(&bucket, 2_000_000), pass(&bucket, 2_000_000));
        let seconds = begun.elapsed().as_secs_f64();
        assert!((5.8..6.2).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_can_change_and_zero_is_none() {
        let bucket = Bucket::new(8);
        pass(&bucket, 5_000_000).await;
        bucket.set(80);
        assert!(pass(&bucket, 9_900_000).await < 0.01, "full again");
        let seconds = pass(&bucket, 20_000_000).await;
        assert!((1.9..2.1).contains(&seconds), "{seconds}");
        bucket.set(0);
        assert!(pass(&bucket, 1_000_000_000).await < 0.01);
        assert!(pass(&Bucket::new(0), 1_000_000_000).await < 0.01);
    }
}
