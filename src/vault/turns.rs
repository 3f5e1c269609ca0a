//! Turns at renewing a login, whose refresh token works once: one execution at a time has a login that its CLI is about to
//! renew. The others wait, and get what it has renewed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// By user and provider. Who has no entry is waited for by nobody.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<(String, String), Arc<Semaphore>>>);

/// The turn of one execution; over when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turns {
    /// Waits for the turn. Who stops waiting has taken nothing.
    pub async fn take(&self, user: &str, provider: &str) -> Turn {
        let semaphore = self.semaphore(user, provider);
        Turn { _permit: semaphore.acquire_owned().await.expect("it is never closed") }
    }

    /// The turn, if nobody has it.
    pub fn try_take(&self, user: &str, provider: &str) -> Option<Turn> {
        let permit = self.semaphore(user, provider).try_acquire_owned();
        permit.ok().map(|permit| Turn { _permit: permit })
    }

    fn semaphore(&self, user: &str, provider: &str) -> Arc<Semaphore> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody has or awaits these.
        turns.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let key = (user.to_owned(), provider.to_owned());
        Arc::clone(turns.entry(key).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Turns;

    #[tokio::test]
    async fn one_at_a_time_has_it_and_others_are_not_held_up() {
        let turns = Turns::default();
        let first = turns.take("u1", "a").await;
        let others = (turns.take("u2", "a").await, turns.take("u1", "b").await);
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, turns.take("u1", "a")).await.is_err());
        drop(first);
        let second = turns.take("u1", "a").await;
        assert!(turns.try_take("u1", "a").is_none() && turns.try_take("u4", "a").is_some());
        drop((second, others));
        drop(turns.take("u3", "a").await);
        assert_eq!(turns.0.lock().unwrap().len(), 1, "nothing is kept of those who have gone");
    }
}
