//! Owns sandboxes: containers of users that live on between commands, and the list of those that the daemon knows.
//!
//! ```text
//! create ──► creating ──► active ⇄ frozen ──► gone ──(retention)──► forgotten
//!   │ row written, warm container claimed      │ deleted, idle for too long, ended, lost
//!   └── no container: nothing is left
//! ```
//!
//! One with storage ([`root`]) has a root to write to, which outlives its container: instead of gone it is stopped, and a
//! command starts it again. [`state`] has all steps.
//!
//! One task ([`owner`]) owns each. A command enters by [`Handle::enter`], which wakes the sandbox, and has a [`Use`] of it
//! until it has ended; a sandbox without such a use is idle, and is frozen when it was idle for long enough. What exists is
//! in the database (`rows`); what runs, and in which container, is with the keeper (`note`, `survive`).
//!
//! Called by `api` and by `execution`, whose commands run in sandboxes. Deliberately absent: a way back into a pool, the
//! commands themselves, and anything that brings back a sandbox without storage whose container is gone.

mod claim;
mod create;
mod files;
mod handle;
mod lending;
mod note;
mod owner;
mod root;
mod rows;
mod shared;
mod spec;
mod state;
mod stop;
mod survive;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::container::ContainerError;
use crate::feed::Feed;
use crate::idempotency::IdempotencyKey;
use crate::keeper::Keeper;
use crate::pool::{ClaimError, Pool};
use crate::storage::{Figures, Storage, StorageError};
use crate::store::{Store, StoreError};
use handle::Message;
use rows::Rows;
use shared::Shared;
use thaw_client::types::{self, SandboxChange, SandboxReason, SandboxRequest, SandboxState, SandboxStorage};

pub use crate::container::{Condition, FileError, FileInfo, FileKind, FileLimits, FileProblem, Files, NewFile};
pub use files::{FileCall, Opened, Upload};
pub use handle::{Handle, Use};
pub use rows::{Database, Row};
pub use shared::{FindImage, Settings};
pub use spec::{MAX_ENV_BYTES, MAX_LIFECYCLE_S, MAX_NAME, is_name};
pub use survive::Survivor;

/// Why something cannot be done with sandboxes.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The value of a field is invalid or out of range.
    #[error("`{field}` {problem}")]
    InvalidField {
        /// Which field.
        field: &'static str,
        /// What the value must be.
        problem: String,
    },
    /// The template does not exist.
    #[error("there is no template {name:?}; there is {known}")]
    UnknownTemplate {
        /// Name given.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// The user has one of that name.
    #[error(
        "the user has a sandbox {name:?} already, {id}: take another name, delete that one, or get it with \
         PUT /v1/users/USER/sandboxes/NAME"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Id of the other one.
        id: String,
    },
    /// The user has one of that name which is another.
    #[error("the user's sandbox {name:?}, {id}, is another one: {difference}")]
    Different {
        /// The name.
        name: String,
        /// Id of the one that exists.
        id: String,
        /// In what it differs.
        difference: String,
    },
    /// The key stands for another request.
    #[error(
        "`Idempotency-Key` was given with another request already: send the same request again, or take a new key for \
         this one"
    )]
    KeyReused,
    /// The user has the most sandboxes that one user may have.
    #[error("the user has {0} sandboxes already, the most that one may have (`sandbox.max_per_user`): delete one")]
    UserLimit(usize),
    /// There are as many as there may be.
    #[error("there are {0} sandboxes already, the most that there may be (`sandbox.max`)")]
    Limit(usize),
    /// No container was available.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The container could not be used.
    #[error("the sandbox's container: {0}")]
    Container(#[from] ContainerError),
    /// A descriptor or a file could not be made.
    #[error("the sandbox could not be kept: {0}")]
    Io(#[from] std::io::Error),
    /// What has to be written down cannot be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its root to write to could not be made or used.
    #[error("its storage: {0}")]
    Storage(#[from] StorageError),
    /// The image that it is made from is gone.
    #[error("{0}")]
    NoImage(String),
    /// Its storage cannot be used.
    #[error("sandbox {id} is broken: {why}. Nothing was made anew: repair its file system and wake it, or delete it")]
    Broken {
        /// Which one.
        id: String,
        /// Why.
        why: String,
    },
    /// The values of its variables were lost.
    #[error(
        "the values of the variables of sandbox {id} were lost with the host or the process that keeps them: give {names} \
         once more, with `env` in PATCH /v1/sandboxes/{id}"
    )]
    LostEnv {
        /// Which one.
        id: String,
        /// Names of the variables.
        names: String,
    },
    /// It has no processes.
    #[error("sandbox {id} is {state}: there is nothing to freeze")]
    NotRunning {
        /// Which one.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// It could not be started again.
    #[error("sandbox {0} has no `storage`, and its files would be lost: freeze it, or delete it")]
    NoStorage(String),
    /// Nothing can be written down.
    #[error("there are no sandboxes, because `paths.state_dir` is read-only and has no database for them")]
    ReadOnly,
    /// There is none.
    #[error("there is no sandbox {0:?} (any more)")]
    Unknown(String),
    /// It is gone.
    #[error("sandbox {id} is gone: {why}")]
    Gone {
        /// Which one.
        id: String,
        /// Why.
        why: String,
    },
    /// Commands run in it.
    #[error("{commands} commands run in sandbox {id}: wait until they have ended, or cancel them")]
    Busy {
        /// Which one.
        id: String,
        /// How many.
        commands: usize,
    },
    /// Something is wrong with a file in it.
    #[error(transparent)]
    File(FileError),
    /// There are as many calls for files as there may be.
    #[error("{0} calls for files of sandboxes are under way already, the most that may be (`sandbox.file_calls`)")]
    FileCalls(usize),
    /// Another prompt has its credentials in it.
    #[error("a prompt runs in sandbox {0} already, and has its credentials there: wait for its end, or cancel it")]
    Prompting(String),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Stopped,
}

/// What sandboxes make use of.
pub struct Services {
    /// Where they are written down; `None` where nothing can be written.
    pub database: Option<Database>,
    /// With a keeper, sandboxes survive the daemon.
    pub keeper: Option<Arc<Keeper>>,
    /// Tells others what happens.
    pub feed: Arc<Feed>,
    /// Roots to write to.
    pub storage: Arc<Storage>,
    /// Finds the image that a sandbox was made from.
    pub images: FindImage,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").field("storage", &self.storage).finish_non_exhaustive()
    }
}

/// A sandbox that was asked for.
#[derive(Debug)]
pub struct Created {
    /// The sandbox.
    pub sandbox: Arc<Handle>,
    /// An earlier request had created it.
    pub existed: bool,
}

/// All sandboxes of the daemon.
#[derive(Debug)]
pub struct Sandboxes {
    shared: Arc<Shared>,
    templates: BTreeMap<String, Pool>,
    /// By id: also those that are gone, for a while.
    known: Mutex<BTreeMap<String, Arc<Handle>>>,
    /// Calls for files that may begin.
    file_calls: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// What an earlier daemon wrote down.
///
/// # Errors
/// The database fails, or has something that this program did not write.
pub async fn written(store: &Store) -> Result<Vec<Row>, StoreError> {
    Rows::all(store).await
}

/// What a request for a sandbox comes to, before anything is created.
enum Entered {
    New(Arc<Handle>, handle::Inbox),
    /// The one that an earlier request has created, or is creating.
    Same(Arc<Handle>),
}

impl Sandboxes {
    /// A list without sandboxes. Must be called in a tokio runtime.
    pub fn new(settings: Settings, templates: BTreeMap<String, Pool>, services: Services) -> Self {
        let Services { database, keeper, feed, storage, images } = services;
        let file_calls = Arc::new(Semaphore::new(settings.file_calls));
        let shared = Arc::new(Shared { settings, rows: Rows::new(database), keeper, feed, storage, images });
        Self { shared, templates, known: Mutex::default(), file_calls, shutdown: CancellationToken::new() }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Handle>>> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, handle: Arc<Handle>) {
        self.known().insert(handle.id().to_owned(), handle);
    }

    /// Settings of all sandboxes.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Creates a sandbox, out of a warm container where there is one. With a `key` that an earlier request had, nothing is
    /// created: that sandbox is what the caller gets.
    ///
    /// # Errors
    /// See [`SandboxError`]; nothing is left of it then.
    pub async fn create(
        self: &Arc<Self>,
        request: SandboxRequest,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, SandboxError> {
        self.get_or(request, key, false).await
    }

    /// The user's sandbox of that name, which is created if there is none.
    ///
    /// # Errors
    /// See [`SandboxError`]; [`SandboxError::Different`] if there is one that the request does not describe.
    pub async fn ensure(self: &Arc<Self>, request: SandboxRequest) -> Result<Created, SandboxError> {
        self.get_or(request, None, true).await
    }

    async fn get_or(
        self: &Arc<Self>,
        mut request: SandboxRequest,
        key: Option<IdempotencyKey>,
        by_name: bool,
    ) -> Result<Created, SandboxError> {
        request.storage = self.storage_for(&request)?;
        spec::check(&request)?;
        let Some(pool) = self.templates.get(&request.template) else {
            let known = self.templates.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(SandboxError::UnknownTemplate { name: request.template, known });
        };
        if !self.shared.rows.is_writable() {
            return Err(SandboxError::ReadOnly);
        }
        loop {
            match self.enter(&request, key.as_ref(), by_name)? {
                Entered::Same(sandbox) => {
                    sandbox.settled().await;
                    // One that was not created after all is not known any more.
                    if self.get(sandbox.id()).is_some() {
                        return Ok(Created { sandbox, existed: true });
                    }
                }
                Entered::New(sandbox, inbox) => {
                    let (this, pool, its) = (Arc::clone(self), pool.clone(), Arc::clone(&sandbox));
                    let span = sandbox.span().clone();
                    // A task of its own: it must not depend on the connection of its client.
                    let task = tokio::spawn(async move { this.make(&pool, &its, inbox).await }.instrument(span));
                    task.await.map_err(ContainerError::from)??;
                    return Ok(Created { sandbox, existed: false });
                }
            }
        }
    }

    /// The root to write to that a request comes to.
    fn storage_for(&self, request: &SandboxRequest) -> Result<Option<SandboxStorage>, SandboxError> {
        let asked = match request.storage {
            Some(storage) => storage.size_bytes,
            None if self.shared.settings.storage_bytes.is_none() => return Ok(None),
            None => self.shared.settings.storage_bytes,
        };
        let invalid = |error: StorageError| SandboxError::InvalidField {
            field: "storage.size_bytes",
            problem: error.to_string(),
        };
        let size = self.shared.storage.size(asked).map_err(invalid)?;
        Ok(Some(SandboxStorage { size_bytes: Some(size) }))
    }

    async fn make(&self, pool: &Pool, sandbox: &Arc<Handle>, inbox: handle::Inbox) -> Result<(), SandboxError> {
        let created = create::create(&self.shared, pool, sandbox, inbox).await;
        if let Err(error) = &created {
            tracing::warn!(%error, "sandbox not created");
            self.known().remove(sandbox.id());
            {
                let mut view = sandbox.view();
                (view.state, view.detail) = (SandboxState::Gone, Some(error.to_string()));
            }
            sandbox.publish_state();
        }
        created
    }

    /// Adds a new one to the list, unless there is the same already.
    fn enter(
        &self,
        request: &SandboxRequest,
        key: Option<&IdempotencyKey>,
        by_name: bool,
    ) -> Result<Entered, SandboxError> {
        let mut known = self.known();
        // Under the lock with which `shut_down` lists all sandboxes: none can be added after that.
        if self.shutdown.is_cancelled() {
            return Err(SandboxError::Stopped);
        }
        let of_user = || known.values().filter(|one| one.user() == request.user);
        if let Some(key) = key
            && let Some((earlier, its)) =
                of_user().find_map(|one| one.key().filter(|its| its.key() == key.key()).map(|its| (one, its)))
        {
            return if its.is_same_request(key) {
                Ok(Entered::Same(Arc::clone(earlier)))
            } else {
                Err(SandboxError::KeyReused)
            };
        }
        let is_live = |one: &&Arc<Handle>| one.state() != SandboxState::Gone;
        if let Some(name) = &request.name
            && let Some(other) = of_user().filter(is_live).find(|one| one.name() == Some(name))
        {
            let (name, id) = (name.clone(), other.id().to_owned());
            if !by_name {
                return Err(SandboxError::NameTaken { name, id });
            }
            // Who asks for it by name gives the variables again whose values were lost.
            if other.env().is_err() {
                let _ = other.give_env(request.env.clone());
            }
            return match spec::difference(&other.as_request(), request) {
                None => Ok(Entered::Same(Arc::clone(other))),
                Some(difference) => Err(SandboxError::Different { name, id, difference }),
            };
        }
        let Settings { max, max_per_user, .. } = self.shared.settings;
        if of_user().filter(is_live).count() >= max_per_user {
            return Err(SandboxError::UserLimit(max_per_user));
        }
        if known.values().filter(is_live).count() >= max {
            return Err(SandboxError::Limit(max));
        }
        let id = format!("s-{}", ulid::Ulid::new().to_string().to_lowercase());
        let (handle, inbox) = Handle::new(id.clone(), request.clone(), key.cloned());
        known.insert(id, Arc::clone(&handle));
        Ok(Entered::New(handle, inbox))
    }

    /// One sandbox.
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        self.known().get(id).cloned()
    }

    fn find(&self, id: &str) -> Result<Arc<Handle>, SandboxError> {
        self.get(id).ok_or_else(|| SandboxError::Unknown(id.to_owned()))
    }

    /// The sandbox of that name that a user has, or had last.
    pub fn named(&self, user: &str, name: &str) -> Option<Arc<Handle>> {
        let known = self.known();
        let mut of_name = known.values().rev().filter(|one| one.user() == user && one.name() == Some(name));
        // Ids are time-ordered, and a name is free once its sandbox is gone: the newest is the one that lives.
        of_name.next().cloned()
    }

    /// Those that fit the filter, newest first.
    pub fn list(&self, filter: &types::SandboxFilter) -> types::Page<types::Sandbox> {
        let handles: Vec<_> = self.known().values().rev().cloned().collect();
        let mut fitting = handles.iter().filter(|handle| handle.fits(filter));
        let items: Vec<_> =
            fitting.by_ref().take(filter.limit.unwrap_or(usize::MAX)).map(|one| one.describe()).collect();
        let next_cursor = items.last().map(|last| last.id.clone()).filter(|_| fitting.next().is_some());
        types::Page { items, next_cursor }
    }

    /// How many there are in each state.
    pub fn count(&self) -> Vec<(SandboxState, usize)> {
        let known = self.known();
        let count = |state| known.values().filter(|one| one.state() == state).count();
        SandboxState::ALL.into_iter().map(|state| (state, count(state))).collect()
    }

    /// How much of the disk they take.
    pub fn storage(&self) -> Figures {
        self.shared.storage.figures()
    }

    /// Changes labels and lifecycle.
    ///
    /// # Errors
    /// There is none, it is gone, a value is wrong, or the change cannot be written down.
    pub async fn change(&self, id: &str, change: SandboxChange) -> Result<Arc<Handle>, SandboxError> {
        let handle = self.find(id)?;
        spec::check_change(&change, handle.storage_bytes().is_some())?;
        handle.ask(|reply| Message::Change(change, reply)).await?;
        Ok(handle)
    }

    /// Freezes it now. Commands in the background are frozen with it.
    ///
    /// # Errors
    /// There is none, it is gone, commands run in it, or the kernel does not confirm it.
    pub async fn freeze(&self, id: &str) -> Result<Arc<Handle>, SandboxError> {
        let handle = self.find(id)?;
        handle.ask(Message::Freeze).await?;
        Ok(handle)
    }

    /// Ends its processes and keeps its files. They are told first, and have `sandbox.stop_grace_seconds`.
    ///
    /// # Errors
    /// There is none, it is gone, or it has no storage.
    pub async fn stop(&self, id: &str) -> Result<Arc<Handle>, SandboxError> {
        let handle = self.find(id)?;
        handle.ask(Message::Stop).await?;
        Ok(handle)
    }

    /// Wakes it, if it is frozen or stopped; its time of idleness begins anew.
    ///
    /// # Errors
    /// There is none, or it is gone.
    pub async fn wake(&self, id: &str) -> Result<Arc<Handle>, SandboxError> {
        let handle = self.find(id)?;
        handle.ask(Message::Wake).await?;
        Ok(handle)
    }

    /// Ends a sandbox with everything in it. One that is gone is forgotten.
    ///
    /// # Errors
    /// There is none.
    pub async fn delete(&self, id: &str) -> Result<(), SandboxError> {
        let handle = self.find(id)?;
        if handle.state() == SandboxState::Gone {
            // Where that failed before.
            if self.shared.storage.has(id) {
                self.shared.remove_storage(&handle).await;
            }
            self.forget(id);
            return Ok(self.shared.rows.flush().await?);
        }
        match handle.ask(|reply| Message::End(SandboxReason::Requested, reply)).await {
            // Somebody else was faster.
            Ok(()) | Err(SandboxError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, id: &str) {
        self.known().remove(id);
        self.shared.rows.forget(id);
    }

    /// Forgets those that are gone and whose time is over; called at an interval.
    pub fn forget_expired(&self) {
        let Settings { retention, retained, .. } = self.shared.settings;
        let retention = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let oldest = crate::telemetry::unix_ms().saturating_sub(retention);
        let gone = |handle: &Arc<Handle>| {
            let view = handle.view();
            let is_over = view.state == SandboxState::Gone && !self.shared.storage.has(handle.id());
            is_over.then(|| (view.since_ms, handle.id().to_owned()))
        };
        let mut gone: Vec<_> = self.known().values().filter_map(gone).collect();
        gone.sort_unstable();
        let surplus = gone.len().saturating_sub(retained);
        for (index, (since, id)) in gone.into_iter().enumerate() {
            if index < surplus || since < oldest {
                self.forget(&id);
            }
        }
    }

    /// Stops every sandbox with storage, ends every other one, and creates no more; returns when that is written down.
    pub async fn shut_down(&self) {
        self.shutdown.cancel();
        let handles: Vec<_> = self.known().values().cloned().collect();
        // All at once: each may take its time for ending.
        let mut halting = tokio::task::JoinSet::new();
        for handle in handles.into_iter().filter(|handle| handle.state() != SandboxState::Gone) {
            halting.spawn(async move { handle.ask(Message::Halt).await });
        }
        while halting.join_next().await.is_some() {}
        if let Err(error) = self.shared.rows.flush().await {
            tracing::error!(%error, "that sandboxes are stopped or gone is not written down");
        }
    }
}
