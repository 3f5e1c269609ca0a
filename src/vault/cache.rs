//! Encrypted records in memory, so that a claim does not wait for a disk: those that were used last, up to a size.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::rows::Stored;

/// Users by name, and the order in which they were used.
#[derive(Debug)]
pub struct Cache {
    users: HashMap<String, (u64, Arc<Stored>)>,
    /// By the number of their last use.
    order: BTreeMap<u64, String>,
    next: u64,
    bytes: usize,
    most_bytes: usize,
    /// Users who are being changed: only the database knows how they are.
    unknown: HashSet<String>,
    /// Whether whoever is neither here nor unknown has nothing.
    is_complete: bool,
    /// Grows with each change, so that what was read before is not put over it.
    epoch: u64,
}

/// What is known of a user.
#[derive(Debug)]
pub enum Lookup {
    /// Everything.
    Known(Arc<Stored>),
    /// That there is nothing.
    Nothing,
    /// Nothing at all; what is read from the database may be put in with this number.
    Unknown(u64),
}

impl Cache {
    /// Empty, for at most so many bytes.
    pub fn new(most_bytes: usize) -> Self {
        Self {
            users: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            bytes: 0,
            most_bytes,
            unknown: HashSet::new(),
            is_complete: false,
            epoch: 0,
        }
    }

    /// Everybody who has something was put in.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    /// What is known of a user.
    pub fn get(&mut self, user: &str) -> Lookup {
        let Some((number, stored)) = self.users.get_mut(user) else {
            let is_known = self.is_complete && !self.unknown.contains(user);
            return if is_known { Lookup::Nothing } else { Lookup::Unknown(self.epoch) };
        };
        self.order.remove(number);
        *number = self.next;
        self.order.insert(self.next, user.to_owned());
        self.next += 1;
        Lookup::Known(Arc::clone(stored))
    }

    /// Remembers a user as read from the database, unless somebody was changed meanwhile.
    pub fn put_read(&mut self, stored: Arc<Stored>, epoch: u64) {
        if self.epoch == epoch {
            self.put(stored);
        }
    }

    /// Remembers a user instead of what was known before, and forgets others who were not used for the longest time.
    pub fn put(&mut self, stored: Arc<Stored>) {
        let user = stored.user.name.clone();
        self.remove(&user);
        self.bytes += stored.bytes();
        self.order.insert(self.next, user.clone());
        self.users.insert(user, (self.next, stored));
        self.next += 1;
        while self.bytes > self.most_bytes {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = oldest.clone();
            self.take_out(&oldest);
            self.is_complete = false;
        }
    }

    /// The user is about to be changed: until [`Self::put`] or [`Self::remove`], only the database knows.
    pub fn forget(&mut self, user: &str) {
        self.epoch += 1;
        self.take_out(user);
        self.unknown.insert(user.to_owned());
    }

    /// The user has nothing any more.
    pub fn remove(&mut self, user: &str) {
        self.epoch += 1;
        self.take_out(user);
        self.unknown.remove(user);
    }

    /// Notes that a credential was used, which is written down.
    pub fn note_use(&mut self, user: &str, provider: &str, at_ms: u64) {
        let Some((_, stored)) = self.users.get_mut(user) else { return };
        let row = Arc::make_mut(stored).credentials.iter_mut().find(|row| row.provider == provider);
        if let Some(row) = row {
            row.used_at_ms = row.used_at_ms.max(i64::try_from(at_ms).ok());
        }
    }

    fn take_out(&mut self, user: &str) {
        if let Some((number, stored)) = self.users.remove(user) {
            self.order.remove(&number);
            self.bytes -= stored.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Cache, Lookup};
    use crate::vault::rows::{Stored, User};

    fn stored(name: &str) -> Arc<Stored> {
        let user = User {
            name: name.to_owned(),
            key_id: String::new(),
            master_key: String::new(),
            wrapped_key: Vec::new(),
            entries: vec![0; 488],
            revision: 1,
            created_at_ms: 0,
        };
        Arc::new(Stored { user, credentials: Vec::new() })
    }

    fn has(cache: &mut Cache, user: &str) -> bool {
        matches!(cache.get(user), Lookup::Known(_))
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_is_forgotten_first() {
        let mut cache = Cache::new(3_000);
        for name in ["a", "b", "c"] {
            cache.put(stored(name));
        }
        cache.complete();
        assert!(has(&mut cache, "a") && matches!(cache.get("x"), Lookup::Nothing));
        cache.put(stored("d"));
        assert!(matches!(cache.get("b"), Lookup::Unknown(_)), "it has something, which is not here");
        assert!(has(&mut cache, "a") && has(&mut cache, "c") && has(&mut cache, "d"));
        cache.put(stored("a"));
        cache.remove("c");
        assert_eq!((cache.bytes, cache.users.len(), cache.order.len()), (2_000, 2, 2));
        let mut none = Cache::new(0);
        none.put(stored("a"));
        assert!(!has(&mut none, "a") && none.bytes == 0);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_put_over_it() {
        let mut cache = Cache::new(3_000);
        cache.complete();
        cache.put(stored("a"));
        cache.forget("a");
        let Lookup::Unknown(epoch) = cache.get("a") else { panic!("it is being changed") };
        cache.remove("a");
        cache.put_read(stored("a"), epoch);
        assert!(matches!(cache.get("a"), Lookup::Nothing), "it was removed meanwhile");
        cache.forget("a");
        let Lookup::Unknown(epoch) = cache.get("a") else { panic!("it is being changed") };
        cache.put_read(stored("a"), epoch);
        assert!(has(&mut cache, "a"));
    }
}
