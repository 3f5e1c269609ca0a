//! Warm containers of one provider: created ahead of time, frozen, handed out once, replaced.
//!
//! One task owns each pool; everybody else sends it messages. It keeps as many containers warm as [`scaling`] says,
//! looks at each of them every health interval, and backs off when creating fails. It never holds a container that
//! somebody has used. What pools share is in [`scheduler`]: places, the host's memory and CPUs, and those who wait. While
//! claims are in flight, [`RefillThrottle`](crate::container::RefillThrottle) holds all refilling.

mod admission;
mod fair_queue;
mod metrics;
mod owner;
mod scaling;
mod scheduler;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::container::{ClaimGuard, Container, ContainerError, Limit, Orphan, Template};
use thaw_client::types;

pub use admission::{AdmissionSettings, Refusal};
pub use metrics::PoolMetrics;
pub use scaling::{Bounds, Rules};
use scheduler::Gauges;
pub use scheduler::{ClaimRequest, Scheduler, SchedulerSettings, Unavailable};

/// Makes the template, which needs the image to be unpacked: may take seconds, runs on a blocking thread, and is
/// tried again until it succeeds.
pub type Prepare = Arc<dyn Fn() -> Result<Arc<Template>, String> + Send + Sync>;

/// How a pool behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How far its containers are taken.
    pub stage: types::Stage,
    /// The one model that its containers serve, if it is but one.
    pub model: Option<String>,
    /// Warm containers wanted at the start.
    pub target: usize,
    /// Between which numbers that moves, if it does.
    pub bounds: Bounds,
    /// What moves it.
    pub rules: Rules,
    /// Share of the target below which refilling does not wait for claims, percent.
    pub low_water_percent: usize,
    /// Time between two health passes.
    pub health_interval: Duration,
    /// Creations at the same time.
    pub concurrent_creations: usize,
}

/// Why a claim got no container.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// No place, or the host cannot take more; and the request does not wait.
    #[error(transparent)]
    Short(#[from] Unavailable),
    /// It would have waited, but too many do.
    #[error("{max} requests are waiting already (`queue.max`): {shortage}")]
    QueueFull {
        /// Limit of the queue.
        max: usize,
        /// What they wait for.
        shortage: Unavailable,
    },
    /// It has waited for as long as it may.
    #[error("no container became free within {} ms: {shortage}", waited.as_millis())]
    QueueTimeout {
        /// How long it was.
        waited: Duration,
        /// What was missing in the end.
        shortage: Unavailable,
    },
    /// The image is not there yet.
    #[error("the provider is not ready: {0}")]
    NotReady(String),
    /// Nothing was warm and a container could not be created.
    #[error("no container could be created: {0}")]
    Create(#[from] ContainerError),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Stopped,
}

impl ClaimError {
    /// Whether there was nothing wrong but that too much was asked for at once.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Short(_) | Self::QueueFull { .. } | Self::QueueTimeout { .. })
    }
}

impl From<Limit> for ClaimError {
    fn from(limit: Limit) -> Self {
        Self::Short(Unavailable::Limit(limit))
    }
}

/// What the pool answers to a claim.
pub(crate) enum Offer {
    /// A frozen container, now the caller's.
    Warm(Box<Container>),
    /// None is warm: create one with this.
    Empty(Arc<Template>),
    /// Nothing can be created yet: its image is being unpacked.
    NotYet,
    /// Nothing can be created, and that is going to stay so for a while.
    Broken(String),
}

/// Whether a pool can create containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Its image is being unpacked.
    NotYet,
    /// Its image cannot be unpacked; tried again now and then.
    Broken(String),
    /// It can.
    Ready,
}

/// How a target is changed; what is absent stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Warm containers wanted.
    pub target: Option<usize>,
    /// Fewest.
    pub min: Option<usize>,
    /// Most.
    pub max: Option<usize>,
    /// Whether the target moves by itself.
    pub scaling: Option<bool>,
}

pub(crate) enum Message {
    /// A warm container if there is one; if not `queued`, since those who wait go before.
    Claim {
        queued: bool,
        reply: oneshot::Sender<Offer>,
    },
    /// What a container is created with, if the image is there.
    Template(oneshot::Sender<Option<Arc<Template>>>),
    /// A warm container for one who waits.
    Take(oneshot::Sender<Option<Box<Container>>>),
    /// One that was taken and not used.
    GiveBack(Box<Container>),
    /// Somebody else needs a place more than this pool needs one to spare.
    Shed,
    Change {
        change: Change,
        reply: oneshot::Sender<Result<types::Pool, String>>,
    },
    Set(usize, Bounds),
    Status(oneshot::Sender<types::Pool>),
    Prepared(oneshot::Sender<bool>),
    CheckHealth(oneshot::Sender<usize>),
    Stop,
}

/// A claimed container.
#[derive(Debug)]
pub struct Claimed {
    /// The container; still frozen when it is warm.
    pub container: Container,
    /// Where it came from.
    pub path: types::ClaimPath,
    /// To be dropped when the command has written its first byte, or has ended.
    pub guard: ClaimGuard,
}

/// Handle to a pool; cheap to clone. The pool stops, and its containers are destroyed, when it is told to.
#[derive(Debug, Clone)]
pub struct Pool {
    provider: Arc<str>,
    messages: mpsc::Sender<Message>,
    gauges: Arc<Gauges>,
    readiness: watch::Receiver<Readiness>,
    scheduler: Arc<Scheduler>,
}

impl Pool {
    /// Starts the pool's owner task. `orphans` are what an earlier daemon had in it.
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
        let (told, readiness) = watch::channel(Readiness::NotYet);
        let (its, shown) = (Arc::clone(&scheduler), Arc::clone(&gauges));
        let owner = owner::Owner::new(provider, settings, its, shown, prepare, told, orphans);
        let pool = Self { provider: provider.into(), messages, gauges, readiness, scheduler };
        pool.scheduler.add_pool(&pool);
        tokio::spawn(owner.run(inbox));
        pool
    }

    /// A container for one execution: a warm one, or else one created on the spot, or else whatever becomes free
    /// within the time that it may wait.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self, want: &ClaimRequest<'_>) -> Result<Claimed, ClaimError> {
        let guard = self.scheduler.claiming();
        let queued = self.scheduler.waiting_for(&self.provider) > 0;
        let template = match self.ask(|reply| Message::Claim { queued, reply }).await? {
            Offer::Warm(container) => {
                return Ok(Claimed { container: *container, path: types::ClaimPath::Warm, guard });
            }
            Offer::Broken(reason) => return Err(ClaimError::NotReady(reason)),
            // As any other who waits: in the line, for as long as it may.
            Offer::NotYet => None,
            Offer::Empty(template) => Some(template),
        };
        // It may have to wait; what it gets then comes with another.
        drop(guard);
        self.scheduler.cold(&self.provider, Some(self), template, want).await
    }

    /// A warm container, or none: what is not there is not created, and what somebody waits for is theirs.
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

    /// Whether it can create containers.
    fn is_ready(&self) -> bool {
        *self.readiness.borrow() == Readiness::Ready
    }

    /// What a container is created with.
    async fn template(&self) -> Result<Arc<Template>, ClaimError> {
        self.ask(Message::Template).await?.ok_or_else(|| ClaimError::NotReady(Unavailable::NotYet.to_string()))
    }

    /// Returns the reason once its image turns out to be unusable; never if it does not.
    async fn broken(&self) -> String {
        let mut readiness = self.readiness.clone();
        let broken = readiness.wait_for(|readiness| matches!(readiness, Readiness::Broken(_))).await;
        let reason = broken.ok().and_then(|readiness| match &*readiness {
            Readiness::Broken(reason) => Some(reason.clone()),
            Readiness::NotYet | Readiness::Ready => None,
        });
        match reason {
            Some(reason) => reason,
            // It has ended, which its messages say.
            None => std::future::pending().await,
        }
    }

    /// Whether it has a warm container, as far as it has shown.
    fn has_warm(&self) -> bool {
        self.gauges.warm.load(Ordering::Acquire) > 0
    }

    async fn take_warm(&self) -> Result<Option<Box<Container>>, ClaimError> {
        self.ask(Message::Take).await
    }

    async fn give_back(&self, container: Box<Container>) {
        // When the pool has ended, the container is dropped here, which destroys it.
        let _ = self.messages.send(Message::GiveBack(container)).await;
    }

    async fn shed(&self) {
        // When the pool has ended, its containers are going anyway.
        let _ = self.messages.send(Message::Shed).await;
    }

    /// Changes how many warm containers are wanted, until the daemon ends. A target alone is fixed from then on;
    /// bounds make it move again.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`]; the inner one says what is wrong with the change.
    pub async fn change(&self, change: Change) -> Result<Result<types::Pool, String>, ClaimError> {
        self.ask(|reply| Message::Change { change, reply }).await
    }

    /// Starts anew with these numbers, which the configuration says.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn set(&self, target: usize, bounds: Bounds) -> Result<(), ClaimError> {
        self.messages.send(Message::Set(target, bounds)).await.map_err(|_| ClaimError::Stopped)
    }

    /// Figures for the API.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn status(&self) -> Result<types::Pool, ClaimError> {
        self.ask(Message::Status).await
    }

    /// Whether it could create containers: its image is unpacked. One whose image cannot be unpacked counts too, since
    /// waiting for it would not help; its status tells why.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn is_prepared(&self) -> Result<bool, ClaimError> {
        self.ask(Message::Prepared).await
    }

    /// Looks at every warm container now; returns how many were replaced.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn check_health(&self) -> Result<usize, ClaimError> {
        self.ask(Message::CheckHealth).await
    }

    /// Ends the pool and destroys its warm containers, whoever still holds a handle: claims fail with
    /// [`ClaimError::Stopped`] from then on.
    pub async fn stop(&self) {
        // An error says that it has ended already.
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
