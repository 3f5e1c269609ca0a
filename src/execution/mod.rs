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
mod late;
mod metrics;
mod plan;
mod resumable;
mod run;
mod said;
mod state;
mod stdin;
mod survive;
mod users;
mod vaulted;
mod waiting;
mod workspace;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::container::ContainerError;
use crate::keeper::Keeper;
use crate::pool::{ClaimError, Pool};
use crate::provider::{Dialect, Provider, prestart};
use crate::vault::{Vault, VaultError};
use thaw_client::config::Config;
use thaw_client::types;

pub use crate::output::{
    Cursor, Dropped, Files, Limits as LogLimits, Log, Numbered, Patience, Rendered, Spools, Stream,
};
pub use image_run::{ImageRunError, ImageSettings, Images, LABEL as IMAGE_LABEL, has_workspace, runtime_name};
pub use metrics::ExecutionMetrics;
pub use plan::{Plan, RUNTIME_USER, RequestError, prestart_command};
use state::{State, Step, Submitted};
pub use survive::Adopted;
use users::Users;
use waiting::Waiting;
pub use workspace::{Collection, Item, Kind, Limits as FileLimits};

/// Metric label of requests whose provider does not exist.
const NOBODY: &str = "unknown";

/// How executions behave; see `[execution]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Output kept per execution, bytes.
    pub output_bytes: usize,
    /// Output in a pipe at once from which on there is a second pipe, bytes.
    pub second_pipe_bytes: usize,
    /// Output of a stream from which on it lies in large pages, bytes.
    pub large_pages_bytes: u64,
    /// How long a command waits for readers that take nothing of its output.
    pub reader_stall: Duration,
    /// Time that an ended execution is kept.
    pub retention: Duration,
    /// Most ended executions kept.
    pub retained: usize,
    /// Most output of ended executions kept, all together, bytes.
    pub retained_bytes: usize,
    /// Time without a reader after which an execution without `background` is cancelled.
    pub disconnect_grace: Duration,
    /// The same at first for an execution that survived a restart of the daemon; also the time that a command waits for
    /// a reader that went away.
    pub reconnect_grace: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
    /// Longest time limit of an execution.
    pub max_timeout: Duration,
    /// Port of the egress proxy in the container.
    pub proxy_port: u16,
    /// Time that a request waits for a container if it names none.
    pub queue_timeout: Duration,
    /// Longest time that a request may wait for a container.
    pub max_queue_timeout: Duration,
    /// Executions of one user at the same time, those that wait included.
    pub max_per_user: usize,
    /// Files that go in and come back.
    pub files: FileLimits,
}

impl Settings {
    /// As the configuration has them.
    pub fn of(config: &Config) -> Self {
        let (execution, queue) = (&config.execution, &config.queue);
        Self {
            output_bytes: execution.output_bytes,
            second_pipe_bytes: execution.second_pipe_bytes,
            large_pages_bytes: execution.large_pages_bytes,
            reader_stall: Duration::from_millis(execution.reader_stall_ms),
            retention: Duration::from_secs(execution.retention_seconds),
            retained: execution.retained,
            retained_bytes: execution.retained_bytes,
            disconnect_grace: Duration::from_millis(execution.disconnect_grace_ms),
            reconnect_grace: Duration::from_millis(execution.reconnect_grace_ms),
            kill_grace: Duration::from_millis(execution.kill_grace_ms),
            max_timeout: Duration::from_millis(execution.max_timeout_ms),
            proxy_port: config.egress.port,
            queue_timeout: Duration::from_millis(queue.timeout_ms),
            max_queue_timeout: Duration::from_millis(queue.max_timeout_ms),
            max_per_user: execution.max_per_user,
            files: FileLimits {
                put: thaw_os::workspace::Limits { bytes: execution.files_bytes, entries: execution.files_entries },
                collect: thaw_os::workspace::Limits {
                    bytes: execution.collect_bytes,
                    entries: execution.collect_entries,
                },
            },
        }
    }

    /// The same within `memory`, bytes, if that is all that this process and the output that it keeps may use: a half of it
    /// for what up to `containers` executions say, a quarter for what ended ones have said.
    #[must_use]
    pub fn within(mut self, memory: Option<u64>, containers: usize) -> Self {
        if let Some(memory) = memory.and_then(|memory| usize::try_from(memory).ok()) {
            self.fit(memory, containers);
        }
        // What is collected is kept beside the output, or it would be forgotten as soon as it is there.
        let collect = self.retained_bytes.saturating_sub(self.output_bytes) as u64;
        self.files.collect.bytes = self.files.collect.bytes.min(collect);
        self
    }

    fn fit(&mut self, memory: usize, containers: usize) {
        let output = (memory / 2 / containers.max(1)).max(MIN_OUTPUT_BYTES);
        for (key, bytes, most) in [
            ("execution.output_bytes", &mut self.output_bytes, output),
            ("execution.retained_bytes", &mut self.retained_bytes, memory / 4),
        ] {
            if *bytes > most {
                tracing::warn!(
                    key,
                    configured = *bytes,
                    used = most,
                    memory_limit = memory,
                    "more than the memory limit of this unit allows; less is kept"
                );
                *bytes = most;
            }
        }
    }

    fn log_limits(&self) -> LogLimits {
        LogLimits {
            bytes: self.output_bytes,
            fast: self.second_pipe_bytes,
            large: self.large_pages_bytes,
            patience: Patience { stall: self.reader_stall, away: self.reconnect_grace },
        }
    }
}

/// Lower bound of `output_bytes`; the configuration enforces it too.
const MIN_OUTPUT_BYTES: usize = 64 << 10;

/// A provider and its pools.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its manifest.
    pub provider: Arc<Provider>,
    /// The pool of its containers.
    pub pool: Pool,
    /// Its pools of prestarted CLIs, and what each can take: one, or one for each model if that cannot be changed late.
    pub prestarted: Vec<(Pool, Arc<prestart::Plan>)>,
    /// Environment of its image; filled when the image is unpacked.
    pub image_env: Arc<Mutex<Vec<(String, String)>>>,
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
    /// When its time is over, by the clock of [`clock::now`]; once its first command has started.
    deadline: OnceLock<Duration>,
    /// The user's credential, if it is the vault's.
    vaulted: Option<Arc<vaulted::Vaulted>>,
    /// How its first command ended, if it is asked once more.
    first_exit: OnceLock<types::Exit>,
    keeper: Option<Arc<Keeper>>,
}

impl Handle {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each step leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let state = self.state();
        types::Execution {
            id: self.id.clone(),
            provider: self.provider.clone(),
            user: self.user.clone(),
            model: self.model.clone(),
            command: self.shown.clone(),
            state: state.shown(),
            queue_position: state.queue_position(),
            container: state.assignment().map(|assigned| assigned.container.clone()),
            path: state.assignment().map(|assigned| assigned.path),
            created_at_ms: self.created_at_ms,
            timeout_ms: self.timeout.as_millis() as u64,
            labels: self.labels.clone(),
            request_id: self.request_id.clone(),
            exit: state.exit().cloned(),
        }
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
    shutdown: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    executions: HashMap<String, Arc<Handle>>,
    /// Ended executions, oldest first.
    ended: VecDeque<Retained>,
    /// Sum of the sizes in `ended`, bytes.
    ended_bytes: usize,
}

#[derive(Debug)]
struct Retained {
    id: String,
    /// Time until which the execution is kept.
    until: Instant,
    /// Size of its log, bytes.
    bytes: usize,
}

impl Known {
    /// Forgets ended executions, oldest first, until the rest is within the limits.
    fn forget(&mut self, settings: &Settings) {
        let now = Instant::now();
        while self.ended.len() > settings.retained
            || self.ended_bytes > settings.retained_bytes
            || self.ended.front().is_some_and(|oldest| oldest.until <= now)
        {
            let Some(oldest) = self.ended.pop_front() else { return };
            self.ended_bytes -= oldest.bytes;
            if let Some(handle) = self.executions.remove(&oldest.id) {
                handle.forget();
            }
        }
    }
}

impl Executions {
    /// A list without executions. Output is stored in `spools`. With a keeper, executions survive the daemon. Without a
    /// vault, each request brings its credentials.
    pub fn new(
        settings: Settings,
        served: BTreeMap<String, Served>,
        images: Images,
        metrics: Arc<ExecutionMetrics>,
        spools: Spools,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        for provider in served.keys().map(String::as_str).chain([image_run::LABEL]) {
            metrics.expect(provider);
        }
        let (known, users, shutdown) = (Mutex::default(), Users::default(), CancellationToken::new());
        let settings = RwLock::new(settings);
        Self { settings, served, images, metrics, known, users, spools, keeper, vault: None, shutdown }
    }

    /// The same, with credentials from a vault for requests that bring none.
    #[must_use]
    pub fn with_vault(self, vault: Option<Arc<Vault>>) -> Self {
        Self { vault, ..self }
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
    /// `audience` says what the caller will read. A caller that reads anything counts as a reader from the start, and
    /// its going away cancels the execution (unless `background` is set). `request_id` appears with the execution, its
    /// events and its log lines.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left of the execution then.
    pub async fn start(
        self: &Arc<Self>,
        request: types::ExecutionRequest,
        audience: Audience,
        request_id: Option<String>,
    ) -> Result<Reader, StartError> {
        let received = Instant::now();
        let background = request.background || audience == Audience::None;
        let (request, lent) = self.with_stored_credentials(request).await?;
        let plan = self.plan(request).await?;
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
        let span = span(&id, &plan.provider, &plan.user, request_id.as_deref());
        let vaulted = self.vaulted(lent, &plan.provider, &plan.user, &id).map(Arc::new);
        let handle = Arc::new(Handle {
            id,
            provider: plan.provider.clone(),
            user: plan.user.clone(),
            model: plan.model.clone(),
            shown: plan.shown.clone(),
            created_at_ms: crate::telemetry::unix_ms(),
            timeout: plan.timeout,
            start_timeout: plan.start_timeout,
            background,
            dialect: plan.dialect,
            labels: plan.labels.clone(),
            request_id,
            span: span.clone(),
            log,
            state: Mutex::new(State::new()),
            cancel: CancellationToken::new(),
            readers: watch::Sender::new(0),
            waiting: Waiting::new(audience == Audience::Events, background),
            collection,
            deadline: OnceLock::new(),
            vaulted,
            first_exit: OnceLock::new(),
            keeper: self.keeper.clone(),
        });
        let reader = handle.reader(audience != Audience::None);
        {
            let mut known = self.known();
            // Under the lock with which `shut_down` lists all executions: none can be added after that.
            if self.shutdown.is_cancelled() {
                return Err(StartError::Stopped);
            }
            known.executions.insert(handle.id.clone(), Arc::clone(&handle));
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
        if handle.waiting.was_told() { Ok(reader) } else { outcome.map(|()| reader) }
    }

    /// Checks a request. For an image this reads files of the image, and therefore runs on a blocking thread.
    async fn plan(self: &Arc<Self>, request: types::ExecutionRequest) -> Result<Plan, StartError> {
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
            let until = ended_at + self.settings().retention;
            let collected = handle.state().exit().and_then(|exit| exit.collected.as_ref()).map_or(0, |one| one.bytes);
            let bytes = handle.log.bytes() + usize::try_from(collected).unwrap_or(usize::MAX);
            known.ended.push_back(Retained { id: handle.id.clone(), until, bytes });
            known.ended_bytes += bytes;
        } else {
            known.executions.remove(&handle.id);
            handle.forget();
        }
        known.forget(&self.settings());
    }

    /// Forgets ended executions whose time is over; called now and then.
    pub fn forget_expired(&self) {
        self.known().forget(&self.settings());
    }

    /// One execution.
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        self.known().executions.get(id).cloned()
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

    /// All known executions, newest last.
    pub fn list(&self) -> Vec<types::Execution> {
        let handles: Vec<_> = self.known().executions.values().cloned().collect();
        let mut list: Vec<_> = handles.iter().map(|handle| handle.describe()).collect();
        // Ids are time-ordered.
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    }

    /// Ends every execution (reason `killed`) and accepts no more; returns when all have written their `exit`.
    pub async fn shut_down(&self) {
        self.shutdown.cancel();
        let handles: Vec<_> = self.known().executions.values().cloned().collect();
        for handle in handles {
            let mut after = 0;
            while let Some(last) = handle.log.next(None, after, 1024).await.last() {
                after = last.sequence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{FileLimits, Known, Retained, Settings};

    #[test]
    fn what_is_kept_fits_the_memory_that_may_be_used() {
        let settings = || Settings { output_bytes: 16 << 20, retained_bytes: 256 << 20, ..settings() };
        let kept = |memory| {
            let settings = settings().within(memory, 32);
            (settings.output_bytes, settings.retained_bytes)
        };
        assert_eq!(kept(None), (16 << 20, 256 << 20));
        assert_eq!(kept(Some(8 << 30)), (16 << 20, 256 << 20));
        assert_eq!(kept(Some(256 << 20)), (4 << 20, 64 << 20));
        assert_eq!(kept(Some(1 << 20)).0, 64 << 10);
    }

    fn settings() -> Settings {
        Settings {
            output_bytes: 100,
            second_pipe_bytes: 100,
            large_pages_bytes: 100,
            reader_stall: Duration::ZERO,
            retention: Duration::from_secs(600),
            retained: 5,
            retained_bytes: 250,
            disconnect_grace: Duration::ZERO,
            reconnect_grace: Duration::ZERO,
            kill_grace: Duration::ZERO,
            max_timeout: Duration::from_secs(1),
            proxy_port: 1,
            queue_timeout: Duration::ZERO,
            max_queue_timeout: Duration::ZERO,
            max_per_user: 1,
            files: FileLimits {
                put: thaw_os::workspace::Limits { bytes: 100, entries: 1 },
                collect: thaw_os::workspace::Limits { bytes: 100, entries: 1 },
            },
        }
    }

    #[test]
    fn ended_executions_are_forgotten_by_number_bytes_and_age() {
        let settings = settings();
        let mut known = Known::default();
        let mut add = |bytes, until| {
            known.ended.push_back(Retained { id: String::new(), until, bytes });
            known.ended_bytes += bytes;
            known.forget(&settings);
            (known.ended.len(), known.ended_bytes)
        };
        let later = Instant::now() + settings.retention;
        for count in 1..=5 {
            assert_eq!(add(1, later), (count, count));
        }
        assert_eq!(add(1, later), (5, 5), "by number");
        assert_eq!(add(249, later), (2, 250), "by bytes");
        assert_eq!(add(100, Instant::now()), (0, 0), "the older two by bytes, the newest by age");
    }
}
