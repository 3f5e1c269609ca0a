//! Executions that outlive their daemon: the note to the keeper about each, and how the next daemon resumes it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::clock::now;
use super::ending::Stop;
use super::open_stdin::OpenStdin;
use super::place::{InSandbox, Place};
use super::resumable::Resumable;
use super::state::{Assignment, State, Step, Submitted};
use super::times::{self, Times};
use super::users::UserSlot;
use super::vaulted::Lent;
use super::waiting::Waiting;
use super::workspace::Collection;
use super::{Executions, Handle, run, told};
use crate::container::{Orphan, Process};
use crate::egress::Policy;
use crate::idempotency::IdempotencyKey;
use crate::keeper::{Kept, Key};
use crate::output::{self, Files, Log, Recovered, Shelter, Source, Stream};
use crate::provider::Dialect;
use crate::sandbox::{Survivor, Use};
use thaw_client::types::{ExecutionState, Exit, ExitReason};

/// Detail of an execution whose command was not submitted, or cannot be resumed.
const LOST: &str = "the daemon was restarted, and this execution could not survive that";

/// What is to be known of an execution besides its log. With it go the log's files, and, while its command runs, its
/// standard output and standard error; of a CLI that was prestarted also its standard input and what is said to it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    provider: String,
    /// The sandbox that it runs in.
    #[serde(default)]
    sandbox: Option<InSandbox>,
    user: String,
    model: Option<String>,
    /// Absent in notes of a daemon that did not show commands.
    #[serde(default)]
    shown: Option<String>,
    created_at_ms: u64,
    timeout: Duration,
    start_timeout: Option<Duration>,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    key: Option<IdempotencyKey>,
    #[serde(default)]
    times: times::Noted,
    background: bool,
    dialect: Option<Dialect>,
    /// The vault's credential that the execution has.
    #[serde(default)]
    lent: Option<Lent>,
    command: Option<Submitted>,
    /// What is collected; its file then comes behind those of the log.
    #[serde(default)]
    collect: Vec<String>,
    /// Where it runs, or ran.
    #[serde(default)]
    assignment: Option<Assignment>,
    /// How its first command ended, if it is asked once more.
    #[serde(default)]
    first_exit: Option<Exit>,
}

impl Handle {
    /// Lets it survive the daemon as it is now; `command` with its pipes, see [`Self::submit`].
    pub(super) fn keep(&self, command: Option<(&Submitted, &[BorrowedFd<'_>])>) {
        let Some(keeper) = &self.keeper else { return };
        let note = Note {
            provider: self.provider.clone(),
            sandbox: self.sandbox.clone(),
            user: self.user.clone(),
            model: self.model.clone(),
            shown: self.shown.clone(),
            created_at_ms: self.created_at_ms,
            timeout: self.timeout,
            start_timeout: self.start_timeout,
            labels: self.labels.clone(),
            request_id: self.request_id.clone(),
            key: self.key.clone(),
            times: self.times().noted(),
            background: self.background,
            dialect: self.dialect,
            lent: self.vaulted.as_ref().map(|vaulted| vaulted.note()),
            command: command.map(|(command, _)| command.clone()),
            collect: self.collection.as_ref().map(|collection| collection.wanted().to_vec()).unwrap_or_default(),
            assignment: self.state().assignment().cloned(),
            first_exit: self.first_exit.get().cloned(),
        };
        let note = serde_json::to_string(&note).expect("strings and numbers always serialize");
        let own = |fd: &BorrowedFd<'_>| fd.try_clone_to_owned().map(Arc::new);
        let pipes: io::Result<Vec<_>> = command.iter().flat_map(|(_, pipes)| *pipes).map(own).collect();
        match pipes {
            Ok(pipes) => {
                let collected = self.collection.as_ref().map(|collection| Arc::clone(collection.file()));
                keeper.put(self.key(), note, self.log.files().into_iter().chain(collected).chain(pipes).collect());
                self.step(Step::Keep);
            }
            Err(error) => tracing::error!(%error, "it would not survive this daemon"),
        }
    }

    /// Source that moves the output from `pipe`.
    ///
    /// # Errors
    /// As [`Source::new`].
    pub(super) fn source(&self, pipe: OwnedFd, stream: Stream) -> io::Result<Source> {
        let shelter = Shelter::new(self.keeper.clone(), &self.id, stream);
        Source::new(pipe, Arc::clone(self.log.spool(stream)), self.log.amounts(), shelter)
    }

    fn key(&self) -> Key {
        Key::Execution(self.id.clone())
    }

    /// Drops the execution from the keeper.
    pub(super) fn forget(&self) {
        self.forgotten.cancel();
        if let Some(keeper) = &self.keeper
            && self.state().take(Step::Release).is_ok()
        {
            keeper.forget(&self.key());
        }
    }
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Number of executions of an earlier daemon.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// Executions that still run.
    pub running: usize,
    /// Executions that had ended, and can still be read.
    pub ended: usize,
    /// Executions that ended now, as lost.
    pub lost: usize,
}

/// Tags of the commands in sandboxes that an earlier daemon had, by container.
pub fn tags_in_sandboxes(kept: &BTreeMap<Key, Kept>) -> BTreeMap<String, Vec<u32>> {
    let mut tags = BTreeMap::<String, Vec<u32>>::new();
    for kept in kept.iter().filter(|(key, _)| matches!(key, Key::Execution(_))).map(|(_, kept)| kept) {
        // One that is not understood is told so when it is adopted.
        let note = serde_json::from_str::<Note>(&kept.note).ok();
        if let Some(command) = note.and_then(|note| note.sandbox.and(note.command)) {
            tags.entry(command.container).or_default().push(command.tag);
        }
    }
    tags
}

/// The container of an execution of an earlier daemon.
#[allow(clippy::large_enum_variant, reason = "made once for each execution of an earlier daemon")]
enum Found {
    Own(Option<Orphan>),
    Sandbox(Option<(Use, Process)>),
}

impl Executions {
    /// Resumes what an earlier daemon left: `kept` by execution, `orphans` by container, `survivors` by container too, for
    /// executions in sandboxes. `egress` makes the egress
    /// policy of a provider from the list that the earlier daemon had. Containers of executions are removed from
    /// `orphans`.
    pub fn adopt(
        self: &Arc<Self>,
        kept: BTreeMap<Key, Kept>,
        orphans: &mut BTreeMap<String, Orphan>,
        survivors: &mut BTreeMap<String, Survivor>,
        egress: impl Fn(&str, &[String]) -> Option<Arc<Policy>>,
    ) -> Adopted {
        let mut adopted = Adopted::default();
        let (mut transits, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            kept.into_iter().partition(|(key, _)| matches!(key, Key::Transit(..)));
        let (mut inputs, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            kept.into_iter().partition(|(key, _)| matches!(key, Key::Input(_)));
        for (key, kept) in kept {
            let Key::Execution(id) = key else { continue };
            let on_the_way = STREAMS.map(|stream| transits.remove(&output::transit_key(&id, stream)));
            let input = inputs.remove(&Key::Input(id.clone()));
            let outcome = self.adopt_one(&id, kept, (on_the_way, input), (&mut *orphans, &mut *survivors), &egress);
            match outcome {
                Ok(ExecutionState::Running) => adopted.running += 1,
                Ok(_) => adopted.ended += 1,
                Err(reason) => {
                    tracing::warn!(execution = %id, %reason, "an execution did not survive");
                    adopted.lost += 1;
                }
            }
        }
        for key in transits.keys().chain(inputs.keys()) {
            self.forget_kept(key);
        }
        adopted
    }

    fn adopt_one(
        self: &Arc<Self>,
        id: &str,
        kept: Kept,
        (on_the_way, input): ([Option<Kept>; 2], Option<Kept>),
        (orphans, survivors): (&mut BTreeMap<String, Orphan>, &mut BTreeMap<String, Survivor>),
        egress: &impl Fn(&str, &[String]) -> Option<Arc<Policy>>,
    ) -> Result<ExecutionState, String> {
        let understood = self.understand(kept).inspect_err(|_| {
            self.forget_kept(&Key::Execution(id.to_owned()));
            self.forget_kept(&Key::Input(id.to_owned()));
            STREAMS.iter().for_each(|stream| self.forget_kept(&output::transit_key(id, *stream)));
        });
        let Understood { note, log, recovered, collection, pipes } = understood?;
        let stdin = match input.filter(|_| recovered.exit.is_none()) {
            Some(input) => OpenStdin::resume(id, input, self.keeper.clone()).map(Some),
            None => {
                self.forget_kept(&Key::Input(id.to_owned()));
                Ok(None)
            }
        };
        let stdin = stdin.map_err(|error| error.to_string())?;
        for (stream, kept) in STREAMS.into_iter().zip(on_the_way) {
            let Some(kept) = kept else { continue };
            if let Some(pipe) = kept.fds.into_iter().next()
                && let Err(error) = output::drain_transit(pipe.as_fd(), log.spool(stream), log.chunk_size())
            {
                tracing::error!(execution = %id, %error, "output that was on its way is lost");
            }
            // Before anything goes on, which may keep another one under the same name.
            self.forget_kept(&output::transit_key(id, stream));
        }
        let container = note.command.as_ref().map(|command| &command.container);
        let lends = note.sandbox.as_ref().map(|inside| inside.lends.clone()).unwrap_or_default();
        let found = match (&note.sandbox, &recovered.exit) {
            (None, _) => Found::Own(container.and_then(|container| orphans.remove(container))),
            (Some(_), Some(_)) => Found::Sandbox(None),
            (Some(inside), None) => Found::Sandbox(
                note.command
                    .as_ref()
                    .filter(|_| recovered.submitted)
                    .and_then(|command| survivors.get_mut(&command.container)?.resume(command.tag, inside.holds)),
            ),
        };
        match (&found, container.and_then(|container| survivors.get(container))) {
            (Found::Sandbox(Some((inside, _))), _) if !lends.is_empty() => {
                // It had its turn before.
                if let Err(error) = inside.lend(lends, true) {
                    tracing::error!(execution = %id, %error, "its credentials are not withdrawn at its end");
                }
            }
            (Found::Sandbox(None), Some(survivor)) => survivor.withdraw(&lends),
            _ => {}
        }
        let allowed = if let Found::Own(Some(orphan)) = &found { orphan.allowed() } else { &[] };
        let policy = egress(&note.provider, allowed);
        let handle = Arc::new(self.revive(id, note, log, &recovered, (collection, stdin)));
        self.known().insert(Arc::clone(&handle));
        if recovered.exit.is_some() {
            self.ended(&handle, true);
            return Ok(ExecutionState::Exited);
        }
        let running = resumable(&handle, &recovered, found, pipes, policy).and_then(|resumable| {
            let running = run::Running::resume(&handle, &recovered, resumable);
            running.map_err(|error| error.to_string())
        });
        match running {
            Ok(running) => {
                let slot = self.users.enter(&handle.user, usize::MAX);
                self.go_on(handle, recovered, running, slot);
                Ok(ExecutionState::Running)
            }
            Err(reason) => {
                // One that was being asked once more has ended once already.
                let first = handle.first_exit.get().cloned();
                let exit = first.clone().unwrap_or_else(|| lost(&handle, &recovered, &reason));
                told::finish(&handle, exit);
                if first.is_none() {
                    self.metrics.lost(&handle.provider);
                }
                self.ended(&handle, true);
                if first.is_some() { Ok(ExecutionState::Exited) } else { Err(reason) }
            }
        }
    }

    fn forget_kept(&self, key: &Key) {
        if let Some(keeper) = &self.keeper {
            keeper.forget(key);
        }
    }

    fn understand(&self, kept: Kept) -> Result<Understood, String> {
        let note: Note = serde_json::from_str(&kept.note).map_err(|error| error.to_string())?;
        let mut fds = kept.fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| "too little of it was kept".to_owned());
        let files = Files { journal: next()?, output: [next()?, next()?] };
        let collected = if note.collect.is_empty() { None } else { Some(next()?) };
        let collection = collected.map(|file| Collection::new(note.collect.clone(), file));
        let copies: io::Result<Vec<OwnedFd>> = fds.map(|fd| fd.try_clone()).collect();
        let pipes = copies.map_err(|error| error.to_string())?;
        let (log, recovered) = Log::recover(self.settings().log_limits(), files).map_err(|error| error.to_string())?;
        Ok(Understood { note, log, recovered, collection, pipes })
    }

    fn revive(
        &self,
        id: &str,
        note: Note,
        log: Log,
        recovered: &Recovered,
        (collection, stdin): (Option<Collection>, Option<Arc<OpenStdin>>),
    ) -> Handle {
        let span = super::span(id, &note.provider, &note.user, note.request_id.as_deref());
        let vaulted = self.vaulted(note.lent.map(|lent| (lent, None)), &note.provider, &note.user, id).map(Arc::new);
        let ended = recovered.exit.as_ref().and_then(|exit| exit.at);
        let times = Times::adopted(note.times, note.command.as_ref(), ended);
        Handle {
            id: id.to_owned(),
            provider: note.provider,
            sandbox: note.sandbox,
            user: note.user,
            model: note.model,
            shown: note.shown,
            created_at_ms: note.created_at_ms,
            timeout: note.timeout,
            start_timeout: note.start_timeout,
            background: note.background,
            dialect: note.dialect,
            span,
            labels: note.labels,
            request_id: note.request_id,
            key: note.key,
            times: Mutex::new(times),
            forgotten: CancellationToken::new(),
            log,
            deadline: note.command.as_ref().and_then(|command| command.until).map(OnceLock::from).unwrap_or_default(),
            state: Mutex::new(State::adopted(note.command, note.assignment, recovered.exit.clone())),
            first_exit: note.first_exit.map(OnceLock::from).unwrap_or_default(),
            cancel: CancellationToken::new(),
            readers: watch::Sender::new(0),
            waiting: Waiting::new(false, note.background),
            vaulted,
            collection,
            stdin,
            keeper: self.keeper.clone(),
            feed: Arc::clone(&self.feed),
        }
    }

    fn go_on(
        self: &Arc<Self>,
        handle: Arc<Handle>,
        recovered: Recovered,
        running: run::Running,
        slot: Option<UserSlot>,
    ) {
        let (this, span) = (Arc::clone(self), handle.span.clone());
        let task = async move {
            run::go_on(&this, &handle, running, &recovered).await;
            if let Some(vaulted) = &handle.vaulted {
                vaulted.end_turn();
            }
            drop(slot);
            this.ended(&handle, true);
        };
        tokio::spawn(task.instrument(span));
    }
}

/// What the keeper held of an execution, decoded.
struct Understood {
    note: Note,
    log: Log,
    recovered: Recovered,
    collection: Option<Collection>,
    pipes: Vec<OwnedFd>,
}

fn resumable(
    handle: &Handle,
    recovered: &Recovered,
    found: Found,
    pipes: Vec<OwnedFd>,
    policy: Option<Arc<Policy>>,
) -> Result<Resumable, String> {
    let command = handle.submitted().ok_or("it had no command that could go on without the daemon")?;
    if !recovered.submitted {
        return Err("its command had not been handed over".to_owned());
    }
    let mut pipes = pipes.into_iter();
    let mut two = || pipes.next().zip(pipes.next()).map(|(first, second)| [first, second]);
    let output = two().ok_or("its output was not kept")?;
    let conversation = two();
    if command.prestarted && conversation.is_none() {
        return Err("what was said to its CLI was not kept".to_owned());
    }
    let orphan = match found {
        Found::Own(orphan) => orphan.ok_or("its container is gone")?,
        Found::Sandbox(inside) => {
            let (inside, process) = inside.ok_or("its sandbox is gone")?;
            let container = Place::Sandbox(inside);
            return Ok(Resumable { container, process, command, output, conversation: None });
        }
    };
    let policy = policy.ok_or("it is not known any more where it may connect to")?;
    // Log lines of the egress proxy belong to the execution from here on.
    let _entered = handle.span.enter();
    let claimed = orphan.into_once((&handle.id, handle.user()), handle.created_at_ms, policy, command.tag);
    let (container, process) = claimed.map_err(|error| error.to_string())?;
    // The earlier daemon may have been killed just before the thaw.
    container.thaw().map_err(|error| error.to_string())?;
    Ok(Resumable { container: Place::Own(container), process, command, output, conversation })
}

/// The `exit` event of an execution that cannot be resumed. If it was to end anyway, that reason counts: whoever
/// cancelled it was promised so.
fn lost(handle: &Handle, recovered: &Recovered, reason: &str) -> Exit {
    let since = handle.submitted().map_or(Duration::ZERO, |command| now().saturating_sub(command.since));
    let (reason, detail) = match Stop::recovered(recovered) {
        Some((stop, _)) => (stop.reason(), None),
        None => (ExitReason::Lost, Some(format!("{LOST}: {reason}"))),
    };
    Exit {
        code: None,
        signal: None,
        reason,
        success: false,
        detail,
        duration_ms: since.as_millis() as u64,
        cpu_ms: 0,
        memory_peak_bytes: 0,
        collected: None,
        request_id: None,
        at: None,
    }
}
