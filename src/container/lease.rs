//! Leases under the container limit, each with a range of host ids.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore};

/// Number of host ids of one container (user_namespaces(7)).
const IDS: u32 = 65_536;

/// The limit on containers is reached.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the limit of {0} containers is reached; try again later or raise `container.max`")]
pub struct Limit(pub usize);

/// All leases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id_start: u32,
    limit: usize,
    free: Semaphore,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Ranges of ids that no lease has, by number from `id_start` on.
    ranges: BTreeSet<u32>,
    /// Number of containers above the limit: an earlier daemon had a higher one.
    excess: usize,
}

/// The right to one container, with a range of ids. Dropping it gives both back.
#[derive(Debug)]
pub struct Lease {
    id_base: u32,
    /// Ranges that no other lease may have meanwhile.
    ranges: Vec<u32>,
    leases: Leases,
}

impl Lease {
    /// First host id of the range.
    pub fn id_base(&self) -> u32 {
        self.id_base
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &self.leases.0;
        {
            let mut state = self.leases.lock();
            state.ranges.extend(self.ranges.drain(..));
            // While there are more containers than the limit allows, a lease that ends is not given to another
            // container.
            match state.excess.checked_sub(1) {
                Some(fewer) => state.excess = fewer,
                None => shared.free.add_permits(1),
            }
        }
        shared.changed.notify_one();
    }
}

impl Leases {
    /// `limit` leases, with ids from `id_start` on.
    pub fn new(limit: usize, id_start: u32) -> Self {
        let state = Mutex::new(State { ranges: (0..limit as u32).collect(), excess: 0 });
        Self(Arc::new(Shared { id_start, limit, free: Semaphore::new(limit), state, changed: Notify::new() }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change leaves the value whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lease for a new container.
    ///
    /// # Errors
    /// [`Limit`] if none is free.
    pub fn take(&self) -> Result<Lease, Limit> {
        let limit = || Limit(self.0.limit);
        let permit = self.0.free.try_acquire().map_err(|_| limit())?;
        // Ranges that overlap with those of a survivor are left out, so there may be fewer ranges than leases.
        let range = self.lock().ranges.pop_first().ok_or_else(limit)?;
        permit.forget();
        Ok(Lease { id_base: self.0.id_start + range * IDS, ranges: vec![range], leases: self.clone() })
    }

    /// Takes the lease for a container of an earlier daemon, with that container's host ids, whatever today's
    /// configuration says. With `must`, the lease is given even above the limit.
    pub fn take_at(&self, id_base: u32, must: bool) -> Option<Lease> {
        match self.0.free.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) if must => self.lock().excess += 1,
            Err(_) => return None,
        }
        // A range that begins elsewhere overlaps with two of today's.
        let shares = |range: &u32| {
            let begin = u64::from(self.0.id_start) + u64::from(*range) * u64::from(IDS);
            begin.abs_diff(u64::from(id_base)) < u64::from(IDS)
        };
        let ranges = self.lock().ranges.extract_if(.., shares).collect();
        Some(Lease { id_base, ranges, leases: self.clone() })
    }

    /// Number of free leases.
    pub fn free(&self) -> usize {
        self.0.free.available_permits()
    }

    /// Notified when a lease becomes free. Only one task may wait for this: the scheduler's.
    pub fn changed(&self) -> &Notify {
        &self.0.changed
    }

    /// Waits until all leases have been given back, and takes them.
    pub async fn all(&self) {
        // The semaphore is never closed, so this only ends by acquiring.
        if let Ok(permits) = self.0.free.acquire_many(self.0.limit as u32).await {
            permits.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 1 << 20;

    #[test]
    fn a_place_is_given_back_with_its_ids() {
        let leases = Leases::new(2, START);
        let (first, second) = (leases.take().unwrap(), leases.take().unwrap());
        assert_eq!((first.id_base(), second.id_base(), leases.free()), (START, START + IDS, 0));
        assert_eq!(leases.take().unwrap_err().0, 2);
        drop(first);
        assert_eq!(leases.take().unwrap().id_base(), START);
    }

    #[test]
    fn what_runs_is_kept_above_the_limit_and_nothing_new_comes_before_it_is_below() {
        let leases = Leases::new(1, START);
        let kept: Vec<Lease> = (0..3).map(|range| leases.take_at(START + range * IDS, true).unwrap()).collect();
        assert!(leases.take_at(START + 3 * IDS, false).is_none(), "what only waits is not");
        let mut kept = kept.into_iter();
        for _ in 0..2 {
            drop(kept.next());
            assert!(leases.take().is_err());
        }
        drop(kept.next());
        let lease = leases.take().unwrap();
        assert_eq!((lease.id_base(), leases.free()), (START, 0));
        drop(lease);
        assert_eq!(leases.free(), 1);
    }

    #[test]
    fn ids_that_began_elsewhere_are_shared_with_nobody() {
        let leases = Leases::new(4, START);
        let survivor = leases.take_at(START + IDS + 7, true).unwrap();
        assert_eq!(survivor.id_base(), START + IDS + 7);
        let new = [leases.take().unwrap(), leases.take().unwrap()];
        assert_eq!([new[0].id_base(), new[1].id_base()], [START, START + 3 * IDS]);
        assert!(leases.take().is_err(), "two ranges are partly its own");
        drop(survivor);
        let next = [leases.take().unwrap(), leases.take().unwrap()];
        assert_eq!([next[0].id_base(), next[1].id_base()], [START + IDS, START + 2 * IDS]);
        let far = leases.take_at(7, true).unwrap();
        drop((far, new, next));
        assert_eq!(leases.free(), 4);
    }
}
