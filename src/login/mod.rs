//! Owns logins that are captured: a provider's CLI logs in, in a container of its own, and what it leaves goes into the vault.
//!
//! ```text
//! begin ──► waiting ──► code ──► exchanging ──► done
//!              │ the CLI prints what the user has to do
//!              └── in every state: failed (time limit, cancelled, the CLI gave up, the daemon stops)
//! ```
//!
//! One task ([`owner`]) owns each, with its container. Others hold a [`Handle`]: they see how far it is, hand over what the
//! user brings back, and cancel it. What a CLI prints is understood by [`recognise`] and [`address`], by what its manifest
//! says; [`callback`] fetches the CLI's own page from inside of the container, once.
//!
//! Called by `api`. Deliberately absent: survival (a login ends with its daemon, and is begun again), the CLI's `logout`
//! (which would revoke what was captured), and everything that the CLI prints, which is nowhere shown but for its last words
//! when it failed.

mod address;
mod callback;
mod error;
mod handle;
mod owner;
mod recognise;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use self::handle::Message;
use self::owner::Owner;
use crate::execution::Executions;
use crate::vault::{Asker, Vault};
use thaw_client::types::{Login, LoginMethod, LoginRequest, LoginState, USER_RULE, is_user};

pub use self::callback::{MAX_QUERY, query_of};
pub use self::error::LoginError;
pub use self::handle::Handle;

/// Logins that have ended and are still listed: the newest.
const KEPT: usize = 100;

/// What an operator decides; see `[login]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Logins at the same time.
    pub max: usize,
    /// How long one may take.
    pub timeout: Duration,
}

/// All logins of the daemon.
#[derive(Debug)]
pub struct Logins {
    settings: Settings,
    executions: Arc<Executions>,
    vault: Arc<Vault>,
    /// By id, which is ordered by time.
    known: Mutex<BTreeMap<String, Arc<Handle>>>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Cancels a login whose client has gone before it knew of it.
struct Client(Option<Arc<Handle>>);

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.cancel();
        }
    }
}

impl Logins {
    /// None yet.
    pub fn new(settings: Settings, executions: Arc<Executions>, vault: Arc<Vault>) -> Self {
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        Self { settings, executions, vault, known: Mutex::default(), shutdown, tasks }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Handle>>> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a login; returns when the user can act. `by` is put on record with the credential.
    ///
    /// # Errors
    /// See [`LoginError`]; nothing is left of it then.
    pub async fn begin(self: &Arc<Self>, request: LoginRequest, by: Asker) -> Result<Arc<Handle>, LoginError> {
        if !is_user(&request.user) {
            return Err(LoginError::InvalidField { field: "user", problem: USER_RULE.to_owned() });
        }
        let Some(served) = self.executions.served().get(&request.provider) else {
            let known = self.executions.served().keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(LoginError::UnknownProvider { name: request.provider, known });
        };
        let Some(way) = served.provider.login(request.method) else {
            let ways = served.provider.login.iter().map(|way| error::word(way.method)).collect::<Vec<_>>().join(", ");
            return Err(match (request.method, ways.is_empty()) {
                (Some(LoginMethod::Browser), _) => LoginError::NoBrowser,
                (_, true) => LoginError::NoLogin(request.provider),
                (method, false) => LoginError::UnknownMethod { method: method.map(error::word), ways },
            });
        };
        let (handle, inbox) = self.enter(&request, way.method)?;
        let (begun, told) = oneshot::channel();
        let owner = Owner {
            handle: Arc::clone(&handle),
            served: served.clone(),
            way: way.clone(),
            vault: Arc::clone(&self.vault),
            by,
            settings: self.executions.settings(),
            deadline: tokio::time::Instant::now() + self.settings.timeout,
            shutdown: self.shutdown.clone(),
        };
        let (this, its) = (Arc::clone(self), Arc::clone(&handle));
        let task = async move {
            if !owner.run(inbox, begun).await {
                this.known().remove(its.id());
            }
        };
        self.tasks.spawn(task.instrument(handle.span().clone()));
        let mut client = Client(Some(Arc::clone(&handle)));
        let outcome = told.await.unwrap_or(Err(LoginError::Stopped));
        client.0 = None;
        outcome.map(|()| handle)
    }

    /// Adds a new one to the list, if it may be begun.
    fn enter(
        &self,
        request: &LoginRequest,
        method: LoginMethod,
    ) -> Result<(Arc<Handle>, tokio::sync::mpsc::Receiver<Message>), LoginError> {
        let mut known = self.known();
        // Under the lock with which `shut_down` looks: none can be added after that.
        if self.shutdown.is_cancelled() {
            return Err(LoginError::Stopped);
        }
        let is_live = |handle: &&Arc<Handle>| !handle.state().is_ended();
        let same = known.values().filter(is_live).find(|one| one.is_of(&request.user, &request.provider));
        if let Some(other) = same {
            let (user, provider, id) = (request.user.clone(), request.provider.clone(), other.id().to_owned());
            return Err(LoginError::Pending { user, provider, id });
        }
        if known.values().filter(is_live).count() >= self.settings.max {
            return Err(LoginError::Limit(self.settings.max));
        }
        let ended: Vec<_> =
            known.iter().filter(|(_, handle)| handle.state().is_ended()).map(|(id, _)| id.clone()).collect();
        for id in ended.iter().take((ended.len() + 1).saturating_sub(KEPT)) {
            known.remove(id);
        }
        let id = format!("l-{}", ulid::Ulid::new().to_string().to_lowercase());
        let (handle, inbox) = Handle::new(id.clone(), request, method, self.settings.timeout);
        known.insert(id, Arc::clone(&handle));
        Ok((handle, inbox))
    }

    /// One login that its client knows of.
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        self.known().get(id).cloned()
    }

    /// All that are known, newest first.
    pub fn list(&self) -> Vec<Login> {
        self.known().values().rev().map(|handle| handle.describe()).collect()
    }

    /// Cancels a login, and returns when its container is given up; one that has ended is forgotten. Whether there is one.
    pub async fn cancel(&self, id: &str) -> bool {
        let Some(handle) = self.get(id) else { return false };
        if handle.state().is_ended() {
            self.known().remove(id);
            return true;
        }
        handle.cancel();
        handle.ended().await;
        true
    }

    /// How many are in which state.
    pub fn count(&self, state: LoginState) -> usize {
        self.known().values().filter(|handle| handle.state() == state).count()
    }

    /// Ends every login and begins no more; returns when all have ended.
    pub async fn shut_down(&self) {
        {
            let _known = self.known();
            self.shutdown.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
