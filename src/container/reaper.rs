//! Teardown of containers: whoever drops a container, in whatever state, nothing of it stays.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::holder::Holder;
use super::isolation::Isolation;
use super::lease::{Lease, Leases};
use super::refill_throttle::RefillThrottle;
use super::registry::{Entry, Registry, State};
use crate::egress;
use crate::failpoints;
use crate::keeper::{Keeper, Key};
use thaw_os::cgroup::{Cgroup, CgroupError, Hierarchy, Usage};

/// Pauses between tries of a failed teardown; the last one repeats.
const RETRY: [Duration; 4] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10)];

/// What of a container has to be torn down, from the moment its cgroup exists. Dropping this starts the teardown.
#[derive(Debug)]
pub struct Teardown(Option<TeardownParts>);

#[derive(Debug)]
pub struct TeardownParts {
    pub entry: Arc<Entry>,
    pub hierarchy: Arc<Hierarchy>,
    pub isolation: Arc<dyn Isolation>,
    pub registry: Arc<Registry>,
    pub reaper: mpsc::UnboundedSender<TeardownParts>,
    pub throttle: Arc<RefillThrottle>,
    /// Leases of all containers.
    pub leases: Leases,
    /// Number of free leases at or below which teardown waits for nothing.
    pub scarce_places: usize,
    pub outside: egress::Outside,
    pub keeper: Option<Arc<Keeper>>,
    pub pidfd: Option<OwnedFd>,
    pub proxy: Option<egress::Proxy>,
    /// Released last: until then the container counts against the limit.
    pub _lease: Lease,
}

impl TeardownParts {
    /// Kills every process. The control file needs a descriptor; if none is left, this kills PID 1 by its pidfd, and the
    /// kernel kills the others with it (pid_namespaces(7)).
    fn kill(&self) -> Result<(), CgroupError> {
        self.isolation.kill(&self.entry.cgroup).or_else(|error| match &self.pidfd {
            Some(pidfd) => rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).map_err(|_| error),
            None => Err(error),
        })
    }
}

impl Teardown {
    pub fn new(parts: TeardownParts) -> Self {
        Self(Some(parts))
    }

    fn parts(&self) -> &TeardownParts {
        self.0.as_ref().expect("taken only by drop")
    }

    pub fn set_process(&mut self, pid: Option<i32>, pidfd: Option<OwnedFd>) {
        if let Some(parts) = &mut self.0 {
            parts.entry.set_pid(pid);
            parts.pidfd = pidfd;
        }
    }

    pub fn set_proxy(&mut self, proxy: egress::Proxy) {
        if let Some(parts) = &mut self.0 {
            parts.entry.set_meter(proxy.meter());
            parts.proxy = Some(proxy);
        }
    }

    /// Raises the proxy's rate to that of an execution.
    pub fn serve_execution(&self) {
        if let Some(proxy) = &self.parts().proxy {
            proxy.serve_execution();
        }
    }

    pub fn id(&self) -> &str {
        &self.parts().entry.id
    }

    pub fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.parts().hierarchy
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.parts().entry.cgroup
    }

    pub fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.parts().keeper.as_ref()
    }

    pub fn outside(&self) -> egress::Outside {
        self.parts().outside.clone()
    }

    /// Kills every process in the container.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.parts().kill()
    }

    /// Freezes everything in it; done when the kernel has confirmed that.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        let parts = self.parts();
        parts.isolation.freeze(&parts.entry.cgroup).await
    }

    pub fn entry(&self) -> &Arc<Entry> {
        &self.parts().entry
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.parts().pidfd.as_ref().expect("set before a container is handed out").as_fd()
    }

    pub fn set_state(&self, state: State) {
        self.parts().entry.set_state(state);
    }

    pub fn set_claimed(&self, holder: Holder, user: &str, at_ms: u64, baseline: Usage) {
        let parts = self.parts();
        parts.entry.set_claimed(holder, at_ms, baseline);
        if let Some(proxy) = &parts.proxy {
            proxy.goes_out_for(user);
            // The current span is that of the execution, which claims.
            proxy.belongs_to(tracing::Span::current());
        }
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Some(parts) = self.0.take() {
            parts.entry.set_state(State::Destroying);
            // Kill here, so that nothing runs on. The reaper does the rest, which takes longer.
            if let Err(error) = parts.kill() {
                tracing::error!(container = %parts.entry.id, %error, "could not kill a container");
            }
            failpoints::at("destroy.killed");
            let reaper = parts.reaper.clone();
            if let Err(lost) = reaper.send(parts) {
                tracing::error!(container = %lost.0.entry.id, "the reaper has stopped; left for the next start");
            }
        }
    }
}

/// Tears down whatever is dropped, each container in a task of its own.
pub async fn run(mut teardown: mpsc::UnboundedReceiver<TeardownParts>) {
    while let Some(parts) = teardown.recv().await {
        tokio::spawn(clear(parts));
    }
}

async fn clear(mut parts: TeardownParts) {
    let id = parts.entry.id.clone();
    let since = Instant::now();
    let mut pauses = RETRY.into_iter().peekable();
    while let Err(message) = try_clear(&mut parts, since).await {
        // Cut off the network of whatever still runs.
        parts.proxy = None;
        let pause = pauses.next().unwrap_or(RETRY[RETRY.len() - 1]);
        if pauses.peek().is_some() {
            tracing::warn!(container = %id, cause = %message, "not cleared away yet");
        } else {
            // Its place is not given back before that: the limit must count what really exists.
            tracing::error!(container = %id, cause = %message, "cannot be cleared away; tried again every {} s", pause.as_secs());
        }
        tokio::time::sleep(pause).await;
    }
    parts.registry.remove(&id);
    tracing::debug!(container = %id, "destroyed");
}

async fn try_clear(parts: &mut TeardownParts, since: Instant) -> Result<(), String> {
    let cgroup = &parts.entry.cgroup;
    parts.isolation.kill(cgroup).map_err(|error| error.to_string())?;
    cgroup.wait_empty().await.map_err(|error| error.to_string())?;
    if let Some(pidfd) = &parts.pidfd {
        let pidfd = pidfd.try_clone().map_err(|error| format!("reap: {error}"))?;
        super::reap(pidfd).await.map_err(|error| format!("reap: {error}"))?;
        parts.pidfd = None;
    }
    failpoints::at("destroy.emptied");
    // The rest occupies the kernel. It is not urgent, unless leases are running out.
    let scarce = parts.scarce_places;
    let _turn = parts.throttle.clear(since, || parts.leases.free() <= scarce).await;
    // The proxy's socket, of which the keeper has a duplicate, keeps the network namespace alive until here: ending
    // that occupies the kernel too, within this turn. If the daemon is killed now, the next one finds an empty cgroup.
    parts.proxy = None;
    if let Some(keeper) = parts.keeper.take() {
        keeper.forget(&Key::Container(parts.entry.id.clone()));
    }
    let (hierarchy, entry) = (Arc::clone(&parts.hierarchy), Arc::clone(&parts.entry));
    let removed = tokio::task::spawn_blocking(move || hierarchy.remove(&entry.cgroup)).await;
    removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    failpoints::at("destroy.removed");
    Ok(())
}
