//! What others see and ask of one sandbox. Everything that changes is changed by its owner task.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::SandboxError;
use super::lending::Lending;
use super::rows::Row;
use crate::container::Sandbox as Container;
use crate::idempotency::IdempotencyKey;
use thaw_client::time::Timestamp;
use thaw_client::types::{self, SandboxChange, SandboxLifecycle, SandboxReason, SandboxRequest, SandboxState};
use thaw_image::Hold;

/// The answer to somebody who asks.
pub(super) type Reply<T> = oneshot::Sender<Result<T, SandboxError>>;

/// What its owner is asked.
#[derive(Debug)]
pub(super) enum Message {
    /// A command is about to begin. With `holds`, the sandbox is not idle until it has left.
    Enter {
        holds: bool,
        reply: Reply<Use>,
    },
    /// A call for its files begins. It wakes nothing, and keeps the sandbox from being idle.
    Call(Reply<Call>),
    /// Such a call has ended.
    CallOver,
    /// A command of an earlier daemon goes on; its [`Use`] exists already.
    Joined {
        holds: bool,
    },
    /// A command has ended.
    Leave {
        holds: bool,
    },
    /// A command in the background has to end, for which it must run: it holds from now on.
    Rouse,
    Freeze(Reply<()>),
    Wake(Reply<()>),
    /// With storage, it is stopped; without, it ends.
    Halt(Reply<()>),
    Stop(Reply<()>),
    Change(SandboxChange, Reply<()>),
    End(SandboxReason, Reply<()>),
}

/// What changes of it.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub state: SandboxState,
    pub reason: SandboxReason,
    pub detail: Option<String>,
    pub since_ms: u64,
    pub used_at_ms: u64,
    pub container: Option<String>,
    pub commands: usize,
    pub labels: BTreeMap<String, String>,
    pub lifecycle: SandboxLifecycle,
    /// Keeps the image that it is made from in the store.
    pub hold: Option<Hold>,
}

/// What never changes of it.
#[derive(Debug)]
struct Fixed {
    id: String,
    name: Option<String>,
    user: String,
    template: String,
    storage_bytes: Option<u64>,
    created_at_ms: u64,
    key: Option<IdempotencyKey>,
    /// Names of its variables; of one that is gone they are all that is known.
    env_names: Vec<String>,
}

/// Shared view of a sandbox.
#[derive(Debug)]
pub struct Handle {
    fixed: Fixed,
    /// Its variables; empty while their values are lost.
    env: OnceLock<BTreeMap<String, String>>,
    /// Digest of the image that it is made from, if that matters.
    image: OnceLock<String>,
    view: Mutex<View>,
    state: watch::Sender<SandboxState>,
    inbox: mpsc::UnboundedSender<Message>,
    span: tracing::Span,
    /// Held while a file takes the place of another one.
    turn: Arc<Mutex<()>>,
    /// The turn of a prompt, whose credentials are in the sandbox.
    prompt: Arc<Semaphore>,
}

/// A handle's inbox, for its owner.
pub(super) type Inbox = mpsc::UnboundedReceiver<Message>;

impl Handle {
    /// One that is to be created.
    pub(super) fn new(id: String, request: SandboxRequest, key: Option<IdempotencyKey>) -> (Arc<Self>, Inbox) {
        let now = crate::telemetry::unix_ms();
        let view = View {
            state: SandboxState::Creating,
            reason: SandboxReason::Created,
            detail: None,
            since_ms: now,
            used_at_ms: now,
            container: None,
            commands: 0,
            labels: request.labels,
            lifecycle: request.lifecycle,
            hold: None,
        };
        let fixed = Fixed {
            id,
            name: request.name,
            user: request.user,
            template: request.template,
            storage_bytes: request.storage.and_then(|storage| storage.size_bytes),
            created_at_ms: now,
            key,
            env_names: request.env.keys().cloned().collect(),
        };
        Self::build(fixed, OnceLock::from(request.env), OnceLock::new(), view)
    }

    /// One of an earlier daemon, with what was kept of it in memory.
    pub(super) fn revive(
        row: Row,
        env: Option<BTreeMap<String, String>>,
        key: Option<IdempotencyKey>,
        container: Option<String>,
    ) -> (Arc<Self>, Inbox) {
        let view = View {
            state: row.state,
            reason: row.reason,
            detail: row.detail,
            since_ms: row.since_ms,
            used_at_ms: row.used_at_ms,
            container,
            commands: 0,
            labels: row.labels,
            lifecycle: row.lifecycle,
            hold: None,
        };
        let env = env.or_else(|| row.env.is_empty().then(BTreeMap::new)).map(OnceLock::from).unwrap_or_default();
        let fixed = Fixed {
            id: row.id,
            name: row.name,
            user: row.user,
            template: row.template,
            storage_bytes: row.storage_bytes,
            created_at_ms: row.created_at_ms,
            key,
            env_names: row.env,
        };
        Self::build(fixed, env, row.image.map(OnceLock::from).unwrap_or_default(), view)
    }

    fn build(
        fixed: Fixed,
        env: OnceLock<BTreeMap<String, String>>,
        image: OnceLock<String>,
        view: View,
    ) -> (Arc<Self>, Inbox) {
        let (inbox, messages) = mpsc::unbounded_channel();
        let state = watch::Sender::new(view.state);
        // Its level is error, because a filter for warnings would otherwise remove the fields.
        let Fixed { id, template, user, .. } = &fixed;
        let span = tracing::error_span!(parent: None, "sandbox", sandbox = id, template, user);
        let view = Mutex::new(view);
        let (turn, prompt) = (Arc::default(), Arc::new(Semaphore::new(1)));
        (Arc::new(Self { fixed, env, image, view, state, inbox, span, turn, prompt }), messages)
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait for a state which one it is now.
    pub(super) fn publish_state(&self) {
        let state = self.view().state;
        self.state.send_replace(state);
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.fixed.id
    }

    /// The user that it belongs to.
    pub fn user(&self) -> &str {
        &self.fixed.user
    }

    /// The provider whose container it is.
    pub fn template(&self) -> &str {
        &self.fixed.template
    }

    /// Its name.
    pub fn name(&self) -> Option<&str> {
        self.fixed.name.as_deref()
    }

    /// Variables of every command in it.
    ///
    /// # Errors
    /// [`SandboxError::LostEnv`]: their values were lost.
    pub fn env(&self) -> Result<&BTreeMap<String, String>, SandboxError> {
        let lost = || SandboxError::LostEnv { id: self.fixed.id.clone(), names: self.fixed.env_names.join(", ") };
        self.env.get().ok_or_else(lost)
    }

    /// Gives it its variables again, whose values were lost.
    ///
    /// # Errors
    /// [`SandboxError::InvalidField`]: it has them, or these are others.
    pub(super) fn give_env(&self, env: BTreeMap<String, String>) -> Result<(), SandboxError> {
        let invalid = |problem: String| SandboxError::InvalidField { field: "env", problem };
        if !env.keys().eq(self.fixed.env_names.iter()) {
            return Err(invalid(format!("must have the names {:?}, whose values were lost", self.fixed.env_names)));
        }
        let has = |_| invalid("can only be given to a sandbox whose values were lost: this one has them".to_owned());
        self.env.set(env).map_err(has)
    }

    /// Size of its root to write to, bytes, if it has one.
    pub fn storage_bytes(&self) -> Option<u64> {
        self.fixed.storage_bytes
    }

    /// Digest of the image that it is made from, if that has to stay the same.
    pub(super) fn image(&self) -> Option<String> {
        self.image.get().cloned()
    }

    /// Remembers the image that it is made from, and keeps it in the store.
    pub(super) fn pin(&self, hold: Hold) {
        let _ = self.image.set(hold.digest().to_owned());
        self.view().hold = Some(hold);
    }

    /// Lets go of its image.
    pub(super) fn unpin(&self) {
        self.view().hold = None;
    }

    /// Span of its log lines.
    pub fn span(&self) -> &tracing::Span {
        &self.span
    }

    pub(super) fn key(&self) -> Option<&IdempotencyKey> {
        self.fixed.key.as_ref()
    }

    /// Its state.
    pub fn state(&self) -> SandboxState {
        self.view().state
    }

    /// Why it is gone, as a sentence that continues one about the sandbox; `None` while it is not.
    pub fn why_gone(&self) -> Option<String> {
        let view = self.view();
        (view.state == SandboxState::Gone).then(|| {
            let why = match view.reason {
                SandboxReason::Requested => "somebody deleted it",
                SandboxReason::Idle => "it was idle for too long",
                SandboxReason::Stopped => "the daemon was stopped",
                SandboxReason::Lost => "it did not survive a restart",
                SandboxReason::Damaged => "its storage could not be used",
                SandboxReason::Ended => "its container ended",
                SandboxReason::Created | SandboxReason::Used => "it was not created",
            };
            view.detail.as_ref().map_or_else(|| why.to_owned(), |detail| format!("{why}: {detail}"))
        })
    }

    /// Why it is in its state.
    pub fn reason(&self) -> SandboxReason {
        self.view().reason
    }

    /// As the API shows it.
    pub fn describe(&self) -> types::Sandbox {
        let (view, fixed) = (self.view().clone(), &self.fixed);
        types::Sandbox {
            id: fixed.id.clone(),
            name: fixed.name.clone(),
            user: fixed.user.clone(),
            template: fixed.template.clone(),
            state: view.state,
            reason: view.reason,
            detail: view.detail,
            since: Timestamp::from_unix_ms(view.since_ms),
            created_at: Timestamp::from_unix_ms(fixed.created_at_ms),
            used_at: Timestamp::from_unix_ms(view.used_at_ms),
            container: view.container,
            commands: view.commands,
            env: fixed.env_names.clone(),
            labels: view.labels,
            lifecycle: view.lifecycle,
            storage: self.storage(),
        }
    }

    fn storage(&self) -> Option<types::SandboxStorage> {
        self.fixed.storage_bytes.map(|bytes| types::SandboxStorage { size_bytes: Some(bytes) })
    }

    /// As it is written down.
    pub(super) fn row(&self) -> Row {
        let (view, fixed) = (self.view().clone(), &self.fixed);
        Row {
            id: fixed.id.clone(),
            user: fixed.user.clone(),
            name: fixed.name.clone(),
            template: fixed.template.clone(),
            state: view.state,
            reason: view.reason,
            detail: view.detail,
            since_ms: view.since_ms,
            created_at_ms: fixed.created_at_ms,
            used_at_ms: view.used_at_ms,
            env: fixed.env_names.clone(),
            labels: view.labels,
            lifecycle: view.lifecycle,
            storage_bytes: fixed.storage_bytes,
            image: self.image(),
        }
    }

    /// The request that would give it as it is now.
    pub(super) fn as_request(&self) -> SandboxRequest {
        let (view, fixed) = (self.view(), &self.fixed);
        SandboxRequest {
            name: fixed.name.clone(),
            user: fixed.user.clone(),
            template: fixed.template.clone(),
            env: self.env.get().cloned().unwrap_or_default(),
            labels: view.labels.clone(),
            lifecycle: view.lifecycle,
            storage: self.storage(),
        }
    }

    /// Whether it fits everything that is asked for.
    pub(super) fn fits(&self, filter: &types::SandboxFilter) -> bool {
        let types::SandboxFilter { user, state, labels, limit: _, cursor } = filter;
        let view = self.view();
        user.as_ref().is_none_or(|user| *user == self.fixed.user)
            && state.is_none_or(|state| state == view.state)
            && labels.iter().all(|(name, value)| view.labels.get(name) == Some(value))
            && cursor.as_ref().is_none_or(|cursor| self.fixed.id < *cursor)
    }

    /// Waits until it has its container, or never will have one.
    pub(super) async fn settled(&self) {
        // The sender exists for as long as `self`.
        let _ = self.state.subscribe().wait_for(|state| *state != SandboxState::Creating).await;
    }

    pub(super) fn gone(&self) -> SandboxError {
        let why = self.why_gone().unwrap_or_else(|| "it has just ended".to_owned());
        SandboxError::Gone { id: self.fixed.id.clone(), why }
    }

    /// Asks its owner.
    pub(super) async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, SandboxError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).map_err(|_| self.gone())?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Lets a command in, and wakes the sandbox for it. It is not idle while a command `holds` it.
    ///
    /// # Errors
    /// It is gone, or cannot be woken.
    pub async fn enter(&self, holds: bool) -> Result<Use, SandboxError> {
        self.ask(|reply| Message::Enter { holds, reply }).await
    }

    /// Begins a call for its files.
    ///
    /// # Errors
    /// It is gone.
    pub(super) async fn call(&self) -> Result<Call, SandboxError> {
        self.ask(Message::Call).await
    }

    pub(super) fn turn(&self) -> &Arc<Mutex<()>> {
        &self.turn
    }

    /// Tells its owner of a command that an earlier daemon had let in.
    pub(super) fn joined(self: &Arc<Self>, running: &Running, holds: bool) -> Use {
        let _ = self.inbox.send(Message::Joined { holds });
        Use::new(self, running, holds)
    }
}

/// Why a container of a sandbox was ended, as a sentence, and whether somebody or something decided that.
pub(super) type Fate = (String, bool);

/// A container of a sandbox. One that is stopped and started again has another.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub container: Arc<Container>,
    pub fate: Arc<OnceLock<Fate>>,
}

impl Running {
    pub fn new(container: Arc<Container>) -> Self {
        Self { container, fate: Arc::default() }
    }
}

/// A call for files of a sandbox, until it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    container: Arc<Container>,
    handle: Arc<Handle>,
}

impl Call {
    pub fn new(handle: &Arc<Handle>, container: &Arc<Container>) -> Self {
        Self { container: Arc::clone(container), handle: Arc::clone(handle) }
    }

    /// The container whose files they are.
    pub fn container(&self) -> &Container {
        &self.container
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Without an owner there is nobody who counts.
        let _ = self.handle.inbox.send(Message::CallOver);
    }
}

/// A command's part in a sandbox, until it is dropped.
#[derive(Debug)]
pub struct Use {
    running: Running,
    handle: Arc<Handle>,
    holds: AtomicBool,
    lending: Mutex<Option<Lending>>,
}

impl Use {
    pub(super) fn new(handle: &Arc<Handle>, running: &Running, holds: bool) -> Self {
        Self {
            running: running.clone(),
            handle: Arc::clone(handle),
            holds: AtomicBool::new(holds),
            lending: Mutex::default(),
        }
    }

    /// Its container.
    pub fn container(&self) -> &Container {
        &self.running.container
    }

    /// Why the container was ended, as a sentence, if it was, and whether somebody or something decided that.
    pub fn why_ended(&self) -> Option<(String, bool)> {
        self.running.fate.get().cloned()
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Takes the turn of a prompt, whose credential files have these names: they are removed when it is over. What is there
    /// of them is removed first, unless an earlier daemon has put it there for this prompt.
    ///
    /// # Errors
    /// Another prompt runs, or something cannot be removed.
    pub fn lend(&self, names: Vec<String>, is_resumed: bool) -> Result<(), SandboxError> {
        let turn = Arc::clone(&self.handle.prompt).try_acquire_owned();
        let turn = turn.map_err(|_| SandboxError::Prompting(self.handle.id().to_owned()))?;
        if !is_resumed {
            self.running.container.withdraw(&names)?;
        }
        let lending = Lending { container: Arc::clone(&self.running.container), names, _turn: turn };
        *self.lending.lock().unwrap_or_else(PoisonError::into_inner) = Some(lending);
        Ok(())
    }

    /// Removes the credential files of a prompt that is over.
    pub fn withdraw(&self) {
        drop(self.lending.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Wakes the sandbox, if it is frozen, and keeps it awake for as long as this exists: the command has to end.
    pub fn rouse(&self) {
        if !self.holds.swap(true, Ordering::AcqRel) {
            let _ = self.handle.inbox.send(Message::Rouse);
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // Without an owner there is nobody who counts.
        let _ = self.handle.inbox.send(Message::Leave { holds: *self.holds.get_mut() });
    }
}
