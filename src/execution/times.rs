//! When what happened to an execution, by the clock on the wall.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thaw_client::time::Timestamp;

use super::clock;
use super::state::Submitted;

/// When its command started and ended, and how long it has waited.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// When its first command started.
    started: Option<Timestamp>,
    /// When it ended.
    ended: Option<Timestamp>,
    /// All its waiting for a container but the present one.
    waited: Duration,
    /// Since when it waits now.
    waits_since: Option<Instant>,
}

/// The same for the next daemon.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Noted {
    #[serde(default)]
    started_at: Option<Timestamp>,
    #[serde(default)]
    queued_ms: u64,
}

impl Times {
    /// Of an execution of an earlier daemon.
    pub fn adopted(noted: Noted, command: Option<&Submitted>, ended: Option<Timestamp>) -> Self {
        let run = command.map(|command| clock::now().saturating_sub(command.since));
        Self {
            // Its command was noted before it ran.
            started: noted.started_at.or_else(|| run.map(|run| Timestamp::now().before(run))),
            ended,
            waited: Duration::from_millis(noted.queued_ms),
            waits_since: None,
        }
    }

    /// For the next daemon.
    pub fn noted(&self) -> Noted {
        Noted { started_at: self.started, queued_ms: self.queued_ms() }
    }

    /// It waits for a container.
    pub fn waits(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// It waits no longer.
    pub fn waits_no_longer(&mut self) {
        self.waited += self.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Its command runs, or another one does.
    pub fn starts(&mut self, now: Timestamp) {
        self.started.get_or_insert(now);
    }

    /// It has ended.
    pub fn ends(&mut self, now: Timestamp) {
        self.waits_no_longer();
        self.ended.get_or_insert(now);
    }

    /// When its first command started.
    pub fn started(&self) -> Option<Timestamp> {
        self.started
    }

    /// When it ended.
    pub fn ended(&self) -> Option<Timestamp> {
        self.ended
    }

    /// How long it has waited for a container, milliseconds.
    pub fn queued_ms(&self) -> u64 {
        let now = self.waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        u64::try_from((self.waited + now).as_millis()).unwrap_or(u64::MAX)
    }

    /// How long its command has run, or ran, milliseconds.
    pub fn run_ms(&self) -> u64 {
        let end = self.ended.unwrap_or_else(Timestamp::now).unix_ms();
        self.started.map_or(0, |started| end.saturating_sub(started.unix_ms()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_known_to_the_next_daemon() {
        let mut times = Times::default();
        times.waits();
        std::thread::sleep(Duration::from_millis(5));
        times.waits();
        times.waits_no_longer();
        let waited = times.queued_ms();
        assert!(waited >= 5);
        times.starts(Timestamp::from_unix_ms(1000));
        times.starts(Timestamp::from_unix_ms(2000));
        times.ends(Timestamp::from_unix_ms(3500));
        assert_eq!(
            (times.queued_ms(), times.run_ms()),
            (waited, 2500),
            "one that is asked again has run since the first"
        );
        let noted = serde_json::to_string(&times.noted()).unwrap();
        let adopted = Times::adopted(serde_json::from_str(&noted).unwrap(), None, times.ended());
        assert_eq!((adopted.queued_ms(), adopted.run_ms()), (waited, 2500));
        let earlier = Times::adopted(serde_json::from_str("{}").unwrap(), None, None);
        assert_eq!((earlier.queued_ms(), earlier.run_ms(), earlier.started()), (0, 0, None));
    }
}
