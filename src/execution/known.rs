//! The executions that the daemon knows: those that wait or run, and ended ones for a while.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{Handle, Settings};
use crate::idempotency::IdempotencyKey;
use thaw_client::types;

/// All of them.
#[derive(Debug, Default)]
pub struct Known {
    executions: HashMap<String, Arc<Handle>>,
    /// Ended ones, oldest first.
    ended: VecDeque<Retained>,
    /// Sum over `ended`.
    ended_bytes: usize,
    /// Which execution a user's key stands for: kept as long as the execution.
    keys: BTreeMap<(String, String), String>,
}

#[derive(Debug)]
struct Retained {
    id: String,
    /// Kept until then.
    until: Instant,
    /// Size of its log.
    bytes: usize,
}

impl Known {
    /// A new one.
    pub fn insert(&mut self, handle: Arc<Handle>) {
        if let Some(key) = &handle.key {
            self.keys.insert((handle.user.clone(), key.key().to_owned()), handle.id.clone());
        }
        self.executions.insert(handle.id.clone(), handle);
    }

    /// By id.
    pub fn get(&self, id: &str) -> Option<&Arc<Handle>> {
        self.executions.get(id)
    }

    /// The one that a user's key stands for.
    pub fn of_key(&self, user: &str, key: &IdempotencyKey) -> Option<&Arc<Handle>> {
        self.executions.get(self.keys.get(&(user.to_owned(), key.key().to_owned()))?)
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.executions.values().cloned().collect()
    }

    /// Keeps one that has ended until then, unless it was deleted.
    pub fn retain(&mut self, handle: &Handle, until: Instant) {
        if self.executions.contains_key(&handle.id) {
            let collected = handle.state().exit().and_then(|exit| exit.collected.as_ref()).map_or(0, |one| one.bytes);
            let bytes = handle.log.bytes() + usize::try_from(collected).unwrap_or(usize::MAX);
            self.ended.push_back(Retained { id: handle.id.clone(), until, bytes });
            self.ended_bytes += bytes;
        } else {
            handle.forget();
        }
    }

    /// Forgets one, here and at the keeper.
    pub fn remove(&mut self, id: &str) -> Option<Arc<Handle>> {
        if let Some(index) = self.ended.iter().position(|retained| retained.id == id) {
            self.ended_bytes -= self.ended.remove(index).map_or(0, |retained| retained.bytes);
        }
        self.drop_handle(id)
    }

    fn drop_handle(&mut self, id: &str) -> Option<Arc<Handle>> {
        let handle = self.executions.remove(id)?;
        if let Some(key) = &handle.key {
            self.keys.remove(&(handle.user.clone(), key.key().to_owned()));
        }
        handle.forget();
        Some(handle)
    }

    /// Forgets ended executions, oldest first, until what is left is within the limits.
    pub fn forget(&mut self, settings: &Settings) {
        let now = Instant::now();
        while self.ended.len() > settings.retained
            || self.ended_bytes > settings.retained_bytes
            || self.ended.front().is_some_and(|oldest| oldest.until <= now)
        {
            let Some(oldest) = self.ended.pop_front() else { return };
            self.ended_bytes -= oldest.bytes;
            self.drop_handle(&oldest.id);
        }
    }
}

/// Those of `handles` that fit, newest first.
pub fn page(mut handles: Vec<Arc<Handle>>, filter: &types::ExecutionFilter) -> types::Page<types::Execution> {
    // Ids are time-ordered.
    handles.sort_unstable_by(|a, b| b.id.cmp(&a.id));
    let mut fitting = handles.iter().filter(|handle| handle.fits(filter)).map(|handle| handle.describe());
    let mut fitting = fitting.by_ref().filter(|execution| filter.state.is_none_or(|state| execution.state == state));
    let items: Vec<_> = fitting.by_ref().take(filter.limit.unwrap_or(usize::MAX)).collect();
    let next_cursor = items.last().map(|last| last.id.clone()).filter(|_| fitting.next().is_some());
    types::Page { items, next_cursor }
}

impl Handle {
    /// Whether it fits what never changes; its state is another matter.
    fn fits(&self, filter: &types::ExecutionFilter) -> bool {
        let types::ExecutionFilter { user, state: _, provider, labels, since, limit: _, cursor } = filter;
        user.as_ref().is_none_or(|user| *user == self.user)
            && provider.as_ref().is_none_or(|provider| *provider == self.provider)
            && labels.iter().all(|(name, value)| self.labels.get(name) == Some(value))
            && since.is_none_or(|since| self.created_at_ms >= since.unix_ms())
            && cursor.as_ref().is_none_or(|cursor| self.id < *cursor)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::Settings;
    use super::{Known, Retained};

    fn settings() -> Settings {
        Settings { retention: Duration::from_secs(600), retained: 5, retained_bytes: 250, ..Settings::for_tests() }
    }

    #[test]
    fn ended_executions_are_forgotten_by_number_bytes_and_age() {
        let settings = settings();
        let mut known = Known::default();
        let mut add = |bytes, until| {
            known.ended.push_back(Retained { id: String::new(), until, bytes });
            known.ended_bytes += bytes;
            known.forget(&settings);
            (known.ended.len(), known.ended_bytes)
        };
        let later = Instant::now() + settings.retention;
        for count in 1..=5 {
            assert_eq!(add(1, later), (count, count));
        }
        assert_eq!(add(1, later), (5, 5), "by number");
        assert_eq!(add(249, later), (2, 250), "by bytes");
        assert_eq!(add(100, Instant::now()), (0, 0), "the older two by bytes, the newest by age");
    }
}
