//! What happens in the daemon as a whole, for those who watch it: numbered events, the newest of which are kept.
//!
//! ```text
//! execution, pool ──publish──► feed: the last `api.events_kept` events ──► followers of GET /v1/events
//! ```
//!
//! Publishing takes a lock for a moment and never waits: a follower that is too slow misses events and is told so. Numbers
//! begin anew with each daemon, whose name stands in each id: a follower that comes from an earlier one is told that it
//! may have missed something. Deliberately absent: output of executions, which has a log of its own, and any state.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use thaw_client::time::Timestamp;
use thaw_client::types::{DaemonEvent, DaemonEventKind};

/// Where a follower is: it has seen everything up to this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(u64);

/// What a follower wants to see.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only these kinds; all when empty.
    pub kinds: Vec<DaemonEventKind>,
    /// Only this user's executions.
    pub user: Option<String>,
    /// Only of this provider.
    pub provider: Option<String>,
    /// Only of this execution.
    pub execution: Option<String>,
}

impl Wanted {
    fn fits(&self, event: &DaemonEvent) -> bool {
        let same = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && same(&self.user, &event.user)
            && same(&self.provider, &event.provider)
            && same(&self.execution, &event.execution)
    }
}

/// The events.
#[derive(Debug)]
pub struct Feed {
    /// Name of this daemon in ids.
    daemon: String,
    kept: usize,
    inner: Mutex<Inner>,
    /// Number of the last event.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<DaemonEvent>,
    /// Number of the last event.
    number: u64,
    closed: bool,
}

impl Feed {
    /// An empty one that keeps the last `kept` events.
    pub fn new(kept: usize) -> Self {
        let daemon = ulid::Ulid::new().to_string().to_lowercase();
        Self { daemon, kept, inner: Mutex::default(), last: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who follows.
    pub fn publish(&self, event: DaemonEvent) {
        let number = {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            while inner.events.len() >= self.kept {
                inner.events.pop_front();
            }
            inner.events.push_back(event);
            inner.number += 1;
            inner.number
        };
        self.last.send_replace(number);
    }

    /// No more will come: the daemon stops.
    pub fn close(&self) {
        self.lock().closed = true;
        self.last.send_modify(|_| {});
    }

    /// Behind the newest event.
    pub fn end(&self) -> Position {
        Position(self.lock().number)
    }

    /// Before the first event that is kept and did not happen before `since`.
    pub fn since(&self, since: Timestamp) -> Position {
        let inner = self.lock();
        let later = inner.events.iter().rev().take_while(|event| event.at >= since).count();
        Position(inner.number - later as u64)
    }

    /// Behind the event with this id. Of one of an earlier daemon, before everything that is kept, with a gap in front of
    /// it; `None` for what is no id.
    pub fn behind(&self, id: &str) -> Option<(Position, bool)> {
        let (daemon, number) = id.split_once('-')?;
        let number = number.parse::<u64>().ok()?;
        ulid::Ulid::from_string(daemon).ok()?;
        let inner = self.lock();
        let is_ours = daemon == self.daemon && number <= inner.number;
        let first = inner.number - inner.events.len() as u64;
        Some(if is_ours { (Position(number), false) } else { (Position(first), true) })
    }

    /// The id of the event at this position.
    pub fn id(&self, position: Position) -> String {
        format!("{}-{}", self.daemon, position.0)
    }

    /// The next event that is wanted, and its position, waiting for it; `None` when the daemon stops. A `gap` stands for
    /// events that are not kept any more, wanted or not.
    pub async fn next(&self, mut after: Position, wanted: &Wanted) -> Option<(Position, DaemonEvent)> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            {
                let inner = self.lock();
                let first = inner.number - inner.events.len() as u64;
                if after.0 < first {
                    return Some((Position(first), gap()));
                }
                let skip = usize::try_from(after.0 - first).unwrap_or(usize::MAX);
                let next = inner.events.iter().enumerate().skip(skip).find(|(_, event)| wanted.fits(event));
                if let Some((index, event)) = next {
                    return Some((Position(first + index as u64 + 1), event.clone()));
                }
                if inner.closed {
                    return None;
                }
                after = Position(inner.number);
            }
            // The sender lives as long as `self`.
            let _ = last.changed().await;
        }
    }
}

/// Says that events are missing.
pub fn gap() -> DaemonEvent {
    DaemonEvent::new(DaemonEventKind::Gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user: &str) -> DaemonEvent {
        DaemonEvent { user: Some(user.to_owned()), ..DaemonEvent::new(DaemonEventKind::ExecutionStarted) }
    }

    async fn users(feed: &Feed, mut after: Position, wanted: &Wanted) -> Vec<String> {
        let mut users = Vec::new();
        while let Some((position, event)) = feed.next(after, wanted).await {
            after = position;
            users.push(event.user.unwrap_or_else(|| "gap".to_owned()));
        }
        users
    }

    #[tokio::test]
    async fn followers_get_what_they_want_from_where_they_were() {
        let feed = Feed::new(3);
        let begin = feed.end();
        for user in ["a", "b", "a"] {
            feed.publish(of(user));
        }
        let second = feed.next(begin, &Wanted::default()).await.unwrap().0;
        let resumed = feed.behind(&feed.id(second)).unwrap();
        assert_eq!(resumed, (second, false));
        feed.publish(of("c"));
        feed.close();
        feed.publish(of("too late"));
        let all = Wanted::default();
        assert_eq!(users(&feed, begin, &all).await, ["gap", "b", "a", "c"], "three are kept");
        assert_eq!(users(&feed, second, &all).await, ["b", "a", "c"]);
        let of_a = Wanted { user: Some("a".to_owned()), ..Wanted::default() };
        assert_eq!(users(&feed, second, &of_a).await, ["a"]);
        let gaps = Wanted { kinds: vec![DaemonEventKind::PoolChanged], ..Wanted::default() };
        assert!(users(&feed, second, &gaps).await.is_empty());
        assert_eq!(users(&feed, feed.since(Timestamp::from_unix_ms(0)), &all).await, ["b", "a", "c"]);
        assert!(users(&feed, feed.end(), &all).await.is_empty());
    }

    #[test]
    fn an_id_of_an_earlier_daemon_is_known_as_one() {
        let (earlier, feed) = (Feed::new(2), Feed::new(2));
        for _ in 0..3 {
            earlier.publish(of("a"));
            feed.publish(of("a"));
        }
        assert_eq!(feed.behind(&earlier.id(earlier.end())), Some((Position(1), true)));
        assert_eq!(feed.behind(&format!("{}-99", feed.daemon)), Some((Position(1), true)), "one that is still to come");
        for bad in ["", "7", "x-1", "01kb9w3v0v6p7x2c4m5n8q9r0s", "01kb9w3v0v6p7x2c4m5n8q9r0s-x"] {
            assert_eq!(feed.behind(bad), None, "{bad}");
        }
    }
}
