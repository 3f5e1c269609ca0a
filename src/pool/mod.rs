//! Warm containers of one provider: created ahead of time, frozen, handed out once, replaced.
//!
//! One task owns the pool; everybody else sends it messages. It keeps `target` containers warm, gives claims
//! precedence over refilling, looks at each warm container every health interval, and backs off when creating
//! fails. It never holds a container that somebody has used.

mod owner;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::container::{Container, ContainerError, Containers, Limit, Template};
use crate::types;

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
    /// Warm containers wanted.
    pub target: usize,
    /// Time between two health passes.
    pub health_interval: Duration,
    /// Creations at the same time.
    pub concurrent_creations: usize,
}

/// Why a claim got no container.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The hard limit on containers.
    #[error(transparent)]
    Limit(#[from] Limit),
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

/// What the pool answers to a claim.
pub(crate) enum Offer {
    /// A frozen container, now the caller's.
    Warm(Box<Container>),
    /// None is warm: create one with this.
    Empty(Arc<Template>),
    /// Nothing can be created yet.
    NotReady(String),
}

pub(crate) enum Message {
    Claim(oneshot::Sender<Offer>),
    /// A cold claim found no place under the limit, but the pool is creating: have the next one.
    Wait(oneshot::Sender<Offer>),
    SetTarget(usize),
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
}

/// Handle to a pool; cheap to clone. The pool stops, and its containers are destroyed, when it is told to or when the
/// last handle is dropped.
#[derive(Debug, Clone)]
pub struct Pool {
    messages: mpsc::Sender<Message>,
    containers: Arc<Containers>,
}

impl Pool {
    /// Starts the pool's owner task.
    pub fn start(provider: String, settings: Settings, containers: Arc<Containers>, prepare: Prepare) -> Self {
        let (messages, inbox) = mpsc::channel(256);
        let owner = owner::Owner::new(provider, settings, Arc::clone(&containers), prepare);
        tokio::spawn(owner.run(inbox));
        Self { messages, containers }
    }

    /// A container for one execution: a warm one, or else one created on the spot.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self) -> Result<Claimed, ClaimError> {
        let template = match self.ask(Message::Claim).await? {
            Offer::Warm(container) => return Ok(Claimed { container: *container, path: types::ClaimPath::Warm }),
            Offer::NotReady(reason) => return Err(ClaimError::NotReady(reason)),
            Offer::Empty(template) => template,
        };
        let place = match self.containers.place() {
            Ok(place) => place,
            // The last places may have gone to this pool's own refill: what it is creating serves as well.
            Err(limit) => match self.ask(Message::Wait).await? {
                Offer::Warm(container) => {
                    return Ok(Claimed { container: *container, path: types::ClaimPath::Warm });
                }
                _ => return Err(limit.into()),
            },
        };
        let container = self.containers.create(template, place).await?;
        Ok(Claimed { container, path: types::ClaimPath::Cold })
    }

    /// A warm container, or none: what is not there is not created.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn claim_warm(&self) -> Result<Option<Container>, ClaimError> {
        match self.ask(Message::Claim).await? {
            Offer::Warm(container) => Ok(Some(*container)),
            Offer::Empty(_) | Offer::NotReady(_) => Ok(None),
        }
    }

    /// Changes how many warm containers are wanted.
    ///
    /// # Errors
    /// [`ClaimError::Stopped`].
    pub async fn set_target(&self, target: usize) -> Result<(), ClaimError> {
        self.messages.send(Message::SetTarget(target)).await.map_err(|_| ClaimError::Stopped)
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
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, ClaimError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| ClaimError::Stopped)?;
        answer.await.map_err(|_| ClaimError::Stopped)
    }
}
