//! Records of what happens to credentials: who stored, used, renewed or removed which, and what was refused.
//!
//! A record of a change is part of the change's transaction: neither is there without the other. A record of a use is
//! noted in memory and written behind, because no execution waits for a disk; a killed daemon loses those of the last
//! second. Records are bounded by age and by number. No secret is in one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thaw_client::types::{AuditRecord, Page};

use super::audit_rows as rows;
use super::error::VaultError;
use super::record::{Query, Record};
use super::rows::now_ms;
use crate::store::Store;

/// Records of uses that may wait to be written. When the database fails for longer, the oldest are dropped.
pub const MAX_UNWRITTEN: usize = 10_000;

/// Longest time between two looks for records that are too old.
const PRUNE_INTERVAL: Duration = Duration::from_secs(600);

/// How many records are kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Oldest record.
    pub age: Duration,
    /// Most records of all users together.
    pub records: u64,
}

/// Records that are not written yet, and the bounds of those that are.
#[derive(Debug)]
pub struct Audit {
    bounds: Bounds,
    unwritten: Mutex<VecDeque<Record>>,
    dropped: AtomicU64,
    /// Records that were written since the last look for those that are too many.
    written: AtomicU64,
    pruned: Mutex<Option<Instant>>,
}

impl Audit {
    /// Without records.
    pub fn new(bounds: Bounds) -> Self {
        let (dropped, written) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { bounds, unwritten: Mutex::default(), dropped, written, pruned: Mutex::default() }
    }

    /// Notes a record, to be written soon.
    pub fn note(&self, record: Record) {
        let mut unwritten = self.lock();
        if unwritten.len() >= MAX_UNWRITTEN {
            unwritten.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        unwritten.push_back(record);
    }

    /// Counts records that were written with a change.
    pub fn note_written(&self, records: usize) {
        self.written.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Writes what was noted, and removes what is too old or too much.
    ///
    /// # Errors
    /// The database fails; what was noted is kept for the next time.
    pub async fn write(&self, store: &Store) -> Result<(), VaultError> {
        let noted: Vec<Record> = self.lock().iter().cloned().collect();
        if let Some(last) = noted.last() {
            let mut changes = store.begin().await?;
            for record in &noted {
                rows::add(&mut *changes, record).await?;
            }
            changes.commit().await?;
            // Some of these may have been dropped meanwhile, and others noted.
            self.lock().retain(|record| record.id > last.id);
            self.note_written(noted.len());
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::error!(dropped, "audit records were dropped: the database could not be written for too long");
        }
        self.prune(store).await
    }

    /// A hundredth of the records is written between two looks, so that counting them costs little.
    async fn prune(&self, store: &Store) -> Result<(), VaultError> {
        let written = self.written.load(Ordering::Relaxed);
        let is_old = {
            let pruned = self.pruned.lock().unwrap_or_else(PoisonError::into_inner);
            pruned.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL)
        };
        if !is_old && (written == 0 || written < self.bounds.records / 100) {
            return Ok(());
        }
        let age = i64::try_from(self.bounds.age.as_millis()).unwrap_or(i64::MAX);
        let most = i64::try_from(self.bounds.records).unwrap_or(i64::MAX);
        rows::remove_before(store, now_ms().saturating_sub(age)).await?;
        rows::keep_newest(store, most).await?;
        self.written.fetch_sub(written, Ordering::Relaxed);
        *self.pruned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// The records that are asked for, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list(&self, store: &Store, query: &Query) -> Result<Page<AuditRecord>, VaultError> {
        self.write(store).await?;
        let mut found = rows::list(store, query).await?;
        let has_more = found.len() > query.limit;
        found.truncate(query.limit);
        let next_cursor = found.last().filter(|_| has_more).map(|record| record.id.clone());
        Ok(Page { items: found.into_iter().map(Record::shown).collect(), next_cursor })
    }

    /// How many records wait, and the version in the oldest of them.
    #[cfg(test)]
    pub fn unwritten(&self) -> (usize, Option<u64>) {
        let unwritten = self.lock();
        (unwritten.len(), unwritten.front().and_then(|record| record.version))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Record>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
