//! Throttle for work that keeps the kernel busy: creating containers (refilling) and tearing them down, of all pools.
//! Claims go first.
//!
//! Creating takes the kernel's cgroup locks, which thawing needs. Removing namespaces and cgroups occupies a processor
//! for milliseconds, and a kernel without preemption runs nothing else there meanwhile. So neither begins while a claim
//! is in flight. Beside each other, they leave one processor to claims; on a host with two processors, they take turns.
//!
//! A claim is in flight from its request until its [`ClaimGuard`] is dropped, when the command has written its first
//! byte or has ended. A guard that is kept longer than the longest hold no longer counts. After the last claim, a few
//! milliseconds of quiet have to pass. Nothing starves: a pool below its low-water mark, and whatever was held for the
//! longest hold, proceeds all the same, a few at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long creating gives way to teardown; also the pause before work that found no free processor tries again.
const TURN: Duration = Duration::from_millis(1);

/// Settings of the throttle; see `[pool]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct RefillThrottleSettings {
    /// Time without a claim in flight before creating and teardown proceed.
    pub quiet: Duration,
    /// Longest time that a claim counts as in flight, and that a pool is held.
    pub max_hold: Duration,
    /// Longest time that claims delay a teardown, which is not urgent while leases are free.
    pub max_hold_clearing: Duration,
    /// Creations at a time, of all pools together, while claims are in flight.
    pub held_creations: usize,
    /// Number of processors of the host.
    pub cpus: usize,
}

/// The throttle. One per daemon.
#[derive(Debug)]
pub struct RefillThrottle {
    settings: RefillThrottleSettings,
    state: Mutex<State>,
    /// Turns of teardowns, in order of arrival.
    turns: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Start of each claim in flight; numbers and times rise together.
    claims: BTreeMap<u64, Instant>,
    /// Time at which the last claim stopped counting.
    last: Option<Instant>,
    creating: usize,
    clearing: usize,
    /// Whether a teardown has found no free processor since the last creation began.
    overtaken: bool,
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

    /// Time from which on there has been quiet for long enough.
    fn open_at(&self, now: Instant, quiet: Duration) -> Instant {
        match (self.claims.is_empty(), self.last) {
            (true, None) => now,
            (true, Some(last)) => last + quiet,
            (false, _) => now + quiet.max(TURN),
        }
    }

    /// Whether one more job leaves a processor to claims, or is the only job.
    fn has_room(&self, cpus: usize) -> bool {
        let busy = self.creating + self.clearing;
        busy == 0 || busy + 1 < cpus
    }
}

/// Time since which a pool has been refused a creation. Each creation that is admitted resets it: the next one gives
/// way to claims and teardowns again.
#[derive(Debug, Default)]
pub struct Hold(Option<Instant>);

impl Hold {
    /// Resets the hold: the pool wants no creation any more.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

/// A claim in flight. Dropping it late makes refilling slower, never wrong.
#[derive(Debug)]
#[must_use = "the claim counts as in flight until this is dropped"]
pub struct ClaimGuard {
    throttle: Arc<RefillThrottle>,
    number: u64,
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        let mut state = self.throttle.lock();
        if state.claims.remove(&self.number).is_some() {
            state.last = Some(Instant::now());
        }
    }
}

/// The right to create one container now.
#[derive(Debug)]
#[must_use = "the creation counts until this is dropped"]
pub struct Creating {
    throttle: Arc<RefillThrottle>,
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.throttle.lock().creating -= 1;
    }
}

/// The right to tear down one container now.
#[derive(Debug)]
#[must_use = "it counts until this is dropped"]
pub struct Clearing {
    throttle: Arc<RefillThrottle>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Clearing {
    fn drop(&mut self) {
        self.throttle.lock().clearing -= 1;
    }
}

impl RefillThrottle {
    /// A throttle without claims in flight.
    pub fn new(settings: RefillThrottleSettings) -> Arc<Self> {
        let turns = Arc::new(Semaphore::new((settings.cpus / 2).max(1)));
        Arc::new(Self { settings, state: Mutex::default(), turns })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a claim as in flight until the guard is dropped.
    pub fn claim(self: &Arc<Self>) -> ClaimGuard {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.claims.insert(number, Instant::now());
        drop(state);
        ClaimGuard { throttle: Arc::clone(self), number }
    }

    /// Asks for the right to create a container. `low` means that the pool is below its low-water mark. `hold` records
    /// since when the pool has been refused.
    ///
    /// # Errors
    /// The time to ask again.
    pub fn create(self: &Arc<Self>, low: bool, hold: &mut Hold) -> Result<Creating, Instant> {
        let now = Instant::now();
        let creating = self.try_create(now, low, hold.0);
        match &creating {
            Ok(_) => hold.forget(),
            Err(_) => drop(hold.0.get_or_insert(now)),
        }
        creating
    }

    fn try_create(self: &Arc<Self>, now: Instant, low: bool, held_since: Option<Instant>) -> Result<Creating, Instant> {
        let RefillThrottleSettings { quiet, max_hold, held_creations, cpus, .. } = self.settings;
        let mut state = self.lock();
        state.forget_old(now, max_hold);
        let open_at = state.open_at(now, quiet);
        let held_enough = held_since.is_some_and(|since| now.duration_since(since) >= max_hold);
        if open_at > now && !((low || held_enough) && state.creating < held_creations) {
            return Err(open_at);
        }
        // The number of creations at the same time is limited by each pool itself.
        let in_the_way = state.clearing > 0 && !state.has_room(cpus);
        if (in_the_way || std::mem::take(&mut state.overtaken)) && !held_enough {
            return Err(now + TURN);
        }
        state.creating += 1;
        drop(state);
        Ok(Creating { throttle: Arc::clone(self) })
    }

    /// Waits for the right to tear down a container, which has been waiting since `since`. `hurry` returns true when
    /// the teardown must not wait, because claims and creations need its lease.
    pub async fn clear(self: &Arc<Self>, since: Instant, hurry: impl Fn() -> bool) -> Clearing {
        // `acquire_owned` fails only on a closed semaphore; this one is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        loop {
            match self.try_clear(since, hurry()) {
                Ok(()) => return Clearing { throttle: Arc::clone(self), _turn: turn },
                // Polled rather than notified: jobs that end leave work to kernel threads, which need the pause.
                Err(again) => tokio::time::sleep_until(again).await,
            }
        }
    }

    fn try_clear(&self, since: Instant, hurry: bool) -> Result<(), Instant> {
        let RefillThrottleSettings { quiet, max_hold, max_hold_clearing, cpus, .. } = self.settings;
        let now = Instant::now();
        let mut state = self.lock();
        state.forget_old(now, max_hold);
        let open_at = state.open_at(now, quiet).min(since + max_hold_clearing);
        if open_at > now && !hurry {
            return Err(open_at);
        }
        if !state.has_room(cpus) && !hurry {
            state.overtaken = true;
            return Err(now + TURN);
        }
        state.overtaken = false;
        state.clearing += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Hold, RefillThrottle, RefillThrottleSettings, TURN};

    const QUIET: Duration = Duration::from_millis(5);
    const HOLD: Duration = Duration::from_millis(250);
    const CLEARING: Duration = Duration::from_secs(1);

    fn throttle() -> Arc<RefillThrottle> {
        on(2)
    }

    fn on(cpus: usize) -> Arc<RefillThrottle> {
        RefillThrottle::new(RefillThrottleSettings {
            quiet: QUIET,
            max_hold: HOLD,
            max_hold_clearing: CLEARING,
            held_creations: 1,
            cpus,
        })
    }

    /// Asks for the first time.
    fn create(throttle: &Arc<RefillThrottle>) -> Result<super::Creating, Instant> {
        throttle.create(false, &mut Hold::default())
    }

    /// The same for a pool that is low.
    fn create_low(throttle: &Arc<RefillThrottle>) -> Result<super::Creating, Instant> {
        throttle.create(true, &mut Hold::default())
    }

    /// How long somebody waits for the right to clear away.
    async fn clear(throttle: &Arc<RefillThrottle>, hurry: bool) -> (Duration, super::Clearing) {
        let since = Instant::now();
        let clearing = throttle.clear(since, || hurry).await;
        (since.elapsed(), clearing)
    }

    #[tokio::test(start_paused = true)]
    async fn without_claims_everything_goes() {
        let throttle = throttle();
        let all: Vec<_> = (0..10).map(|_| create(&throttle).unwrap()).collect();
        assert_eq!(throttle.lock().creating, 10);
        drop(all);
        assert_eq!(throttle.lock().creating, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn creating_waits_for_the_last_claim_and_a_moment_of_quiet() {
        let throttle = throttle();
        let (first, second) = (throttle.claim(), throttle.claim());
        assert!(create(&throttle).is_err());
        drop(first);
        advance(QUIET * 2).await;
        assert!(create(&throttle).is_err(), "one is still in flight");
        drop(second);
        assert_eq!(create(&throttle).unwrap_err(), Instant::now() + QUIET);
        advance(QUIET).await;
        assert!(create(&throttle).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_low_pool_goes_on_one_creation_at_a_time() {
        let throttle = throttle();
        let _claim = throttle.claim();
        let creating = create_low(&throttle).unwrap();
        assert!(create_low(&throttle).is_err(), "of all pools together");
        drop(creating);
        assert!(create_low(&throttle).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn claims_without_end_hold_a_pool_only_so_long() {
        let throttle = throttle();
        let mut hold = Hold::default();
        let mut claim = throttle.claim();
        let mut waited = Duration::ZERO;
        while throttle.create(false, &mut hold).is_err() {
            advance(Duration::from_millis(10)).await;
            waited += Duration::from_millis(10);
            claim = throttle.claim();
            assert!(waited <= HOLD, "starved");
        }
        assert_eq!(waited, HOLD);
        drop(claim);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_was_held_for_long_creates_one_and_makes_way_again() {
        let throttle = throttle();
        let mut hold = Hold::default();
        let mut times = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < HOLD * 4 {
            let claim = throttle.claim();
            if let Ok(creating) = throttle.create(false, &mut hold) {
                times.push(begun.elapsed());
                drop(creating);
            }
            advance(Duration::from_millis(1)).await;
            drop(claim);
        }
        assert_eq!(times, [HOLD, HOLD * 2 + Duration::from_millis(1), HOLD * 3 + Duration::from_millis(2)]);
        // Nor does it pass over those who clear away.
        advance(HOLD * 2).await;
        drop(throttle.create(false, &mut hold).unwrap());
        let (_, clearing) = clear(&throttle, false).await;
        assert!(throttle.create(false, &mut hold).is_err(), "it is the other's turn");
        drop(clearing);
        drop(throttle.create(false, &mut hold).unwrap());
        // What is no longer wanted was not held.
        let _claim = throttle.claim();
        assert!(throttle.create(false, &mut hold).is_err());
        hold.forget();
        advance(HOLD / 2).await;
        let _claim = throttle.claim();
        assert!(throttle.create(false, &mut hold).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_stays_silent_stops_counting() {
        let throttle = throttle();
        let silent = throttle.claim();
        advance(HOLD + QUIET - Duration::from_millis(1)).await;
        assert!(create(&throttle).is_err());
        advance(Duration::from_millis(1)).await;
        assert!(create(&throttle).is_ok());
        // Its end, much later, is no claim.
        drop(silent);
        assert!(create(&throttle).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn clearing_away_waits_for_claims_unless_they_wait_for_it() {
        let throttle = throttle();
        let claim = throttle.claim();
        assert_eq!(clear(&throttle, true).await.0, Duration::ZERO);
        let waits = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move { clear(&throttle, false).await.0 }
        });
        tokio::time::sleep(QUIET * 2).await;
        drop(claim);
        assert_eq!(waits.await.unwrap(), QUIET * 3, "until the last one, and a moment of quiet");
    }

    #[tokio::test(start_paused = true)]
    async fn claims_without_end_hold_clearing_away_only_so_long() {
        let throttle = throttle();
        let claims = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move {
                loop {
                    let _claim = throttle.claim();
                    tokio::time::sleep(QUIET).await;
                }
            }
        });
        tokio::task::yield_now().await;
        assert_eq!(clear(&throttle, false).await.0, CLEARING);
        claims.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn on_two_processors_it_is_one_after_the_other() {
        let throttle = throttle();
        let (_, clearing) = clear(&throttle, false).await;
        assert_eq!(create_low(&throttle).unwrap_err(), Instant::now() + TURN);
        let mut hold = Hold::default();
        assert!(throttle.create(true, &mut hold).is_err());
        advance(HOLD).await;
        drop(throttle.create(true, &mut hold).expect("it was held for long enough"));
        drop(clearing);
        let creating = create(&throttle).unwrap();
        let waits = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move { clear(&throttle, false).await }
        });
        tokio::task::yield_now().await;
        drop(creating);
        assert!(create(&throttle).is_err(), "it is the other's turn");
        let (waited, clearing) = waits.await.unwrap();
        assert_eq!(waited, TURN);
        assert!(create(&throttle).is_err());
        drop(clearing);
        assert!(create(&throttle).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_creation_without_end_is_not_waited_for_when_the_place_is_needed() {
        let throttle = throttle();
        let _creating = create(&throttle).unwrap();
        assert!(tokio::time::timeout(CLEARING * 2, clear(&throttle, false)).await.is_err());
        assert_eq!(clear(&throttle, true).await.0, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn many_processors_do_much_at_the_same_time_but_for_one() {
        let throttle = on(4);
        let (_, first) = clear(&throttle, false).await;
        let (_, second) = clear(&throttle, false).await;
        let creating = create(&throttle).unwrap();
        assert!(create(&throttle).is_err(), "the last one is for claims");
        drop((first, second, creating));
    }
}
