//! Registry of the containers that exist, for listing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::holder::Holder;
use super::pool_memory::PoolKey;
use crate::egress;
use thaw_client::types;
use thaw_os::cgroup::{Cgroup, Limits, Usage};

pub use thaw_client::types::ContainerState as State;

/// Locks a value. Each critical section leaves it whole, so a panic elsewhere does no harm.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Public view of one container.
#[derive(Debug)]
pub struct Entry {
    pub id: String,
    pub provider: String,
    pub pool: PoolKey,
    pub cgroup: Cgroup,
    pub created_at_ms: u64,
    /// While it serves, unless it was given less.
    pub limits: Limits,
    /// What it was given instead.
    pub tightened: OnceLock<Limits>,
    pub network: OnceLock<egress::Meter>,
    pub status: Mutex<Status>,
}

#[derive(Debug)]
pub struct Status {
    pub state: State,
    pub holder: Option<Holder>,
    pub pid: Option<i32>,
    pub claimed: Option<ClaimStart>,
}

/// Time of the claim, and usage at that time.
#[derive(Debug, Clone, Copy)]
pub struct ClaimStart {
    pub at_ms: u64,
    pub usage: Usage,
    pub network: egress::Usage,
}

impl Entry {
    /// While it serves.
    pub fn limits(&self) -> &Limits {
        self.tightened.get().unwrap_or(&self.limits)
    }

    /// Counts what goes through its proxy.
    pub fn set_meter(&self, meter: egress::Meter) {
        // A container has one proxy, so this is set once.
        let _ = self.network.set(meter);
    }

    pub fn network(&self) -> egress::Usage {
        self.network.get().map(egress::Meter::read).unwrap_or_default()
    }

    /// Usage since the claim.
    pub fn used(&self, usage: &Usage, claimed: &ClaimStart) -> types::Usage {
        let usage = usage.since(&claimed.usage);
        let network = self.network();
        types::Usage {
            cpu_us: usage.cpu_us,
            cpu_limit: self.limits().cpu,
            memory_bytes: usage.memory_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            memory_limit_bytes: self.limits().memory_bytes,
            periods: usage.periods,
            throttled_periods: usage.throttled_periods,
            throttled_us: usage.throttled_us,
            oom_kills: usage.oom_kills,
            network_out_bytes: network.bytes_out.saturating_sub(claimed.network.bytes_out),
            network_in_bytes: network.bytes_in.saturating_sub(claimed.network.bytes_in),
        }
    }

    pub fn set_state(&self, state: State) {
        lock(&self.status).state = state;
    }

    /// Records the claim. `baseline` is the usage before it, which does not belong to the holder.
    pub fn set_claimed(&self, holder: Holder, at_ms: u64, baseline: Usage) {
        let mut status = lock(&self.status);
        status.state = State::Claimed;
        status.holder = Some(holder);
        status.claimed = Some(ClaimStart { at_ms, usage: baseline, network: self.network() });
    }

    pub fn pid(&self) -> Option<i32> {
        lock(&self.status).pid
    }

    pub fn set_pid(&self, pid: Option<i32>) {
        lock(&self.status).pid = pid;
    }
}

/// Registry of all containers.
#[derive(Debug, Default)]
pub struct Registry(Mutex<BTreeMap<String, Arc<Entry>>>);

impl Registry {
    /// All entries, by container id.
    pub fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        lock(&self.0)
    }

    pub fn add(&self, entry: Arc<Entry>) {
        lock(&self.0).insert(entry.id.clone(), entry);
    }

    pub fn remove(&self, id: &str) {
        lock(&self.0).remove(id);
    }
}
