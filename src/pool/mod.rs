//! Owns the warm containers of one provider: created ahead of time, frozen, claimed once, then replaced.
//!
//! ```text
//! image      NotYet ──unpacked──► Ready          (failed: Broken, tried again with back-off)
//! refill     throttle ─► lease + memory ─► create ─► park ─► warm
//! claim      warm container? ──yes──► Offer::Warm, still frozen
//!                  └─no─► lease free? ──yes──► created for this request
//!                               └─no─► fair queue ─► a warm container or a lease, or QueueTimeout
//! ```
//!
//! One task ([`owner`]) owns each pool; a [`Pool`] is a handle that sends messages to the task. Executions and
//! sandboxes claim; the API reads and changes the target; `service` asks for the status. [`scheduler`] owns what all
//! pools share: leases, admission by the host's memory and CPUs, and the fair queue. While claims are in flight,
//! [`RefillThrottle`](crate::container::RefillThrottle) delays all refilling.
//!
//! Deliberately absent: a way back into the pool for a container that anybody has used.

mod admission;
mod fair_queue;
mod metrics;
mod owner;
mod renewal;
mod scaling;
mod scheduler;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::container::{ClaimGuard, CommandError, Container, ContainerError, Limit, Orphan, Template};
use thaw_client::types;

pub use admission::{AdmissionSettings, Refusal};
pub use metrics::PoolMetrics;
pub use renewal::Renewed;
pub use scaling::{Bounds, Rules};
use scheduler::Gauges;
pub use scheduler::{ClaimRequest, Scheduler, SchedulerSettings, Unavailable};

/// Makes the template of a pool's containers. The call unpacks the image first, which may take seconds: the pool runs
/// it on a blocking thread, and repeats it until it succeeds.
pub type Prepare = Arc<dyn Fn() -> Result<Prepared, PrepareError> + Send + Sync>;

/// Why a pool has nothing to make containers from.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// There is no image of this name.
    #[error("image `{image}` is not built; run: thawctl image build images/{image}")]
    NotBuilt {
        /// The image.
        image: String,
    },
    /// The image cannot be unpacked, or not be used.
    #[error("image `{image}`: {source}")]
    Image {
        /// The image.
        image: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its `/etc/passwd` cannot be read.
    #[error("{0}")]
    Users(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The manifest's `[prestart]` gives no command.
    #[error("the manifest's [prestart]: {0}")]
    Prestart(#[from] CommandError),
}

/// What containers can be made from.
#[derive(Clone)]
pub struct Prepared {
    /// What they are made from.
    pub template: Arc<Template>,
    /// Called when they are from now on, by whoever has to know.
    pub take_over: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prepared").field(&self.template).finish()
    }
}

/// How a pool behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Stage that a container reaches before it is parked: created, or with a prestarted CLI in it.
    pub stage: types::Stage,
    /// The one model that the prestarted CLIs serve; `None` for the provider's default or for a pool without CLIs.
    pub model: Option<String>,
    /// Number of warm containers wanted at the start.
    pub target: usize,
    /// Bounds between which the target may move.
    pub bounds: Bounds,
    /// Rules by which the target moves.
    pub rules: Rules,
    /// Share of the target, percent, below which refilling does not wait for claims in flight.
    pub low_water_percent: usize,
    /// Time between two health checks of all warm containers.
    pub health_interval: Duration,
    /// Number of containers that the pool creates at the same time, at most.
    pub concurrent_creations: usize,
}

/// Why a claim got no container.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// No lease is free, or the host cannot take another container; and the request does not wait.
    #[error(transparent)]
    Short(#[from] Unavailable),
    /// The request would have waited, but the queue is full.
    #[error("{max} requests are waiting already (`queue.max`): {shortage}")]
    QueueFull {
        /// Limit of the queue, requests.
        max: usize,
        /// Why the requests in the queue wait.
        shortage: Unavailable,
    },
    /// The request has waited for its whole deadline.
    #[error("no container became free within {} ms: {shortage}", waited.as_millis())]
    QueueTimeout {
        /// Time that the request waited.
        waited: Duration,
        /// What was missing when the deadline passed.
        shortage: Unavailable,
    },
    /// The provider's image is not unpacked yet, or cannot be unpacked.
    #[error("the provider is not ready: {0}")]
    NotReady(String),
    /// No container was warm, and creating one failed.
    #[error("no container could be created: {0}")]
    Create(#[from] ContainerError),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Stopped,
}

impl ClaimError {
    /// Whether the claim failed only because too much was asked for at once.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Short(_) | Self::QueueFull { .. } | Self::QueueTimeout { .. })
    }
}

impl From<Limit> for ClaimError {
    fn from(limit: Limit) -> Self {
        Self::Short(Unavailable::Limit(limit))
    }
}

/// The pool's answer to a claim.
pub(crate) enum Offer {
    /// A frozen container, which the claimant now owns.
    Warm(Box<Container>),
    /// No container is warm. The claimant may create one from this template.
    Empty(Arc<Template>),
    /// No container can be created yet: the image is being unpacked.
    NotYet,
    /// No container can be created, and waiting will not change that soon: the image cannot be unpacked, for this
    /// reason.
    Broken(String),
}

/// Whether a pool can create containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// The image is being unpacked.
    NotYet,
    /// The image cannot be unpacked, for this reason; the pool tries again with back-off.
    Broken(String),
    /// The template exists.
    Ready,
}

/// A change of a pool's target and bounds. A field that is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Number of warm containers wanted.
    pub target: Option<usize>,
    /// Lowest target.
    pub min: Option<usize>,
    /// Highest target.
    pub max: Option<usize>,
    /// Whether the target moves by itself.
    pub scaling: Option<bool>,
}

pub(crate) enum Message {
    /// Asks for a warm container. With `queued`, none is given: requests in the fair queue go first.
    Claim {
        queued: bool,
        reply: oneshot::Sender<Offer>,
    },
    /// Asks for the template; the answer is `None` until the image is unpacked.
    Template(oneshot::Sender<Option<Arc<Template>>>),
    /// Asks for a warm container for a request from the fair queue.
    Take(oneshot::Sender<Option<Box<Container>>>),
    /// Returns a container that was taken but never used.
    GiveBack(Box<Container>),
    /// Asks the pool to destroy one container above its floor, so that another provider gets the lease.
    Shed,
    Change {
        change: Change,
        reply: oneshot::Sender<Result<types::Pool, String>>,
    },
    Set(usize, Bounds),
    Status(oneshot::Sender<types::Pool>),
    Prepared(oneshot::Sender<bool>),
    /// Takes over the image that its provider has now.
    Renew(oneshot::Sender<Renewed>),
    CheckHealth(oneshot::Sender<usize>),
    Stop,
}

/// A claimed container.
#[derive(Debug)]
pub struct Claimed {
    /// The container; still frozen when it is warm.
    pub container: Container,
    /// Whether the container was warm or created for this claim.
    pub path: types::ClaimPath,
    /// Claim in flight for the refill throttle. Drop it when the command has written its first byte, or has ended.
    pub guard: ClaimGuard,
}

/// Handle to a pool; cheap to clone. Dropping handles does not end the pool: [`Pool::stop`] does.
#[derive(Debug, Clone)]
pub struct Pool {
    provider: Arc<str>,
    messages: mpsc::Sender<Message>,
    gauges: Arc<Gauges>,
    readiness: watch::Receiver<Readiness>,
    scheduler: Arc<Scheduler>,
}

impl Pool {
    /// Starts the pool's owner task. `orphans` are the warm containers that an earlier daemon left in this pool.
    pub fn start(
        provider: &str,
        settings: Settings,
        scheduler: Arc<Scheduler>,
        prepare: Prepare,
        orphans: Vec<Orphan>,
    ) -> Self {
        let (messages, inbox) = mpsc::channel(256);
        let gauges = Arc::new(Gauges::default());
        scheduler.metrics.expect(provider);
        let (readiness_sender, readiness) = watch::channel(Readiness::NotYet);
        let owner = owner::Owner::new(owner::Inputs {
            provider: provider.to_owned(),
            settings,
            scheduler: Arc::clone(&scheduler),
            gauges: Arc::clone(&gauges),
            prepare,
            readiness: readiness_sender,
            orphans,
        });
        let pool = Self { provider: provider.into(), messages, gauges, readiness, scheduler };
        pool.scheduler.add_pool(&pool);
        tokio::spawn(owner.run(inbox));
        pool
    }

    /// Gets a container for one execution: a warm one; or else one created on the spot; or else whatever becomes free
    /// before the request's deadline.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claimed, ClaimError> {
        let guard = self.scheduler.claiming();
        let queued = self.scheduler.waiting_for(&self.provider) > 0;
        let template = match self.ask(|reply| Message::Claim { queued, reply }).await? {
            Offer::Warm(container) => {
                return Ok(Claimed { container: *container, path: types::ClaimPath::Warm, guard });
            }
            Offer::Broken(reason) => return Err(ClaimError::NotReady(reason)),
            // The request waits in the fair queue until the image is unpacked or its deadline passes.
            Offer::NotYet => None,
            Offer::Empty(template) => Some(template),
        };
        // The request may have to wait now. The container that it gets later comes with a guard of its own.
        drop(guard);
        self.scheduler.cold(&self.provider, Some(self), template, request).await
    }

    /// What containers of this pool are created from.
    ///
    /// # Errors
    /// [`ClaimError::NotReady`] while its image is not unpacked.
    pub async fn made_from(&self) -> Result<Arc<Template>, ClaimError> {
        self.template().await
    }

    /// Creates a container of `template`, which is not that of this pool, for one request.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim_other(
        &self,
        template: Arc<Template>,
        request: &ClaimRequest<'_>,
    ) -> Result<Claimed, ClaimError> {
        self.scheduler.claim(&self.provider, template, request).await
    }

    /// Gets a warm container, or `None`. This call creates nothing, and takes nothing that a queued request waits for.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn claim_warm(&self) -> Result<Option<Claimed>, ClaimError> {
        let guard = self.scheduler.claiming();
        let queued = self.scheduler.is_awaited(&self.gauges);
        match self.ask(|reply| Message::Claim { queued, reply }).await? {
            Offer::Warm(container) => Ok(Some(Claimed { container: *container, path: types::ClaimPath::Warm, guard })),
            Offer::Empty(_) | Offer::NotYet | Offer::Broken(_) => Ok(None),
        }
    }

    /// Whether the pool can create containers.
    fn is_ready(&self) -> bool {
        *self.readiness.borrow() == Readiness::Ready
    }

    /// The template that containers are created from.
    async fn template(&self) -> Result<Arc<Template>, ClaimError> {
        self.ask(Message::Template).await?.ok_or_else(|| ClaimError::NotReady(Unavailable::NotYet.to_string()))
    }

    /// Returns the reason once the image turns out to be unusable; otherwise never returns.
    async fn broken(&self) -> String {
        let mut readiness = self.readiness.clone();
        let broken = readiness.wait_for(|readiness| matches!(readiness, Readiness::Broken(_))).await;
        let reason = broken.ok().and_then(|readiness| match &*readiness {
            Readiness::Broken(reason) => Some(reason.clone()),
            Readiness::NotYet | Readiness::Ready => None,
        });
        match reason {
            Some(reason) => reason,
            // The pool's task has ended. Callers learn that from their next message.
            None => std::future::pending().await,
        }
    }

    /// Whether the pool has a warm container, by its published gauge. The gauge may lag behind the pool's task.
    fn has_warm(&self) -> bool {
        self.gauges.warm.load(Ordering::Acquire) > 0
    }

    async fn take_warm(&self) -> Result<Option<Box<Container>>, ClaimError> {
        self.ask(Message::Take).await
    }

    async fn give_back(&self, container: Box<Container>) {
        // If the pool has ended, dropping the container here destroys it.
        let _ = self.messages.send(Message::GiveBack(container)).await;
    }

    async fn shed(&self) {
        // An error means that the pool has ended, and destroys its containers anyway.
        let _ = self.messages.send(Message::Shed).await;
    }

    /// Changes target and bounds until the daemon ends. A target alone switches scaling off; bounds switch scaling on.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`]; the inner error says what is wrong with the change.
    pub async fn change(&self, change: Change) -> Result<Result<types::Pool, String>, ClaimError> {
        self.ask(|reply| Message::Change { change, reply }).await
    }

    /// Resets target and bounds to those of the configuration.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn set(&self, target: usize, bounds: Bounds) -> Result<(), ClaimError> {
        self.messages.send(Message::Set(target, bounds)).await.map_err(|_| ClaimError::Stopped)
    }

    /// The pool's gauges and settings, for the API.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn status(&self) -> Result<types::Pool, ClaimError> {
        self.ask(Message::Status).await
    }

    /// Whether the pool has finished preparing: the image is unpacked, or unpacking has failed. A failed pool counts,
    /// since waiting for it would not help; [`Pool::status`] has the reason.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn is_prepared(&self) -> Result<bool, ClaimError> {
        self.ask(Message::Prepared).await
    }

    /// Takes over the image that its provider has now, if that is another one: one container is made from it first, and
    /// only if that comes to rest are the others replaced, one by one. Returns when that is decided.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn renew(&self) -> Result<Renewed, ClaimError> {
        self.ask(Message::Renew).await
    }

    /// Checks every warm container now; returns how many were broken and will be replaced.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn check_health(&self) -> Result<usize, ClaimError> {
        self.ask(Message::CheckHealth).await
    }

    /// Ends the pool and destroys its warm containers, however many handles exist. Later claims fail with
    /// [`ClaimError::Stopped`].
    pub async fn stop(&self) {
        // An error means that the pool has ended already.
        let _ = self.messages.send(Message::Stop).await;
        self.messages.closed().await;
        self.gauges.warm.store(0, Ordering::Release);
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, ClaimError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| ClaimError::Stopped)?;
        answer.await.map_err(|_| ClaimError::Stopped)
    }
}
