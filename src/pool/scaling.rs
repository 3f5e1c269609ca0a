//! Target of a pool: how many warm containers it should have. Pure decisions from observations; no clock, no
//! containers.
//!
//! The target moves up when more requests wait than [`Rules::queue`], or when too small a share of the claims of the
//! last [`Rules::window`] found a warm container. It moves down when more than [`Rules::idle`] containers were not
//! needed for [`Rules::idle_for`]. It always stays between a minimum and a maximum; a pool whose two bounds are equal
//! is fixed.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// When a target changes; see `[pool]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Number of requests that may wait without a step up.
    pub queue: usize,
    /// Share of claims that have to find a warm container, percent.
    pub hit_percent: u32,
    /// Time for which claims are remembered.
    pub window: Duration,
    /// Number of warm containers that may stay idle.
    pub idle: usize,
    /// Time for which more than [`Rules::idle`] containers have to be idle before a step down.
    pub idle_for: Duration,
}

/// Fewest claims in a window from which a share is computed.
const ENOUGH_CLAIMS: usize = 5;

/// Shortest time between two steps up: the containers of the last step have to exist before the next decision.
const STEP: Duration = Duration::from_secs(1);

/// Bounds of a pool's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Lowest target.
    pub min: usize,
    /// Highest target.
    pub max: usize,
    /// Whether the target moves at all.
    pub scaling: bool,
}

/// Observation of a pool at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// Number of containers that are frozen and claimable.
    pub warm: usize,
    /// Number of requests that wait for a container of this pool.
    pub queued: usize,
}

/// Why a target was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Number of requests that were waiting.
    Queue(usize),
    /// Share of claims that found a warm container, percent; and the number of claims.
    Hits(u32, usize),
    /// Number of containers that were idle all the time.
    Idle(usize),
}

impl Reason {
    /// Value of the metric's label `reason`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Queue(_) => "queue",
            Self::Hits(..) => "hit_rate",
            Self::Idle(_) => "idle",
        }
    }
}

/// A changed target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Target before.
    pub from: usize,
    /// Target from now on.
    pub to: usize,
    /// Why the target changed.
    pub reason: Reason,
    rules: RulesShown,
}

/// The rules that were crossed, for the log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RulesShown {
    queue: usize,
    hit_percent: u32,
    idle: usize,
    seconds: u64,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, reason, rules } = self;
        let direction = if to > from { "up" } else { "down" };
        write!(f, "{direction} from {from} to {to}: ")?;
        match reason {
            Reason::Queue(waiting) => write!(f, "{waiting} requests were waiting, more than {}", rules.queue),
            Reason::Hits(percent, claims) => {
                write!(f, "{percent} % of {claims} claims found a warm container, less than {} %", rules.hit_percent)
            }
            Reason::Idle(idle) => {
                write!(f, "{idle} were idle for {} s, more than {}", rules.seconds, rules.idle)
            }
        }
    }
}

/// The target of one pool, and the observations it is decided from.
#[derive(Debug)]
pub struct Scaler {
    rules: Rules,
    bounds: Bounds,
    target: usize,
    /// Claims within the window: when, and whether each found a warm container.
    claims: VecDeque<(Instant, bool)>,
    last_up: Option<Instant>,
    /// Start of the idle time and the fewest warm containers since then; `None` while no more are warm than may be
    /// idle.
    spare: Option<(Instant, usize)>,
}

impl Scaler {
    /// Starts at `target`, moved into the bounds.
    pub fn new(rules: Rules, bounds: Bounds, target: usize) -> Self {
        let mut this = Self { rules, bounds, target, claims: VecDeque::new(), last_up: None, spare: None };
        this.set(bounds, target);
        this
    }

    /// Warm containers wanted.
    pub fn target(&self) -> usize {
        self.target
    }

    /// The bounds.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether the target can move by itself.
    pub fn is_scaling(&self) -> bool {
        // A target of 0 is an operator's wish for no warm containers: a request must not change it.
        self.bounds.scaling && self.bounds.min < self.bounds.max && self.target > 0
    }

    /// Resets target and bounds, and forgets all observations.
    pub fn set(&mut self, bounds: Bounds, target: usize) {
        self.bounds = bounds;
        self.target = if bounds.scaling && target > 0 { target.clamp(bounds.min, bounds.max) } else { target };
        self.claims.clear();
        self.last_up = None;
        self.spare = None;
    }

    /// Records a claim and whether it found a warm container.
    pub fn claimed(&mut self, now: Instant, warm: bool) {
        if self.is_scaling() {
            self.claims.push_back((now, warm));
            self.forget_old(now);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.claims.front().is_some_and(|(at, _)| now.duration_since(*at) > self.rules.window) {
            self.claims.pop_front();
        }
    }

    /// Decides from an observation; returns the decision if the target changed.
    pub fn decide(&mut self, now: Instant, observed: Observed) -> Option<Decision> {
        if !self.is_scaling() {
            return None;
        }
        self.note_idle(now, observed.warm);
        self.forget_old(now);
        let (to, reason) = self.up(now, observed.queued).or_else(|| self.down(now))?;
        let from = std::mem::replace(&mut self.target, to);
        let Rules { queue, hit_percent, idle, idle_for, .. } = self.rules;
        Some(Decision { from, to, reason, rules: RulesShown { queue, hit_percent, idle, seconds: idle_for.as_secs() } })
    }

    fn up(&mut self, now: Instant, queued: usize) -> Option<(usize, Reason)> {
        if self.target >= self.bounds.max || self.last_up.is_some_and(|last| now.duration_since(last) < STEP) {
            return None;
        }
        let reason = if queued > self.rules.queue { Reason::Queue(queued) } else { self.too_few_hits()? };
        let step = match reason {
            // With this many more containers, all waiting requests would have been served.
            Reason::Queue(waiting) => waiting,
            _ => (self.target / 4).max(1),
        };
        self.last_up = Some(now);
        // Misses before this step say nothing about the new target.
        self.claims.clear();
        self.spare = None;
        Some(((self.target + step).min(self.bounds.max), reason))
    }

    fn too_few_hits(&self) -> Option<Reason> {
        let claims = self.claims.len();
        let hits = self.claims.iter().filter(|(_, warm)| *warm).count();
        let percent = (hits * 100).checked_div(claims)? as u32;
        (claims >= ENOUGH_CLAIMS && percent < self.rules.hit_percent).then_some(Reason::Hits(percent, claims))
    }

    fn note_idle(&mut self, now: Instant, warm: usize) {
        self.spare = match self.spare {
            _ if warm <= self.rules.idle => None,
            None => Some((now, warm)),
            Some((since, fewest)) => Some((since, fewest.min(warm))),
        };
    }

    fn down(&mut self, now: Instant) -> Option<(usize, Reason)> {
        let (since, fewest) = self.spare?;
        if now.duration_since(since) < self.rules.idle_for || self.target <= self.bounds.min {
            return None;
        }
        self.spare = None;
        let to = self.target.saturating_sub(fewest - self.rules.idle).max(self.bounds.min);
        Some((to, Reason::Idle(fewest)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Bounds, Observed, Reason, Rules, Scaler};

    const MINUTE: Duration = Duration::from_secs(60);
    const BOUNDS: Bounds = Bounds { min: 5, max: 50, scaling: true };

    fn rules() -> Rules {
        Rules { queue: 3, hit_percent: 80, window: MINUTE, idle: 5, idle_for: MINUTE * 10 }
    }

    fn scaler(target: usize) -> Scaler {
        Scaler::new(rules(), BOUNDS, target)
    }

    fn look(scaler: &mut Scaler, warm: usize, queued: usize) -> Option<(usize, Reason)> {
        scaler.decide(Instant::now(), Observed { warm, queued }).map(|decision| (decision.to, decision.reason))
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_of_more_than_three_grows_it_by_as_many() {
        let mut scaler = scaler(10);
        assert_eq!(look(&mut scaler, 0, 3), None, "three may wait");
        assert_eq!(look(&mut scaler, 0, 4), Some((14, Reason::Queue(4))));
        assert_eq!(look(&mut scaler, 0, 4), None, "those are the same that were waiting just now");
        advance(Duration::from_secs(1)).await;
        assert_eq!(look(&mut scaler, 0, 100), Some((50, Reason::Queue(100))), "not above the host's limit");
        advance(MINUTE).await;
        assert_eq!(look(&mut scaler, 0, 100), None);
    }

    #[tokio::test(start_paused = true)]
    async fn misses_grow_it_by_a_quarter() {
        let mut scaler = scaler(20);
        for number in 0..10 {
            scaler.claimed(Instant::now(), number < 8);
        }
        assert_eq!(look(&mut scaler, 0, 0), None, "80 % is enough");
        scaler.claimed(Instant::now(), false);
        let decision = scaler.decide(Instant::now(), Observed { warm: 0, queued: 0 }).unwrap();
        assert_eq!((decision.from, decision.to, decision.reason), (20, 25, Reason::Hits(72, 11)));
        let text = "up from 20 to 25: 72 % of 11 claims found a warm container, less than 80 %";
        assert_eq!(decision.to_string(), text);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_misses_prove_nothing_and_old_ones_are_forgotten() {
        let mut scaler = scaler(10);
        for _ in 0..4 {
            scaler.claimed(Instant::now(), false);
        }
        assert_eq!(look(&mut scaler, 0, 0), None, "four claims are too few");
        advance(MINUTE + Duration::from_secs(1)).await;
        scaler.claimed(Instant::now(), false);
        assert_eq!(look(&mut scaler, 0, 0), None, "the four are older than the window");
        assert_eq!(scaler.claims.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_five_idle_for_ten_minutes_shrink_it() {
        let mut scaler = scaler(20);
        assert_eq!(look(&mut scaler, 20, 0), None);
        advance(MINUTE * 5).await;
        assert_eq!(look(&mut scaler, 9, 0), None, "eleven were needed for a moment");
        advance(MINUTE * 5 - Duration::from_secs(1)).await;
        assert_eq!(look(&mut scaler, 20, 0), None, "not ten minutes yet");
        advance(Duration::from_secs(1)).await;
        assert_eq!(look(&mut scaler, 20, 0), Some((16, Reason::Idle(9))), "nine were never needed, five may be idle");
        advance(MINUTE * 10).await;
        assert_eq!(look(&mut scaler, 16, 0), None, "its time begins anew");
        advance(MINUTE * 10).await;
        assert_eq!(look(&mut scaler, 16, 0), Some((5, Reason::Idle(16))));
        advance(MINUTE * 20).await;
        assert_eq!(look(&mut scaler, 6, 0), None);
        advance(MINUTE * 20).await;
        assert_eq!(look(&mut scaler, 6, 0), None, "not below the minimum");
    }

    #[tokio::test(start_paused = true)]
    async fn five_idle_ones_are_left_alone() {
        let mut scaler = scaler(10);
        assert_eq!(look(&mut scaler, 10, 0), None);
        advance(MINUTE * 9).await;
        assert_eq!(look(&mut scaler, 5, 0), None, "five in use: the ten minutes begin anew");
        for _ in 0..9 {
            assert_eq!(look(&mut scaler, 10, 0), None);
            advance(MINUTE).await;
        }
        assert_eq!(look(&mut scaler, 10, 0), None);
        advance(MINUTE).await;
        assert_eq!(look(&mut scaler, 10, 0), Some((5, Reason::Idle(10))));
    }

    #[tokio::test(start_paused = true)]
    async fn demand_goes_before_idleness() {
        let mut scaler = scaler(10);
        look(&mut scaler, 10, 0);
        advance(MINUTE * 10).await;
        assert_eq!(look(&mut scaler, 10, 4), Some((14, Reason::Queue(4))));
        assert_eq!(look(&mut scaler, 10, 0), None, "and the ten minutes begin anew");
    }

    #[tokio::test(start_paused = true)]
    async fn fixed_means_fixed() {
        let fixed = [
            (Bounds { min: 10, max: 10, scaling: true }, 10),
            (Bounds { min: 5, max: 50, scaling: false }, 2),
            (Bounds { min: 5, max: 50, scaling: true }, 0),
        ];
        for (bounds, target) in fixed {
            let mut scaler = Scaler::new(rules(), bounds, target);
            assert!(!scaler.is_scaling());
            for _ in 0..20 {
                scaler.claimed(Instant::now(), false);
            }
            assert_eq!(look(&mut scaler, 0, 100), None);
            advance(MINUTE * 20).await;
            assert_eq!(look(&mut scaler, 50, 0), None);
            assert_eq!((scaler.target(), scaler.claims.len()), (target, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_is_moved_into_the_bounds() {
        assert_eq!((scaler(1).target(), scaler(100).target()), (5, 50));
        let mut scaler = scaler(10);
        scaler.set(Bounds { min: 20, max: 30, scaling: true }, 10);
        assert_eq!((scaler.target(), scaler.bounds().max), (20, 30));
    }
}
