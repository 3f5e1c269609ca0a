//! Owns executions: one command each, from claim to exit, and the list of those that the daemon knows.
//!
//! ```text
//! start ──► pending ──► running ──► exited ──(retention)──► forgotten
//!              │ claim, inject, submit, thaw    │ drain pipes, `exit` event, container dropped
//!              └── no container: the request fails and nothing is kept
//! ```
//!
//! One task ([`run`]) owns each execution. Others hold a [`Handle`]: they read its log, cancel it, and count as readers
//! while they stream. The API starts, reads and cancels; `daemon` adopts and shuts down. Deliberately absent: a second
//! use of a container, and credentials in anything that is kept or logged.

mod clock;
mod decoder;
mod ending;
mod environment;
mod image_run;
mod inside;
mod known;
mod late;
mod metrics;
mod open_stdin;
mod place;
mod plan;
mod resumable;
mod run;
mod said;
mod settings;
mod state;
mod stdin;
mod survive;
mod times;
mod told;
mod users;
mod vaulted;
mod waiting;
mod workspace;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::container::ContainerError;
use crate::egress::Policy;
use crate::feed::Feed;
use crate::idempotency::IdempotencyKey;
use crate::keeper::Keeper;
use crate::pool::{ClaimError, Pool};
use crate::provider::{Dialect, Provider, prestart};
use crate::sandbox::{SandboxError, Sandboxes};
use crate::vault::{Vault, VaultError};
use thaw_client::config::Config;
use thaw_client::time::Timestamp;
use thaw_client::types::{self, DaemonEvent, DaemonEventKind};

pub use crate::output::{
    Cursor, Dropped, Files, Limits as LogLimits, Log, Numbered, Patience, Rendered, Spools, Stream,
};
pub use image_run::{ImageRunError, ImageSettings, Images, LABEL as IMAGE_LABEL, has_workspace, runtime_name};
use known::Known;
pub use metrics::ExecutionMetrics;
pub use open_stdin::{OpenStdin, StdinError};
use place::InSandbox;
pub use plan::{Plan, RUNTIME_USER, RequestError, login_command, prestart_command};
pub use settings::Settings;
use state::{State, Step, Submitted};
pub use survive::{Adopted, tags_in_sandboxes};
use times::Times;
use users::Users;
use waiting::Waiting;
pub use workspace::{Collection, Item, Kind, Limits as FileLimits};

/// Metric label of requests whose provider does not exist.
const NOBODY: &str = "unknown";

/// The image that a provider's containers are made from, as far as it is known: once it is unpacked.
#[derive(Debug, Clone)]
pub struct ImageInUse {
    /// Its environment.
    pub env: Arc<Mutex<Vec<(String, String)>>>,
    /// Its digest.
    pub digest: Arc<Mutex<Option<String>>>,
    /// The layout that it comes from, if there is one.
    pub layout: PathBuf,
}

/// A provider and its pools.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its manifest.
    pub provider: Arc<Provider>,
    /// The pool of its containers.
    pub pool: Pool,
    /// Its pools of prestarted CLIs, with the plan of each: one, or one for each model if the CLI has a fixed model.
    pub prestarted: Vec<(Pool, Arc<prestart::Plan>)>,
    /// The image that its containers are made from.
    pub image: ImageInUse,
    /// Where its containers may connect to.
    pub policy: Arc<Policy>,
    /// Base URL of the operator's upstream, instead of the provider's own.
    pub base_url: Option<String>,
}

/// Why an execution was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No container was available.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The container could not be used.
    #[error("the execution could not be started: {0}")]
    Container(#[from] ContainerError),
    /// A descriptor or a file of the log could not be made.
    #[error("the execution could not be started: {0}")]
    Io(#[from] std::io::Error),
    /// The user's credential in the vault cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The sandbox cannot be used.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The user has the most executions that one user may have.
    #[error("the user has {0} executions already, the most that one may have (`execution.max_per_user`)")]
    UserLimit(usize),
    /// The client went away while the execution waited for a container.
    #[error("its client went away before it started")]
    Left,
    /// The execution was cancelled before it got a container.
    #[error("the execution was cancelled before it started")]
    Cancelled,
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Stopped,
    /// The key stands for another request.
    #[error(
        "`Idempotency-Key` was given with another request already: send the same request again, or take a new key for \
         this one"
    )]
    KeyReused,
}

/// What a request that starts an execution brings besides itself.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What its client is about to read.
    pub audience: Audience,
    /// Shown with the execution and its events, and on log lines.
    pub request_id: Option<String>,
    /// A request with this key was perhaps made before.
    pub key: Option<IdempotencyKey>,
}

/// An execution that was asked for.
#[derive(Debug)]
pub struct Begun {
    /// Its client, as a reader.
    pub reader: Reader,
    /// It had been started by an earlier request with the same key.
    pub replayed: bool,
}

/// Why an execution cannot be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// There is none.
    #[error("there is no such execution")]
    Unknown,
    /// It has not ended.
    #[error("it has not ended: cancel it, and delete it when it has (`wait` on it tells)")]
    Running,
}

/// What the caller that starts an execution will read of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Nothing.
    None,
    /// Standard output alone; such a caller cannot be notified that it waits.
    Output,
    /// Events.
    Events,
}

/// Shared view of an execution.
#[derive(Debug)]
pub struct Handle {
    id: String,
    provider: String,
    /// The sandbox that it runs in, if there is one.
    sandbox: Option<InSandbox>,
    user: String,
    model: Option<String>,
    /// The command as it is shown; none for a prompt.
    shown: Option<String>,
    created_at_ms: u64,
    timeout: Duration,
    start_timeout: Option<Duration>,
    /// Whether the execution goes on without readers.
    background: bool,
    dialect: Option<Dialect>,
    labels: BTreeMap<String, String>,
    request_id: Option<String>,
    key: Option<IdempotencyKey>,
    times: Mutex<Times>,
    /// Neither the daemon nor the keeper knows it any more.
    forgotten: CancellationToken,
    /// Names it on every log line.
    span: tracing::Span,
    /// Log of its events.
    pub log: Log,
    state: Mutex<State>,
    cancel: CancellationToken,
    readers: watch::Sender<usize>,
    waiting: Waiting,
    /// What is collected of its files.
    collection: Option<Collection>,
    /// Its standard input, if it stays open.
    stdin: Option<Arc<OpenStdin>>,
    /// When its time is over, by the clock of [`clock::now`]; once its first command has started.
    deadline: OnceLock<Duration>,
    /// The user's credential, if it comes from the vault.
    vaulted: Option<Arc<vaulted::Vaulted>>,
    /// How its first command ended, if it is asked once more.
    first_exit: OnceLock<types::Exit>,
    keeper: Option<Arc<Keeper>>,
    feed: Arc<Feed>,
}

impl Handle {
    /// Tells those who watch the daemon.
    fn publish(&self, kind: DaemonEventKind, particulars: impl FnOnce(&mut DaemonEvent)) {
        let mut event = DaemonEvent::new(kind);
        event.provider = Some(self.provider.clone());
        event.execution = Some(self.id.clone());
        event.sandbox = self.sandbox.as_ref().map(|sandbox| sandbox.id.clone());
        event.user = Some(self.user.clone());
        particulars(&mut event);
        self.feed.publish(event);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each step leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        // Each change leaves the value whole too.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step of the state machine. Returns whether the step is allowed now.
    fn step(&self, step: Step) -> bool {
        let taken = self.state().take(step);
        if let Err(error) = &taken {
            tracing::error!(%error, "a bug: a step of an execution is left out");
        }
        taken.is_ok()
    }

    fn submitted(&self) -> Option<Submitted> {
        self.state().submitted().cloned()
    }

    /// Notes what it is about to run, for the next daemon too; `pipes` are its standard output and standard error, and, of
    /// a CLI that runs already, its standard input and what is said to it.
    fn submit(&self, command: Submitted, pipes: &[BorrowedFd<'_>]) {
        // There may have been a command before.
        self.log.note_not_submitted();
        self.keep(Some((&command, pipes)));
        self.step(Step::Submit(command));
    }

    /// Whether the keeper holds the execution.
    fn is_kept(&self) -> bool {
        self.state().is_kept()
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The user that the execution belongs to.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Span of the execution's log lines: its id, provider and user, and the id of the request.
    pub fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// The execution as the API shows it.
    pub fn describe(&self) -> types::Execution {
        let times = self.times().clone();
        let state = self.state();
        types::Execution {
            id: self.id.clone(),
            provider: self.provider.clone(),
            sandbox: self.sandbox.as_ref().map(|sandbox| sandbox.id.clone()),
            user: self.user.clone(),
            model: self.model.clone(),
            command: self.shown.clone(),
            state: state.shown(),
            queue_position: state.queue_position(),
            container: state.assignment().map(|assigned| assigned.container.clone()),
            path: state.assignment().map(|assigned| assigned.path),
            created_at_ms: self.created_at_ms,
            created_at: Some(Timestamp::from_unix_ms(self.created_at_ms)),
            started_at: times.started(),
            ended_at: times.ended(),
            queued_ms: times.queued_ms(),
            timeout_ms: self.timeout.as_millis() as u64,
            labels: self.labels.clone(),
            request_id: self.request_id.clone(),
            exit: state.exit().cloned(),
        }
    }

    /// Its standard input, if it stays open.
    pub fn stdin(&self) -> Option<&OpenStdin> {
        self.stdin.as_deref()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        self.log.closed().await;
    }

    /// How long its command has run, or ran, milliseconds.
    pub fn run_ms(&self) -> u64 {
        self.times().run_ms()
    }

    /// Asks for it to end; the `exit` event says when it has. Once this has returned, it will, whatever becomes of this
    /// daemon.
    pub fn cancel(&self) {
        if self.state().exit().is_none() {
            self.log.note_stop(ending::Stop::Cancelled as u8);
        }
        self.cancel.cancel();
    }

    /// Counts as a reader until the guard is dropped.
    pub fn read(self: &Arc<Self>) -> Reader {
        self.reader(true)
    }

    /// With `follows`, the command waits for this reader.
    fn reader(self: &Arc<Self>, follows: bool) -> Reader {
        let follower = follows.then(|| self.log.join());
        self.readers.send_modify(|readers| *readers += 1);
        Reader { follower, handle: Arc::clone(self) }
    }
}

/// Span of an execution's log lines. Its level is error, because a filter for warnings would otherwise remove the
/// fields.
fn span(id: &str, provider: &str, user: &str, request_id: Option<&str>) -> tracing::Span {
    tracing::error_span!(parent: None, "execution", execution = id, provider, user, request_id)
}

/// A reader of an execution's events or output.
#[derive(Debug)]
pub struct Reader {
    handle: Arc<Handle>,
    follower: Option<u64>,
}

impl Reader {
    /// The execution.
    pub fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// See [`Log::is_over`].
    pub fn is_over(&self, after: u64) -> bool {
        self.handle.log.is_over(after)
    }

    /// See [`Log::length`].
    pub fn length(&self, stream: Stream) -> Option<u64> {
        self.handle.log.length(stream)
    }

    /// The next events; see [`Log::next`].
    pub async fn next(&self, after: u64, max: usize) -> Vec<Numbered> {
        self.handle.log.next(self.follower, after, max).await
    }

    /// The bytes that have arrived; see [`Log::read_output`].
    ///
    /// # Errors
    /// [`Dropped`].
    pub fn read_output(&self, cursor: &mut Cursor) -> Result<Bytes, Dropped> {
        self.handle.log.read_output(self.follower, cursor)
    }

    /// The next bytes; see [`Log::next_output`].
    ///
    /// # Errors
    /// [`Dropped`].
    pub async fn next_output(&self, cursor: &mut Cursor) -> Result<Bytes, Dropped> {
        self.handle.log.next_output(self.follower, cursor).await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(follower) = self.follower {
            self.handle.log.leave(follower);
        }
        self.handle.readers.send_modify(|readers| *readers -= 1);
    }
}

/// All executions of the daemon.
#[derive(Debug)]
pub struct Executions {
    settings: RwLock<Settings>,
    served: BTreeMap<String, Served>,
    images: Images,
    metrics: Arc<ExecutionMetrics>,
    known: Mutex<Known>,
    users: Users,
    spools: Spools,
    keeper: Option<Arc<Keeper>>,
    /// Source of credentials for requests that bring none.
    vault: Option<Arc<Vault>>,
    sandboxes: Arc<Sandboxes>,
    feed: Arc<Feed>,
    shutdown: CancellationToken,
}

/// What executions make use of.
#[derive(Debug)]
pub struct Services {
    /// Counts what happens.
    pub metrics: Arc<ExecutionMetrics>,
    /// Where output is stored.
    pub spools: Spools,
    /// With a keeper, executions survive the daemon.
    pub keeper: Option<Arc<Keeper>>,
    /// Tells others what happens.
    pub feed: Arc<Feed>,
    /// Source of credentials for requests that bring none; without a vault, each request brings its own.
    pub vault: Option<Arc<Vault>>,
    /// Where commands run that name a sandbox.
    pub sandboxes: Arc<Sandboxes>,
}

impl Executions {
    /// A list without executions.
    pub fn new(settings: Settings, served: BTreeMap<String, Served>, images: Images, services: Services) -> Self {
        let Services { metrics, spools, keeper, feed, vault, sandboxes } = services;
        for provider in served.keys().map(String::as_str).chain([image_run::LABEL]) {
            metrics.expect(provider);
        }
        let (known, users, shutdown) = (Mutex::default(), Users::default(), CancellationToken::new());
        let settings = RwLock::new(settings);
        Self { settings, served, images, metrics, known, users, spools, keeper, vault, sandboxes, feed, shutdown }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The providers, by name.
    pub fn served(&self) -> &BTreeMap<String, Served> {
        &self.served
    }

    /// Checks a request, claims a container and starts the command in it. Returns when the command runs; or, for a
    /// caller that reads events, when the request has to wait for a container. If the caller goes away before that, the
    /// request leaves the queue.
    ///
    /// A caller that reads anything counts as a reader from the start, and its going away cancels the execution (unless
    /// `background` is set). If the request was made before with the same key, nothing is started, and that execution is
    /// what the caller gets.
    ///
    /// `audience` says what the caller will read. A caller that reads anything counts as a reader from the start, and its
    /// going away cancels the execution (unless `background` is set). `request_id` appears with the execution, its events
    /// and its log lines.
    /// # Errors
    /// See [`StartError`]; nothing is left of the execution then.
    pub async fn start(self: &Arc<Self>, request: types::ExecutionRequest, asked: Asked) -> Result<Begun, StartError> {
        let received = Instant::now();
        let audience = asked.audience;
        // Before anything is checked: what was accepted once is not refused when it is asked for again.
        if let Some(reader) = self.join(&request.user, asked.key.as_ref(), audience).await? {
            return Ok(Begun { reader, replayed: true });
        }
        let background = request.background || audience == Audience::None;
        let (request, lent) = self.with_stored_credentials(request).await?;
        let mut plan = self.plan(request).await?;
        let settings = self.settings();
        let max = settings.max_per_user;
        let slot = self.users.enter(&plan.user, max).ok_or_else(|| {
            let error = StartError::UserLimit(max);
            self.metrics.refused(&plan.provider, &error);
            error
        })?;
        let log = Log::new(settings.log_limits(), self.spools.files()?)?;
        let collection = match plan.work.collect.is_empty() {
            true => None,
            false => Some(Collection::new(plan.work.collect.clone(), self.spools.file()?)),
        };
        let id = format!("e-{}", ulid::Ulid::new().to_string().to_lowercase());
        let stdin = match plan.stdin_open {
            true => {
                let text = plan.stdin.take().unwrap_or_default();
                Some(OpenStdin::new(&id, self.spools.file()?, &text, self.keeper.clone())?)
            }
            false => None,
        };
        let span = span(&id, &plan.provider, &plan.user, asked.request_id.as_deref());
        let vaulted = self.vaulted(lent, &plan.provider, &plan.user, &id).map(Arc::new);
        let handle = Arc::new(Handle {
            id,
            provider: plan.provider.clone(),
            sandbox: plan.in_sandbox(),
            user: plan.user.clone(),
            model: plan.model.clone(),
            shown: plan.shown.clone(),
            created_at_ms: crate::telemetry::unix_ms(),
            timeout: plan.timeout,
            start_timeout: plan.start_timeout,
            background,
            dialect: plan.dialect,
            labels: plan.labels.clone(),
            request_id: asked.request_id,
            key: asked.key,
            times: Mutex::default(),
            forgotten: CancellationToken::new(),
            span: span.clone(),
            log,
            state: Mutex::new(State::new()),
            cancel: CancellationToken::new(),
            readers: watch::Sender::new(0),
            waiting: Waiting::new(audience == Audience::Events, background),
            collection,
            stdin,
            deadline: OnceLock::new(),
            vaulted,
            first_exit: OnceLock::new(),
            keeper: self.keeper.clone(),
            feed: Arc::clone(&self.feed),
        });
        let reader = handle.reader(audience != Audience::None);
        let not_started = || handle.stdin.iter().for_each(|stdin| stdin.close("the execution was not started"));
        while !self.enter(&handle).inspect_err(|_| not_started())? {
            // The same request came twice at the same time, and the other one was faster.
            let other = self.join(&handle.user, handle.key.as_ref(), audience).await;
            if let Some(reader) = other.inspect_err(|_| not_started())? {
                not_started();
                if let Some(vaulted) = &handle.vaulted {
                    vaulted.end_turn();
                }
                return Ok(Begun { reader, replayed: true });
            }
        }
        let (started, outcome) = oneshot::channel();
        let (this, its) = (Arc::clone(self), Arc::clone(&handle));
        // A task of its own: the execution must not depend on the connection of its client.
        let task = async move {
            let ran = run::run(&this, Arc::clone(&its), plan, received, started).await;
            if let Some(vaulted) = &its.vaulted {
                vaulted.end_turn();
            }
            drop(slot);
            this.ended(&its, ran || its.waiting.was_told());
        };
        tokio::spawn(task.instrument(span));
        let client = waiting::Client::new(&handle);
        let outcome = tokio::select! {
            outcome = outcome => outcome.map_err(|_| StartError::Stopped)?,
            () = handle.waiting.begun() => Ok(()),
        };
        client.answered();
        // Once the client was notified that it waits, the events tell everything else.
        let outcome = if handle.waiting.was_told() { Ok(()) } else { outcome };
        outcome.map(|()| Begun { reader, replayed: false })
    }

    /// Adds an execution to the list, unless its key stands for another one. Returns whether it was added.
    fn enter(&self, handle: &Arc<Handle>) -> Result<bool, StartError> {
        let mut known = self.known();
        // Under the lock with which `shut_down` lists all executions: none can be added after that.
        if self.shutdown.is_cancelled() {
            return Err(StartError::Stopped);
        }
        let is_taken = handle.key.as_ref().is_some_and(|key| known.of_key(&handle.user, key).is_some());
        if !is_taken {
            known.insert(Arc::clone(handle));
        }
        Ok(!is_taken)
    }

    /// The execution that an earlier request with this key has started, once it is as far as its caller wants to know.
    /// `None` if there is no such execution, or if it could not be started.
    async fn join(
        &self,
        user: &str,
        key: Option<&IdempotencyKey>,
        audience: Audience,
    ) -> Result<Option<Reader>, StartError> {
        let Some(key) = key else { return Ok(None) };
        let Some(handle) = self.known().of_key(user, key).cloned() else { return Ok(None) };
        if !handle.key.as_ref().is_some_and(|its| its.is_same_request(key)) {
            return Err(StartError::KeyReused);
        }
        let reader = handle.reader(audience != Audience::None);
        if audience == Audience::Events || handle.has_begun().await {
            return Ok(Some(reader));
        }
        if handle.cancel.is_cancelled() {
            return Err(StartError::Cancelled);
        }
        if self.shutdown.is_cancelled() {
            return Err(StartError::Stopped);
        }
        handle.forgotten.cancelled().await;
        Ok(None)
    }

    /// Checks a request. For an image this reads files of the image, and therefore runs on a blocking thread.
    async fn plan(self: &Arc<Self>, request: types::ExecutionRequest) -> Result<Plan, StartError> {
        if let Some(id) = &request.sandbox {
            let sandbox = self.sandboxes.get(id);
            let template =
                sandbox.as_ref().map(|sandbox| sandbox.template()).filter(|name| self.served.contains_key(*name));
            let label = template.unwrap_or(NOBODY);
            let plan = inside::plan(request, self, &self.sandboxes);
            return plan.inspect_err(|error| self.metrics.refused(label, error));
        }
        // Metric labels are bounded: a provider that does not exist gets a fixed label.
        let label = match (&request.image, self.served.get(&request.provider)) {
            (Some(_), _) => image_run::LABEL,
            (None, Some(served)) => &served.provider.name,
            (None, None) => NOBODY,
        }
        .to_owned();
        let is_slow = label == image_run::LABEL || request.archive.is_some();
        let this = Arc::clone(self);
        let check = move || plan::plan(request, &this.served, &this.images, &this.settings());
        // Neither is one to wait for an archive that is unpacked.
        let checked = match is_slow {
            true => tokio::task::spawn_blocking(check).await.map_err(std::io::Error::other)?,
            false => check(),
        };
        checked.map_err(|error| {
            let error = StartError::from(error);
            self.metrics.refused(&label, &error);
            error
        })
    }

    /// Keeps an ended execution for a while. Forgets one that never started, unless its client knows of it.
    fn ended(&self, handle: &Handle, keep: bool) {
        let mut known = self.known();
        if keep {
            let ended_at = handle.log.ended_at().map_or_else(Instant::now, clock::instant);
            known.retain(handle, ended_at + self.settings().retention);
        } else {
            known.remove(&handle.id);
        }
        known.forget(&self.settings());
    }

    /// Forgets ended executions whose time is over; called at an interval.
    pub fn forget_expired(&self) {
        self.known().forget(&self.settings());
    }

    /// One execution.
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        self.known().get(id).cloned()
    }

    /// Takes over a changed configuration, but for how much output is kept, which was fitted to the memory of the unit, and the
    /// proxy's port, which running containers have. What runs goes on with the limits that it began with.
    pub fn change(&self, config: &Config) {
        let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        let Settings { output_bytes, retained_bytes, proxy_port, .. } = *settings;
        *settings = Settings { output_bytes, retained_bytes, proxy_port, ..Settings::of(config) };
        self.images.scheduler().set_max_waiting(config.queue.max);
    }

    /// Settings of all executions.
    pub fn settings(&self) -> Settings {
        *self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The known executions that fit the filter, newest first.
    pub fn list(&self, filter: &types::ExecutionFilter) -> types::Page<types::Execution> {
        let handles = self.known().all();
        known::page(handles, filter)
    }

    /// Forgets an ended execution with everything that it has written: in this daemon, at the keeper and in the files
    /// that its output lies in.
    ///
    /// # Errors
    /// [`DeleteError`].
    pub async fn delete(&self, id: &str) -> Result<(), DeleteError> {
        let handle = {
            let mut known = self.known();
            let has_ended = known.get(id).ok_or(DeleteError::Unknown)?.log.is_closed();
            if !has_ended {
                return Err(DeleteError::Running);
            }
            known.remove(id).ok_or(DeleteError::Unknown)?
        };
        // Another daemon must not find half of it.
        if let Some(keeper) = &self.keeper {
            keeper.caught_up().await;
        }
        handle.log.erase();
        if let Some(Err(error)) = handle.collection().map(Collection::erase) {
            handle.span.in_scope(|| tracing::error!(%error, "collected files that were deleted cannot be thrown away"));
        }
        handle.publish(DaemonEventKind::ExecutionDeleted, |_| {});
        handle.span.in_scope(|| tracing::info!("execution deleted"));
        Ok(())
    }

    /// Ends every execution (reason `killed`) and accepts no more; returns when all have written their `exit`.
    pub async fn shut_down(&self) {
        self.shutdown.cancel();
        let handles = self.known().all();
        for handle in handles {
            let mut after = 0;
            while let Some(last) = handle.log.next(None, after, 1024).await.last() {
                after = last.sequence;
            }
        }
    }
}
