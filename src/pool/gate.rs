//! Claims before refilling, across all pools: while a claim is in flight no pool begins to create a container, because
//! creating takes the kernel's locks on control groups that thawing needs.
//!
//! A claim is in flight from the moment it is asked for until its [`ClaimGuard`] is dropped, which is when the command
//! has written its first byte or has ended; a guard that is kept longer stops counting after the longest hold. After
//! the last one a few milliseconds have to pass. Nothing starves: a pool that is low, or was held for long enough, goes
//! on all the same, with few creations at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How refilling makes way; see `[pool]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct GateSettings {
    /// Time without a claim in flight before creating goes on.
    pub quiet: Duration,
    /// Longest time that a claim counts as in flight, and that a pool is held.
    pub max_hold: Duration,
    /// Creations at a time, of all pools together, by pools that do not wait any longer.
    pub held_creations: usize,
}

/// One per daemon, shared by its pools.
#[derive(Debug)]
pub struct Gate {
    settings: GateSettings,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// When each claim in flight began; numbers and times rise together.
    claims: BTreeMap<u64, Instant>,
    /// When the last one stopped counting.
    last: Option<Instant>,
    creating: usize,
}

impl State {
    fn forget_old(&mut self, now: Instant, max_hold: Duration) {
        while let Some(oldest) = self.claims.first_entry() {
            let until = *oldest.get() + max_hold;
            if until > now {
                return;
            }
            oldest.remove();
            self.last = self.last.max(Some(until));
        }
    }
}

/// A claim in flight. Dropping it late makes refilling slower, never wrong.
#[derive(Debug)]
#[must_use = "the claim counts as in flight until this is dropped"]
pub struct ClaimGuard {
    gate: Arc<Gate>,
    number: u64,
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if state.claims.remove(&self.number).is_some() {
            state.last = Some(Instant::now());
        }
    }
}

/// The right to create one container now.
#[derive(Debug)]
#[must_use = "the creation counts until this is dropped"]
pub struct Creating {
    gate: Arc<Gate>,
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.gate.lock().creating -= 1;
    }
}

impl Gate {
    /// Open.
    pub fn new(settings: GateSettings) -> Arc<Self> {
        Arc::new(Self { settings, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A claim begins.
    pub fn claim(self: &Arc<Self>) -> ClaimGuard {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.claims.insert(number, Instant::now());
        drop(state);
        ClaimGuard { gate: Arc::clone(self), number }
    }

    /// Asks for the right to create a container. `low` says that the pool has nearly nothing left, `held_since` since
    /// when it has been refused.
    ///
    /// # Errors
    /// When to ask again.
    pub fn create(self: &Arc<Self>, low: bool, held_since: Option<Instant>) -> Result<Creating, Instant> {
        let GateSettings { quiet, max_hold, held_creations } = self.settings;
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_old(now, max_hold);
        let open_at = match (state.claims.is_empty(), state.last) {
            (true, None) => now,
            (true, Some(last)) => last + quiet,
            (false, _) => now + quiet.max(Duration::from_millis(1)),
        };
        let overdue = low || held_since.is_some_and(|since| now.duration_since(since) >= max_hold);
        if open_at > now && !(overdue && state.creating < held_creations) {
            return Err(open_at);
        }
        state.creating += 1;
        drop(state);
        Ok(Creating { gate: Arc::clone(self) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Gate, GateSettings};

    const QUIET: Duration = Duration::from_millis(5);
    const HOLD: Duration = Duration::from_millis(250);

    fn gate() -> Arc<Gate> {
        Gate::new(GateSettings { quiet: QUIET, max_hold: HOLD, held_creations: 1 })
    }

    #[tokio::test(start_paused = true)]
    async fn without_claims_everything_goes() {
        let gate = gate();
        let all: Vec<_> = (0..10).map(|_| gate.create(false, None).unwrap()).collect();
        assert_eq!(gate.lock().creating, 10);
        drop(all);
        assert_eq!(gate.lock().creating, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn creating_waits_for_the_last_claim_and_a_moment_of_quiet() {
        let gate = gate();
        let (first, second) = (gate.claim(), gate.claim());
        assert!(gate.create(false, None).is_err());
        drop(first);
        advance(QUIET * 2).await;
        assert!(gate.create(false, None).is_err(), "one is still in flight");
        drop(second);
        assert_eq!(gate.create(false, None).unwrap_err(), Instant::now() + QUIET);
        advance(QUIET).await;
        assert!(gate.create(false, None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_low_pool_goes_on_one_creation_at_a_time() {
        let gate = gate();
        let _claim = gate.claim();
        let creating = gate.create(true, None).unwrap();
        assert!(gate.create(true, None).is_err(), "of all pools together");
        drop(creating);
        assert!(gate.create(true, None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn claims_without_end_hold_a_pool_only_so_long() {
        let gate = gate();
        let since = Instant::now();
        let mut claim = gate.claim();
        let mut waited = Duration::ZERO;
        while gate.create(false, Some(since)).is_err() {
            advance(Duration::from_millis(10)).await;
            waited += Duration::from_millis(10);
            claim = gate.claim();
            assert!(waited <= HOLD, "starved");
        }
        assert_eq!(waited, HOLD);
        drop(claim);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_stays_silent_stops_counting() {
        let gate = gate();
        let silent = gate.claim();
        advance(HOLD + QUIET - Duration::from_millis(1)).await;
        assert!(gate.create(false, None).is_err());
        advance(Duration::from_millis(1)).await;
        assert!(gate.create(false, None).is_ok());
        // Its end, much later, is no claim.
        drop(silent);
        assert!(gate.create(false, None).is_ok());
    }
}
