//! Who reads the output of an execution, and how far each of them is.

use std::collections::BTreeMap;

/// A place in the two streams: the sum of the charges of all output before it, of standard output and standard error.
pub type Position = [u64; 2];

/// The readers that exist now.
#[derive(Debug, Default)]
pub struct Followers {
    next: u64,
    known: BTreeMap<u64, Follower>,
}

#[derive(Debug)]
struct Follower {
    /// What it has taken of each stream; `None` for one that it does not read.
    taken: [Option<u64>; 2],
    /// It has taken nothing for so long that nobody waits for it, until it takes something again.
    stalled: bool,
}

impl Followers {
    /// Somebody new, who has taken nothing yet. Until it is known which stream is read and from where, both are taken to
    /// be read from the beginning: nothing may be dropped between the start of a command and the first look at it.
    pub fn join(&mut self) -> u64 {
        self.next += 1;
        self.known.insert(self.next, Follower { taken: [Some(0); 2], stalled: false });
        self.next
    }

    /// It reads no more.
    pub fn leave(&mut self, follower: u64) {
        self.known.remove(&follower);
    }

    /// It has taken this much of each stream that it reads. Returns whether that is something new.
    pub fn took(&mut self, follower: u64, taken: [Option<u64>; 2]) -> bool {
        let Some(follower) = self.known.get_mut(&follower) else { return false };
        let new = follower.taken != taken;
        if new {
            follower.taken = taken;
            follower.stalled = false;
        }
        new
    }

    /// Nobody has taken anything for so long that nobody is waited for.
    pub fn stall(&mut self) {
        for follower in self.known.values_mut() {
            follower.stalled = true;
        }
    }

    /// What the fastest reader of a stream has taken of it, if there is one to wait for.
    pub fn fastest(&self, stream: usize) -> Option<u64> {
        self.known.values().filter(|follower| !follower.stalled).filter_map(|follower| follower.taken[stream]).max()
    }
}

#[cfg(test)]
mod tests {
    use super::Followers;

    #[test]
    fn each_stream_has_its_own_readers() {
        let mut followers = Followers::default();
        let (out, err) = (followers.join(), followers.join());
        assert_eq!((followers.fastest(0), followers.fastest(1)), (Some(0), Some(0)), "they may want everything");
        assert!(followers.took(out, [Some(5), None]));
        assert!(followers.took(err, [None, Some(900)]));
        assert_eq!((followers.fastest(0), followers.fastest(1)), (Some(5), Some(900)));
    }

    #[test]
    fn the_fastest_that_is_left_and_has_not_stalled_counts() {
        let mut followers = Followers::default();
        let (slow, fast) = (followers.join(), followers.join());
        followers.took(slow, [Some(1), Some(1)]);
        followers.took(fast, [Some(9), Some(9)]);
        assert_eq!(followers.fastest(0), Some(9));
        followers.stall();
        assert_eq!(followers.fastest(0), None);
        assert!(!followers.took(fast, [Some(9), Some(9)]), "asking again is not taking");
        assert!(followers.took(slow, [Some(2), Some(2)]));
        assert_eq!(followers.fastest(0), Some(2), "the one that goes on, although it is behind");
        followers.took(fast, [Some(10), Some(9)]);
        assert_eq!(followers.fastest(0), Some(10));
        followers.leave(fast);
        assert_eq!(followers.fastest(0), Some(2));
        followers.leave(slow);
        assert!(!followers.took(slow, [Some(3), None]) && followers.fastest(0).is_none());
    }
}
