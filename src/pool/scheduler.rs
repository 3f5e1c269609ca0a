//! What all pools and cold claims share: leases under the container limit, admission by the host's memory and CPUs, and
//! the fair queue.
//!
//! A claim that finds no warm container needs a lease. When no lease is free, or the host is under pressure, the claim
//! joins the fair queue ([`super::fair_queue`]) until its deadline. One task ([`Scheduler::serve`]) serves the queue
//! with what becomes free: warm containers of the provider's pool, and leases. Pools refill only while the queue is
//! empty.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::admission::{Admission, AdmissionSettings, Refusal, Reservation};
use super::fair_queue::FairQueue;
use super::{ClaimError, Claimed, Pool, PoolMetrics};
use crate::container::{ClaimGuard, Container, Containers, Lease, Limit, Template};
use crate::feed::Feed;
use thaw_client::types::ClaimPath;

/// Time between two looks at the host while a request waits because of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Shortest time between two warm containers that are destroyed for waiting requests: destroying one takes a while.
const SHED_PAUSE: Duration = Duration::from_millis(25);

/// How long a request without a deadline waits for a container that its pool is creating already. A creation takes some
/// 10 ms, and the request would have had the lease itself if refilling had not been faster.
const COMING: Duration = Duration::from_secs(2);

/// Memory of a container in which only its PID 1 runs: 0.3 to 0.6 MiB measured, all memory of its cgroup included.
const BARE_BYTES: u64 = 1 << 20;

/// Limits of the scheduler; see `[queue]` and `[admission]` in the configuration.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Most requests in the fair queue, of all providers together.
    pub max_waiting: usize,
    /// Limits of the host's memory and CPUs.
    pub admission: AdmissionSettings,
}

/// Why no container is available at this moment.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Unavailable {
    /// The container limit is reached.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// The host is under pressure.
    #[error("the host is under pressure: {0}")]
    Host(#[from] Refusal),
    /// The provider's image is not unpacked yet.
    #[error("the provider's image is being unpacked")]
    NotYet,
}

impl Unavailable {
    /// Value of the metric's label `reason`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::Host(refusal) => refusal.label(),
            Self::NotYet => "not_ready",
        }
    }
}

/// The right to create one container: a lease, and a reservation of memory.
#[derive(Debug)]
pub struct Reserved {
    /// Lease under the container limit.
    pub lease: Lease,
    /// Reservation of the host's memory. Drop it once the container exists.
    pub memory: Reservation,
}

/// A request for a container.
pub struct ClaimRequest<'a> {
    /// User whose turn in the fair queue this request takes.
    pub user: &'a str,
    /// Longest time in the fair queue; zero means that the request does not wait.
    pub wait: Duration,
    /// Called with the request's position in the fair queue (1 is next): when it begins to wait, and at each change.
    pub on_position: &'a (dyn Fn(usize) + Send + Sync),
    /// Pool of prestarted CLIs that can serve the request as well, and faster; `None` if none can.
    pub prestarted: Option<&'a Pool>,
}

/// What a queued request is served with.
enum Grant {
    Warm(Box<Container>),
    Lease(Reserved),
}

struct Waiter {
    pool: Option<Pool>,
    prestarted: Option<Pool>,
    bytes: u64,
    grant: oneshot::Sender<Grant>,
    position: watch::Sender<usize>,
}

impl Waiter {
    fn awaits(&self, prestarted: &Arc<Gauges>) -> bool {
        self.prestarted.as_ref().is_some_and(|pool| Arc::ptr_eq(&pool.gauges, prestarted))
    }
}

/// Gauges that a pool publishes for its handles and for other pools.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Number of containers that are frozen and claimable.
    pub warm: AtomicUsize,
    /// Number of containers under creation.
    pub creating: AtomicUsize,
    /// Number of warm containers that the pool keeps although a request of another provider waits.
    pub floor: AtomicUsize,
}

/// Serves the claims of all pools. One per daemon.
pub struct Scheduler {
    containers: Arc<Containers>,
    admission: Admission,
    queue: Mutex<FairQueue<Waiter>>,
    /// Length of the fair queue, readable without the lock.
    waiting: AtomicUsize,
    max_waiting: AtomicUsize,
    pools: Mutex<Vec<Pool>>,
    /// Why the last request that could not be served could not.
    shortage: Mutex<Option<Unavailable>>,
    pub(super) metrics: Arc<PoolMetrics>,
    pub(super) feed: Arc<Feed>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change leaves the value whole, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes its request from the fair queue, however the wait ends.
struct Ticket<'a> {
    scheduler: &'a Scheduler,
    provider: &'a str,
    id: u64,
    since: Instant,
    outcome: &'static str,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let left = {
            let mut queue = lock(&self.scheduler.queue);
            let left = queue.remove(self.id);
            self.scheduler.note_length(&queue, self.provider);
            left
        };
        // Drop outside the lock: the removed request may hold the last handle of a pool.
        drop(left);
        self.scheduler.metrics.waited(self.provider, self.outcome, self.since.elapsed());
        self.scheduler.containers.changed().notify_one();
    }
}

impl Scheduler {
    /// Starts the task that serves the fair queue; `feed` is told when pools change.
    pub fn start(
        settings: SchedulerSettings,
        containers: Arc<Containers>,
        metrics: Arc<PoolMetrics>,
        feed: Arc<Feed>,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            containers,
            admission: Admission::new(settings.admission),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiting: AtomicUsize::new(settings.max_waiting),
            pools: Mutex::default(),
            shortage: Mutex::default(),
            metrics,
            feed,
        });
        tokio::spawn(Arc::clone(&this).serve());
        this
    }

    /// How many requests may wait from now on; those that wait already stay.
    pub fn set_max_waiting(&self, max: usize) {
        self.max_waiting.store(max, Ordering::Relaxed);
    }

    /// The registry of all containers.
    pub fn containers(&self) -> &Arc<Containers> {
        &self.containers
    }

    /// Counts a claim as in flight until the guard is dropped; see [`ClaimGuard`].
    pub fn claiming(&self) -> ClaimGuard {
        self.containers.throttle().claim()
    }

    /// Number of requests in the fair queue for `provider`.
    pub fn waiting_for(&self, provider: &str) -> usize {
        if self.waiting() == 0 { 0 } else { lock(&self.queue).waiting_for(provider) }
    }

    /// Whether a queued request would take a container of the prestarted pool with these gauges.
    pub(super) fn is_awaited(&self, prestarted: &Arc<Gauges>) -> bool {
        self.waiting() > 0 && lock(&self.queue).in_order().iter().any(|(_, waiter)| waiter.awaits(prestarted))
    }

    /// Number of requests in the fair queue, of all providers together.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    fn note_length(&self, queue: &FairQueue<Waiter>, provider: &str) {
        self.waiting.store(queue.len(), Ordering::Release);
        self.metrics.queue(provider, queue.waiting_for(provider));
    }

    /// Makes a pool's gauges known to other pools, until [`Self::remove_pool`].
    pub(super) fn add_pool(&self, pool: &Pool) {
        lock(&self.pools).push(pool.clone());
    }

    pub(super) fn remove_pool(&self, gauges: &Arc<Gauges>) {
        lock(&self.pools).retain(|pool| !Arc::ptr_eq(&pool.gauges, gauges));
    }

    /// Wakes the serving task, because something that a queued request may wait for became free.
    pub(super) fn changed(&self) {
        if self.waiting() > 0 {
            self.containers.changed().notify_one();
        }
    }

    /// Memory to reserve while a container of `template` is created, bytes.
    pub(super) fn bytes(template: &Template) -> u64 {
        template.prestarted.as_ref().map_or(BARE_BYTES, |prestarted| prestarted.plan.memory_bytes.max(BARE_BYTES))
    }

    /// Reserves a lease and memory, if a lease is free and the host can carry another container.
    pub(super) fn take(&self, bytes: u64) -> Result<Reserved, Unavailable> {
        let memory = self.admission.admit(bytes)?;
        Ok(Reserved { lease: self.containers.lease()?, memory })
    }

    /// Whether a pool may refill with a free lease: the fair queue is empty, and no other pool is further below its
    /// floor.
    pub(super) fn may_refill(&self, own: &Arc<Gauges>) -> Result<(), &'static str> {
        if self.waiting() > 0 {
            return Err("requests are waiting for a container");
        }
        let read = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let has = |gauges: &Gauges| read(&gauges.warm) + read(&gauges.creating);
        if has(own) < read(&own.floor) {
            return Ok(());
        }
        let owed: usize = lock(&self.pools)
            .iter()
            .filter(|pool| !Arc::ptr_eq(&pool.gauges, own))
            .map(|pool| read(&pool.gauges.floor).saturating_sub(has(&pool.gauges)))
            .sum();
        if owed > 0 && self.containers.free_leases() <= owed {
            return Err("other pools are below their minimum");
        }
        Ok(())
    }

    /// Creates a container for one request, after waiting for a lease if necessary; or takes a warm one of `pool` if
    /// that is available first. Without a `template`, the request waits until `pool` has one.
    pub(super) async fn cold(
        &self,
        provider: &str,
        pool: Option<&Pool>,
        template: Option<Arc<Template>>,
        request: &ClaimRequest<'_>,
    ) -> Result<Claimed, ClaimError> {
        let bytes = template.as_deref().map_or(BARE_BYTES, Self::bytes);
        let grant = match self.waiting() {
            _ if template.is_none() => Err(Unavailable::NotYet),
            0 => self.take(bytes).map(Grant::Lease),
            // Requests that are queued already go first.
            _ => Err(lock(&self.shortage).unwrap_or(Unavailable::Limit(self.containers.limit()))),
        };
        let grant = match grant {
            Ok(grant) => grant,
            Err(shortage) => self.wait(provider, pool, bytes, request, shortage).await?,
        };
        let guard = self.containers.throttle().claim();
        match grant {
            Grant::Warm(container) => Ok(Claimed { container: *container, path: ClaimPath::Warm, guard }),
            Grant::Lease(Reserved { lease, memory }) => {
                let template = match (template, pool) {
                    (Some(template), _) => template,
                    (None, Some(pool)) => pool.template().await?,
                    (None, None) => return Err(ClaimError::NotReady(Unavailable::NotYet.to_string())),
                };
                let begun = Instant::now();
                let created = self.containers.create(Arc::clone(&template), lease).await;
                self.metrics.created(&template, "claim", begun.elapsed(), &created);
                let container = created?;
                drop(memory);
                Ok(Claimed { container, path: ClaimPath::Cold, guard })
            }
        }
    }

    /// Creates a container of `template` for one request; for templates that no pool has.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(
        &self,
        provider: &str,
        template: Arc<Template>,
        request: &ClaimRequest<'_>,
    ) -> Result<Claimed, ClaimError> {
        self.cold(provider, None, Some(template), request).await
    }

    async fn wait(
        &self,
        provider: &str,
        pool: Option<&Pool>,
        bytes: u64,
        request: &ClaimRequest<'_>,
        shortage: Unavailable,
    ) -> Result<Grant, ClaimError> {
        if let Unavailable::Host(refusal) = &shortage {
            self.metrics.refused(refusal.label(), "claim");
        }
        let not_yet = matches!(shortage, Unavailable::NotYet);
        if not_yet && request.wait.is_zero() {
            return Err(ClaimError::NotReady(shortage.to_string()));
        }
        let broken = async {
            match pool {
                Some(pool) if not_yet => pool.broken().await,
                _ => std::future::pending().await,
            }
        };
        tokio::pin!(broken);
        let (sender, mut grant) = oneshot::channel();
        let (position, mut changes) = watch::channel(0);
        let since = Instant::now();
        let (mut ticket, first) = {
            let mut queue = lock(&self.queue);
            let coming = pool.map_or(0, |pool| pool.gauges.creating.load(Ordering::Relaxed));
            if request.wait.is_zero() && coming <= queue.waiting_for(provider) {
                return Err(shortage.into());
            }
            let max = self.max_waiting.load(Ordering::Relaxed);
            if queue.len() >= max {
                return Err(ClaimError::QueueFull { max, shortage });
            }
            let prestarted = request.prestarted.cloned();
            let waiter = Waiter { pool: pool.cloned(), prestarted, bytes, grant: sender, position };
            let id = queue.push(provider, request.user, waiter);
            self.note_length(&queue, provider);
            let first = queue.in_order().iter().position(|(other, _)| *other == id).unwrap_or_default() + 1;
            (Ticket { scheduler: self, provider, id, since, outcome: "left" }, first)
        };
        tracing::debug!(provider, user = request.user, position = first, %shortage, "waiting for a container");
        let waits = !request.wait.is_zero();
        if waits {
            (request.on_position)(first);
        }
        // Wake the serving task after the ticket exists, so that no request stays in the queue for ever.
        self.containers.changed().notify_one();
        let deadline = tokio::time::sleep(if waits { request.wait } else { COMING });
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                granted = &mut grant => match granted {
                    Ok(granted) => {
                        ticket.outcome = "served";
                        return Ok(granted);
                    }
                    // The serving task has the sender, and never drops it without an answer while the daemon runs.
                    Err(_) => return Err(ClaimError::Stopped),
                },
                () = &mut deadline => {
                    ticket.outcome = "timeout";
                    let still = pool.is_some_and(|pool| !pool.is_ready());
                    let shortage = if still { Unavailable::NotYet } else { lock(&self.shortage).unwrap_or(shortage) };
                    if !waits {
                        return Err(shortage.into());
                    }
                    return Err(ClaimError::QueueTimeout { waited: request.wait, shortage });
                }
                reason = &mut broken => return Err(ClaimError::NotReady(reason)),
                changed = changes.changed() => match changed {
                    Ok(()) if waits => (request.on_position)(*changes.borrow_and_update()),
                    Ok(()) => drop(changes.borrow_and_update()),
                    // The serving task has taken the request out of the queue: the grant is on its way.
                    Err(_) => return (&mut grant).await.map_err(|_| ClaimError::Stopped).inspect(|_| ticket.outcome = "served"),
                },
            }
        }
    }

    /// Serves the fair queue for as long as the daemon lives. The task waits only for the owners of pools, which wait
    /// for nobody.
    async fn serve(self: Arc<Self>) {
        let mut last_shed = None;
        loop {
            match self.waiting() {
                0 => self.containers.changed().notified().await,
                // The host's load changes without an event, so look again at an interval.
                _ => drop(tokio::time::timeout(LOOK_AGAIN, self.containers.changed().notified()).await),
            }
            self.serve_all(&mut last_shed).await;
        }
    }

    async fn serve_all(&self, last_shed: &mut Option<Instant>) {
        self.serve_prestarted().await;
        let mut blocked = BTreeSet::new();
        let mut short = None;
        loop {
            let next = {
                let queue = lock(&self.queue);
                let next = queue.next(|provider| !blocked.contains(provider));
                next.map(|(id, provider, waiter)| (id, provider.to_owned(), waiter.pool.clone(), waiter.bytes))
            };
            let Some((id, provider, pool, bytes)) = next else { break };
            if pool.as_ref().is_some_and(|pool| !pool.is_ready()) {
                blocked.insert(provider);
                continue;
            }
            if let Some(pool) = &pool
                && pool.has_warm()
                && let Ok(Some(container)) = pool.take_warm().await
            {
                if let Some(Grant::Warm(container)) = self.grant(id, &provider, Grant::Warm(container)) {
                    pool.give_back(container).await;
                }
                continue;
            }
            if short.is_none() {
                match self.take(bytes) {
                    Ok(reserved) => {
                        // If the requester is gone, dropping the grant also releases its lease.
                        drop(self.grant(id, &provider, Grant::Lease(reserved)));
                        continue;
                    }
                    Err(shortage) => {
                        if matches!(shortage, Unavailable::Limit(_)) {
                            self.shed(&provider, last_shed).await;
                        }
                        short = Some(shortage);
                    }
                }
            }
            blocked.insert(provider);
        }
        if let Some(shortage) = short {
            *lock(&self.shortage) = Some(shortage);
        }
        for (index, (_, waiter)) in lock(&self.queue).in_order().into_iter().enumerate() {
            waiter.position.send_if_modified(|position| std::mem::replace(position, index + 1) != index + 1);
        }
    }

    /// Serves prestarted CLIs. Not every queued request can use one, so each goes to the first request that can.
    /// Requests before that one lose nothing: they could not have used it.
    async fn serve_prestarted(&self) {
        loop {
            let next = {
                let queue = lock(&self.queue);
                let ready = |waiter: &Waiter| waiter.prestarted.clone().filter(Pool::has_warm);
                queue.in_order().into_iter().find_map(|(id, waiter)| Some((id, ready(waiter)?)))
            };
            let Some((id, pool)) = next else { return };
            // Another claim took the container, or the pool has stopped: no request can be served from it now.
            let Ok(Some(container)) = pool.take_warm().await else { return };
            if let Some(Grant::Warm(container)) = self.grant(id, &pool.provider, Grant::Warm(container)) {
                pool.give_back(container).await;
            }
        }
    }

    /// Serves a queued request; returns the grant if the request has left the queue.
    fn grant(&self, id: u64, provider: &str, grant: Grant) -> Option<Grant> {
        let waiter = {
            let mut queue = lock(&self.queue);
            let waiter = queue.serve(id);
            self.note_length(&queue, provider);
            waiter
        };
        let Some(Waiter { grant: sender, .. }) = waiter else { return Some(grant) };
        sender.send(grant).err()
    }

    /// Lets the pool with the most containers above its floor destroy one, for a request of another provider.
    async fn shed(&self, provider: &str, last: &mut Option<Instant>) {
        if last.is_some_and(|last| last.elapsed() < SHED_PAUSE) {
            return;
        }
        let read = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let spare = |pool: &Pool| read(&pool.gauges.warm).saturating_sub(read(&pool.gauges.floor));
        let richest = {
            let pools = lock(&self.pools);
            let others = pools.iter().filter(|pool| &*pool.provider != provider && spare(pool) > 0);
            others.max_by_key(|pool| spare(pool)).cloned()
        };
        if let Some(pool) = richest {
            *last = Some(Instant::now());
            pool.shed().await;
        }
    }
}
