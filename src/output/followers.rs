//! Readers of an execution's output: how far each has read, and which of them the command waits for.
//!
//! A command waits for every reader that is too far behind. It waits for a connected reader until that has read nothing
//! for [`Patience::stall`], and for a reader that went away until [`Patience::away`] has passed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Position in the log: the sum of the charges of all events before it, bytes.
pub type Position = u64;

/// Most readers that are away and remembered one by one. Beyond that, the last two are merged.
const MAX_AWAY: usize = 16;

/// Bytes that a reader must have read to count as proven, that is, as one that does read: more than the buffers of its
/// connection hold.
const PROOF_BYTES: u64 = 1 << 20;

/// How long a command waits for an unproven reader while a proven one keeps up.
const UNPROVEN_PATIENCE: Duration = Duration::from_millis(20);

/// What a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Every event.
    Events,
    /// The bytes of standard output (0) or standard error (1).
    Stream(usize),
    /// Only output that is still to come.
    Future,
}

/// End of the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tail {
    /// Position after the last event.
    pub end: Position,
    /// Positions after the last event with standard output, and with standard error.
    pub streams: [Position; 2],
}

/// How long a command waits for a reader.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time for a connected reader that reads nothing.
    pub stall: Duration,
    /// Time for a reader that went away.
    pub away: Duration,
}

/// The readers of a log.
#[derive(Debug, Default)]
pub struct Followers {
    next: u64,
    present: BTreeMap<u64, Follower>,
    away: Vec<Away>,
}

#[derive(Debug)]
struct Follower {
    reads: Reads,
    /// Position up to which the reader has read everything.
    taken: Position,
    /// Position at which the reader began; `None` before its first read.
    begun: Option<Position>,
    /// Time since which the command has been waiting for this reader; `None` while it does not wait.
    waited_for_since: Option<Instant>,
    /// Whether the reader has read nothing for so long that the command no longer waits for it. Its next read resets
    /// this.
    stalled: bool,
}

#[derive(Debug)]
struct Away {
    reads: Reads,
    taken: Position,
    /// Time until which the command waits for the reader to come back.
    until: Instant,
}

impl Follower {
    fn is_proven(&self) -> bool {
        self.begun.is_some_and(|begun| self.taken.saturating_sub(begun) > PROOF_BYTES)
    }
}

impl Tail {
    fn unread(&self, reads: Reads, taken: Position) -> u64 {
        let wanted = match reads {
            Reads::Events => true,
            Reads::Stream(stream) => self.streams[stream] > taken,
            Reads::Future => false,
        };
        if wanted { self.end.saturating_sub(taken) } else { 0 }
    }
}

impl Followers {
    /// Adds a reader that has read nothing after `begin`, the begin of the log. Until its first read shows what it
    /// reads and from where, it counts as reading everything: nothing may be dropped between the start of a command and
    /// that read.
    pub fn join(&mut self, begin: Position) -> u64 {
        self.next += 1;
        let follower =
            Follower { reads: Reads::Events, taken: begin, begun: None, waited_for_since: None, stalled: false };
        self.present.insert(self.next, follower);
        self.next
    }

    /// The reader's connection has ended. The command waits until `until` for it to return, unless the reader had
    /// stalled.
    pub fn leave(&mut self, follower: u64, until: Instant) {
        let Some(Follower { reads, taken, stalled, .. }) = self.present.remove(&follower) else { return };
        if !stalled && reads != Reads::Future {
            self.miss(Away { reads, taken, until });
        }
    }

    /// Restores the readers of an earlier daemon, `readers` of them, which have all read everything before `taken`.
    pub fn restore(&mut self, readers: u64, taken: Position, until: Instant) {
        for _ in 0..readers.min(MAX_AWAY as u64) {
            self.miss(Away { reads: Reads::Events, taken, until });
        }
    }

    fn miss(&mut self, away: Away) {
        let is_full = self.away.len() >= MAX_AWAY;
        match self.away.last_mut() {
            Some(last) if is_full => {
                let reads = if last.reads == away.reads { away.reads } else { Reads::Events };
                *last = Away { reads, taken: last.taken.min(away.taken), until: last.until.max(away.until) };
            }
            _ => self.away.push(away),
        }
    }

    /// Records that a reader has read everything before `taken`. Returns whether that is new.
    pub fn took(&mut self, follower: u64, reads: Reads, taken: Position) -> bool {
        let Some(follower) = self.present.get_mut(&follower) else { return false };
        let new = follower.begun.is_none() || follower.reads != reads || follower.taken != taken;
        if new {
            (follower.reads, follower.taken) = (reads, taken);
            (follower.stalled, follower.waited_for_since) = (false, None);
        }
        if follower.begun.is_none() && reads != Reads::Future {
            follower.begun = Some(taken);
            // A new reader replaces one that was away: the one that reads the same and was nearest.
            let likeness = |away: &Away| (away.reads != reads, away.taken.abs_diff(taken));
            let back = self.away.iter().enumerate().min_by_key(|(_, away)| likeness(away)).map(|(index, _)| index);
            back.map(|index| self.away.swap_remove(index));
        }
        new
    }

    /// Whether no reader is connected.
    pub fn is_alone(&self) -> bool {
        self.present.is_empty()
    }

    /// Number of readers that a command waits for, and the position up to which all of them have read.
    pub fn waited_for(&self) -> (u64, Position) {
        let present = self.present.values().filter(|follower| !follower.stalled && follower.reads != Reads::Future);
        let taken = present.map(|follower| follower.taken).chain(self.away.iter().map(|away| away.taken));
        taken.fold((0, Position::MAX), |(count, least), taken| (count + 1, least.min(taken)))
    }

    /// Time until which the command has to wait if no reader reads, because one has more than `limit` bytes unread.
    /// Marks readers as stalled that the command has waited for long enough.
    pub fn waits_until(&mut self, now: Instant, tail: Tail, limit: u64, patience: Patience) -> Option<Instant> {
        self.away.retain(|away| now < away.until);
        let mut first: Option<Instant> = None;
        let mut wait = |until: Instant| first = Some(first.map_or(until, |first| first.min(until)));
        for away in self.away.iter().filter(|away| tail.unread(away.reads, away.taken) > limit) {
            wait(away.until);
        }
        let behind = |follower: &Follower| tail.unread(follower.reads, follower.taken) > limit;
        let is_read = self.present.values().any(|follower| follower.is_proven() && !behind(follower));
        for follower in self.present.values_mut().filter(|follower| !follower.stalled) {
            if !behind(follower) {
                follower.waited_for_since = None;
                continue;
            }
            let patience =
                if is_read && !follower.is_proven() { UNPROVEN_PATIENCE.min(patience.stall) } else { patience.stall };
            let until = *follower.waited_for_since.get_or_insert(now) + patience;
            if now < until {
                wait(until);
            } else {
                follower.stalled = true;
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { stall: Duration::from_secs(1), away: Duration::from_secs(60) };

    fn tail(end: Position) -> Tail {
        Tail { end, streams: [end, 0] }
    }

    /// For how many seconds after `now` the command waits.
    fn waits(followers: &mut Followers, now: Instant, tail: Tail) -> Option<u64> {
        followers.waits_until(now, tail, 10, PATIENCE).map(|until| (until - now).as_secs())
    }

    #[test]
    fn a_command_waits_for_the_slowest_that_takes_something() {
        let now = Instant::now();
        let mut followers = Followers::default();
        let (slow, fast) = (followers.join(0), followers.join(0));
        assert_eq!(waits(&mut followers, now, tail(11)), Some(1), "nobody has looked yet");
        followers.took(fast, Reads::Events, 11);
        assert_eq!(waits(&mut followers, now, tail(11)), Some(1), "one has not");
        followers.took(slow, Reads::Events, 1);
        assert_eq!(waits(&mut followers, now, tail(11)), None);
        assert_eq!(waits(&mut followers, now, tail(20)), Some(1));
        let later = now + PATIENCE.stall;
        assert!(!followers.took(slow, Reads::Events, 1), "asking again is not taking");
        assert_eq!(waits(&mut followers, later, tail(20)), None, "it takes nothing");
        assert!(followers.took(slow, Reads::Events, 2));
        assert_eq!(waits(&mut followers, later, tail(20)), Some(1), "it takes something again");
        followers.took(slow, Reads::Events, 20);
        assert_eq!(followers.waited_for(), (2, 11));
    }

    #[test]
    fn who_never_reads_hardly_holds_up_one_who_does() {
        let now = Instant::now();
        let mut followers = Followers::default();
        let (stalled, reader) = (followers.join(0), followers.join(0));
        followers.took(stalled, Reads::Events, 300_000);
        followers.took(reader, Reads::Events, 0);
        followers.took(reader, Reads::Events, PROOF_BYTES + 1);
        let end = tail(PROOF_BYTES + 2);
        assert_eq!(followers.waits_until(now, end, 10, PATIENCE), Some(now + UNPROVEN_PATIENCE));
        assert_eq!(followers.waits_until(now + UNPROVEN_PATIENCE, end, 10, PATIENCE), None);
        followers.leave(reader, now);
        followers.took(stalled, Reads::Events, 400_000);
        assert_eq!(followers.waits_until(now, end, 10, PATIENCE), Some(now + PATIENCE.stall), "it is alone now");
    }

    #[test]
    fn who_went_away_is_waited_for_until_it_should_be_back() {
        let now = Instant::now();
        let mut followers = Followers::default();
        let reader = followers.join(0);
        followers.took(reader, Reads::Events, 5);
        followers.leave(reader, now + PATIENCE.away);
        assert!(followers.is_alone());
        assert_eq!(followers.waited_for(), (1, 5));
        assert_eq!(waits(&mut followers, now, tail(15)), None);
        assert_eq!(waits(&mut followers, now, tail(16)), Some(60));
        let again = followers.join(0);
        followers.took(again, Reads::Events, 4);
        assert_eq!(followers.waited_for(), (1, 4), "it is back");
        followers.leave(again, now + PATIENCE.away);
        assert_eq!(waits(&mut followers, now + PATIENCE.away, tail(16)), None, "it does not come back");
        assert_eq!(followers.waited_for(), (0, Position::MAX));
    }

    #[test]
    fn each_that_comes_back_takes_the_place_of_the_one_that_it_was() {
        let now = Instant::now();
        let mut followers = Followers::default();
        followers.restore(1, 100, now + PATIENCE.away);
        let (raw, events) = (followers.join(0), followers.join(0));
        followers.took(raw, Reads::Stream(0), 50);
        followers.took(events, Reads::Events, 30);
        for reader in [raw, events] {
            followers.leave(reader, now + PATIENCE.away);
        }
        assert_eq!(followers.waited_for(), (2, 30));
        let back = followers.join(0);
        followers.took(back, Reads::Stream(0), 31);
        assert_eq!(followers.away[0].reads, Reads::Events, "the other one is still away");
        assert_eq!(followers.waited_for(), (2, 30));
    }

    #[test]
    fn who_reads_one_stream_or_the_future_misses_nothing_else() {
        let now = Instant::now();
        let mut followers = Followers::default();
        let (err, dreamer) = (followers.join(0), followers.join(0));
        followers.took(err, Reads::Stream(1), 0);
        followers.took(dreamer, Reads::Future, 0);
        assert_eq!(waits(&mut followers, now, tail(100)), None, "there is no standard error");
        assert_eq!(waits(&mut followers, now, Tail { end: 100, streams: [90, 100] }), Some(1));
        assert_eq!(followers.waited_for(), (1, 0));
        followers.leave(dreamer, now + PATIENCE.away);
        assert_eq!(followers.waited_for(), (1, 0));
    }

    #[test]
    fn any_number_may_be_away() {
        let now = Instant::now();
        let mut followers = Followers::default();
        for taken in 0..100 {
            let reader = followers.join(0);
            followers.present.get_mut(&reader).unwrap().taken = 200 - taken;
            followers.leave(reader, now + PATIENCE.away);
        }
        assert_eq!(followers.waited_for(), (MAX_AWAY as u64, 101));
        followers.restore(1_000_000, 7, now);
        assert_eq!(followers.away.len(), MAX_AWAY);
    }
}
