//! When credentials were used last: noted in memory at a claim, written to the database behind it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::error::VaultError;
use super::rows;
use crate::store::Store;

/// Uses that are not written down yet, by user and provider.
#[derive(Debug, Default)]
pub struct Used(Mutex<HashMap<(String, String), u64>>);

impl Used {
    /// Notes a use.
    pub fn note(&self, user: &str, provider: &str, at_ms: u64) {
        self.lock().insert((user.to_owned(), provider.to_owned()), at_ms);
    }

    /// The last use, if it is not written down yet.
    pub fn last(&self, user: &str, provider: &str) -> Option<u64> {
        self.lock().get(&(user.to_owned(), provider.to_owned())).copied()
    }

    /// Writes all of them down; returns them.
    ///
    /// # Errors
    /// The database fails; they are kept for the next time.
    pub async fn write(&self, store: &Store) -> Result<HashMap<(String, String), u64>, VaultError> {
        let noted = self.lock().clone();
        if noted.is_empty() {
            return Ok(noted);
        }
        let mut changes = store.begin().await?;
        for ((user, provider), at_ms) in &noted {
            let at_ms = i64::try_from(*at_ms).unwrap_or(i64::MAX);
            rows::note_use(&mut *changes, user, provider, at_ms).await?;
        }
        changes.commit().await?;
        // What was used again meanwhile stays.
        self.lock().retain(|key, at_ms| noted.get(key) != Some(at_ms));
        Ok(noted)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
