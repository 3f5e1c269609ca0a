//! Number of executions of each user, so that one user cannot take everything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts executions by user.
#[derive(Debug, Default)]
pub struct Users(Arc<Mutex<HashMap<String, usize>>>);

/// One execution of a user, counted until this is dropped.
#[derive(Debug)]
pub struct UserSlot {
    user: String,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

fn lock(counts: &Mutex<HashMap<String, usize>>) -> MutexGuard<'_, HashMap<String, usize>> {
    // Each change leaves the value whole, so a panic elsewhere does not spoil it.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Users {
    /// Counts one more execution of `user`; `None` if the user has `max` already.
    pub fn enter(&self, user: &str, max: usize) -> Option<UserSlot> {
        let mut counts = lock(&self.0);
        let count = counts.get(user).copied().unwrap_or_default();
        if count >= max {
            return None;
        }
        counts.insert(user.to_owned(), count + 1);
        Some(UserSlot { user: user.to_owned(), counts: Arc::clone(&self.0) })
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        match counts.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            // No entry is kept for a user without executions.
            _ => drop(counts.remove(&self.user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Users, lock};

    #[test]
    fn each_user_has_a_number_of_their_own() {
        let users = Users::default();
        let mut of_a: Vec<_> = (0..3).map(|_| users.enter("a", 3).unwrap()).collect();
        assert!(users.enter("a", 3).is_none());
        let of_b = users.enter("b", 3).unwrap();
        of_a.pop();
        assert!(users.enter("a", 3).is_some());
        drop((of_a, of_b));
        assert!(lock(&users.0).is_empty(), "nothing is left of users who have gone");
    }
}
