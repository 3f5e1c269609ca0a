//! What all pools and cold claims share: the places under the container limit, the host's memory and CPUs, and those
//! who wait for them.
//!
//! A claim that finds nothing warm needs a place. When there is none, or the host is under pressure, it joins the line
//! ([`super::fair_queue`]) until its deadline; the one task in [`Scheduler::serve`] hands out what becomes free, warm containers
//! of the provider's pool as well as places. Pools refill only when nobody waits.

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
use thaw_client::types::ClaimPath;

/// How often the host is looked at again while somebody waits because of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Shortest time between two containers that are given up for somebody who waits: destroying one takes a while.
const SHED_PAUSE: Duration = Duration::from_millis(25);

/// How long a request that does not wait stays for a container that its pool is creating already: that takes some
/// 10 ms, and the place would have been the request's own if refilling had not been faster.
const COMING: Duration = Duration::from_secs(2);

/// Memory of a container in which nothing runs but its PID 1: measured 0.3 to 0.6 MiB all-in.
const BARE_BYTES: u64 = 1 << 20;

/// See `[queue]`, `[admission]` and `[pool]` in the configuration.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Requests that may wait, all together.
    pub max_waiting: usize,
    /// Memory and CPU.
    pub admission: AdmissionSettings,
}

/// Why there is no container to be had at this moment.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Unavailable {
    /// The hard limit on containers.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// The host is under pressure.
    #[error("the host is under pressure: {0}")]
    Host(#[from] Refusal),
    /// What containers of the provider are made from is not there yet.
    #[error("the provider's image is being unpacked")]
    NotYet,
}

impl Unavailable {
    /// For metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::Host(refusal) => refusal.label(),
            Self::NotYet => "not_ready",
        }
    }
}

/// The right to create one container: a place under the limit, and memory that is kept for it.
#[derive(Debug)]
pub struct Reserved {
    /// The place.
    pub lease: Lease,
    /// Dropped once the container exists.
    pub memory: Reservation,
}

/// What somebody who asks for a container brings along.
pub struct ClaimRequest<'a> {
    /// Who.
    pub user: &'a str,
    /// How long it may wait; not at all when zero.
    pub wait: Duration,
    /// Told how many are served at the latest when it is, itself included, first when it begins to wait and then
    /// whenever that changes.
    pub on_position: &'a (dyn Fn(usize) + Send + Sync),
    /// Whose containers would do as well, and better: those of prestarted CLIs, if one can take the request.
    pub prestarted: Option<&'a Pool>,
}

/// What one who waited gets.
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

/// What a pool shows to the others.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Frozen and claimable.
    pub warm: AtomicUsize,
    /// Being created.
    pub creating: AtomicUsize,
    /// What it may keep although somebody else waits.
    pub floor: AtomicUsize,
}

/// One per daemon.
pub struct Scheduler {
    containers: Arc<Containers>,
    admission: Admission,
    queue: Mutex<FairQueue<Waiter>>,
    /// Length of the line, to be read without its lock.
    waiting: AtomicUsize,
    max_waiting: usize,
    pools: Mutex<Vec<Pool>>,
    /// Why the last one who could not be served could not.
    shortage: Mutex<Option<Unavailable>>,
    pub(super) metrics: Arc<PoolMetrics>,
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

/// Takes its request out of the line, however the wait ends.
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
        // Outside the lock: it may hold the last handle of a pool.
        drop(left);
        self.scheduler.metrics.waited(self.provider, self.outcome, self.since.elapsed());
        self.scheduler.containers.changed().notify_one();
    }
}

impl Scheduler {
    /// Starts the task that serves those who wait.
    pub fn start(settings: SchedulerSettings, containers: Arc<Containers>, metrics: Arc<PoolMetrics>) -> Arc<Self> {
        let this = Arc::new(Self {
            containers,
            admission: Admission::new(settings.admission),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            max_waiting: settings.max_waiting,
            pools: Mutex::default(),
            shortage: Mutex::default(),
            metrics,
        });
        tokio::spawn(Arc::clone(&this).serve());
        this
    }

    /// The containers.
    pub fn containers(&self) -> &Arc<Containers> {
        &self.containers
    }

    /// A claim begins; see [`ClaimGuard`].
    pub fn claiming(&self) -> ClaimGuard {
        self.containers.throttle().claim()
    }

    /// How many wait for a container of `provider`.
    pub fn waiting_for(&self, provider: &str) -> usize {
        if self.waiting() == 0 { 0 } else { lock(&self.queue).waiting_for(provider) }
    }

    /// Whether somebody waits who would take a container of the prestarted pool with these gauges.
    pub(super) fn is_awaited(&self, prestarted: &Arc<Gauges>) -> bool {
        self.waiting() > 0 && lock(&self.queue).in_order().iter().any(|(_, waiter)| waiter.awaits(prestarted))
    }

    /// How many wait, all together.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    fn note_length(&self, queue: &FairQueue<Waiter>, provider: &str) {
        self.waiting.store(queue.len(), Ordering::Release);
        self.metrics.queue(provider, queue.waiting_for(provider));
    }

    /// Lets others see a pool's gauges, until it has stopped.
    pub(super) fn add_pool(&self, pool: &Pool) {
        lock(&self.pools).push(pool.clone());
    }

    pub(super) fn remove_pool(&self, gauges: &Arc<Gauges>) {
        lock(&self.pools).retain(|pool| !Arc::ptr_eq(&pool.gauges, gauges));
    }

    /// Something became free that somebody may wait for.
    pub(super) fn changed(&self) {
        if self.waiting() > 0 {
            self.containers.changed().notify_one();
        }
    }

    /// What a container of `template` needs while it is created.
    pub(super) fn bytes(template: &Template) -> u64 {
        template.prestarted.as_ref().map_or(BARE_BYTES, |prestarted| prestarted.plan.memory_bytes.max(BARE_BYTES))
    }

    /// Takes a place if there is one and the host can carry it.
    pub(super) fn take(&self, bytes: u64) -> Result<Reserved, Unavailable> {
        let memory = self.admission.admit(bytes)?;
        Ok(Reserved { lease: self.containers.lease()?, memory })
    }

    /// Whether a pool may refill with a place that is free: nobody waits, and no other pool lacks it more.
    pub(super) fn may_refill(&self, own: &Arc<Gauges>) -> Result<(), &'static str> {
        if self.waiting() > 0 {
            return Err("requests are waiting for a place");
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
        if owed > 0 && self.containers.free_places() <= owed {
            return Err("other pools are below their minimum");
        }
        Ok(())
    }

    /// A container created for this one request, after waiting for a place if need be; or a warm one of `pool` if
    /// that comes first. Without a `template` it waits until `pool` has one.
    pub(super) async fn cold(
        &self,
        provider: &str,
        pool: Option<&Pool>,
        template: Option<Arc<Template>>,
        want: &ClaimRequest<'_>,
    ) -> Result<Claimed, ClaimError> {
        let bytes = template.as_deref().map_or(BARE_BYTES, Self::bytes);
        let grant = match self.waiting() {
            _ if template.is_none() => Err(Unavailable::NotYet),
            0 => self.take(bytes).map(Grant::Lease),
            // Those who came before go first.
            _ => Err(lock(&self.shortage).unwrap_or(Unavailable::Limit(self.containers.limit()))),
        };
        let grant = match grant {
            Ok(grant) => grant,
            Err(shortage) => self.wait(provider, pool, bytes, want, shortage).await?,
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

    /// A container of `template`, which no pool has, for one request.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(
        &self,
        provider: &str,
        template: Arc<Template>,
        want: &ClaimRequest<'_>,
    ) -> Result<Claimed, ClaimError> {
        self.cold(provider, None, Some(template), want).await
    }

    async fn wait(
        &self,
        provider: &str,
        pool: Option<&Pool>,
        bytes: u64,
        want: &ClaimRequest<'_>,
        shortage: Unavailable,
    ) -> Result<Grant, ClaimError> {
        if let Unavailable::Host(refusal) = &shortage {
            self.metrics.refused(refusal.label(), "claim");
        }
        let not_yet = matches!(shortage, Unavailable::NotYet);
        if not_yet && want.wait.is_zero() {
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
            if want.wait.is_zero() && coming <= queue.waiting_for(provider) {
                return Err(shortage.into());
            }
            if queue.len() >= self.max_waiting {
                return Err(ClaimError::QueueFull { max: self.max_waiting, shortage });
            }
            let prestarted = want.prestarted.cloned();
            let waiter = Waiter { pool: pool.cloned(), prestarted, bytes, grant: sender, position };
            let id = queue.push(provider, want.user, waiter);
            self.note_length(&queue, provider);
            let first = queue.in_order().iter().position(|(other, _)| *other == id).unwrap_or_default() + 1;
            (Ticket { scheduler: self, provider, id, since, outcome: "left" }, first)
        };
        tracing::debug!(provider, user = want.user, position = first, %shortage, "waiting for a container");
        let waits = !want.wait.is_zero();
        if waits {
            (want.on_position)(first);
        }
        // After the ticket exists, so that nobody stays in the line for good.
        self.containers.changed().notify_one();
        let deadline = tokio::time::sleep(if waits { want.wait } else { COMING });
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                granted = &mut grant => match granted {
                    Ok(granted) => {
                        ticket.outcome = "served";
                        return Ok(granted);
                    }
                    // Only the one task that serves has it, and it never drops one without an answer.
                    Err(_) => return Err(ClaimError::Stopped),
                },
                () = &mut deadline => {
                    ticket.outcome = "timeout";
                    let still = pool.is_some_and(|pool| !pool.is_ready());
                    let shortage = if still { Unavailable::NotYet } else { lock(&self.shortage).unwrap_or(shortage) };
                    if !waits {
                        return Err(shortage.into());
                    }
                    return Err(ClaimError::QueueTimeout { waited: want.wait, shortage });
                }
                reason = &mut broken => return Err(ClaimError::NotReady(reason)),
                changed = changes.changed() => match changed {
                    Ok(()) if waits => (want.on_position)(*changes.borrow_and_update()),
                    Ok(()) => drop(changes.borrow_and_update()),
                    // It is served: the grant is on its way.
                    Err(_) => return (&mut grant).await.map_err(|_| ClaimError::Stopped).inspect(|_| ticket.outcome = "served"),
                },
            }
        }
    }

    /// Hands out what becomes free, for as long as the daemon lives. It waits for nobody but the owners of pools, who
    /// wait for nobody.
    async fn serve(self: Arc<Self>) {
        let mut last_shed = None;
        loop {
            match self.waiting() {
                0 => self.containers.changed().notified().await,
                // What the host looks like changes without anybody saying so.
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
                        // Nobody there any more: dropped, and with it the place is free again.
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

    /// Hands out prestarted CLIs. Not everybody in the line can use one, so they go to the first who can: nobody before
    /// it loses anything by that.
    async fn serve_prestarted(&self) {
        loop {
            let next = {
                let queue = lock(&self.queue);
                let ready = |waiter: &Waiter| waiter.prestarted.clone().filter(Pool::has_warm);
                queue.in_order().into_iter().find_map(|(id, waiter)| Some((id, ready(waiter)?)))
            };
            let Some((id, pool)) = next else { return };
            // Somebody else was faster, or it has stopped: nobody can be served from it now.
            let Ok(Some(container)) = pool.take_warm().await else { return };
            if let Some(Grant::Warm(container)) = self.grant(id, &pool.provider, Grant::Warm(container)) {
                pool.give_back(container).await;
            }
        }
    }

    /// Serves one who waits; gives the grant back when it has gone.
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

    /// Lets the pool that has most to spare give up a container for somebody who waits for another provider.
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
