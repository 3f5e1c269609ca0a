//! The task that owns one sandbox. Everything that happens to it happens here, one after another, so that a wake, a freeze,
//! a stop and an end never meet.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SandboxError;
use super::handle::{Call, Handle, Inbox, Message, Running, Use};
use super::shared::Shared;
use super::state::Step;
use super::{note, root, stop};
use crate::failpoints;
use crate::keeper::Key;
use crate::pool::Pool;
use thaw_client::types::{SandboxChange, SandboxReason, SandboxState};

/// Owner of a sandbox that has its container, or that is stopped.
pub(super) struct Owner {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    /// What its containers are made from; `None` if its template is not configured any more.
    pool: Option<Pool>,
    /// Its container; `None` while it is stopped or broken.
    running: Option<Running>,
    inbox: Inbox,
    /// Commands that keep it from being idle.
    holding: usize,
    /// Commands in the background.
    others: usize,
    /// Calls for its files.
    calls: usize,
    /// When it was last used.
    idle_since: Instant,
}

/// When it is to be frozen, stopped and destroyed.
struct Deadlines {
    freeze: Option<Instant>,
    stop: Option<Instant>,
    destroy: Option<Instant>,
}

impl Owner {
    pub fn new(
        shared: Arc<Shared>,
        handle: Arc<Handle>,
        pool: Option<Pool>,
        running: Option<Running>,
        inbox: Inbox,
    ) -> Self {
        let unused = crate::telemetry::unix_ms().saturating_sub(handle.view().used_at_ms);
        let now = Instant::now();
        // A host that has not run for so long counts from its own beginning.
        let idle_since = now.checked_sub(Duration::from_millis(unused)).unwrap_or(now);
        Self { shared, handle, pool, running, inbox, holding: 0, others: 0, calls: 0, idle_since }
    }

    /// Runs until the sandbox is gone.
    pub async fn run(mut self) {
        loop {
            let Deadlines { freeze, stop, destroy } = self.deadlines();
            tokio::select! {
                biased;
                // The handle, which this holds too, has a sender.
                Some(message) = self.inbox.recv() => if self.take(message).await { return },
                () = ended(self.running.as_ref()) => if self.has_ended().await { return },
                () = at(destroy) => return self.end(SandboxReason::Idle, None).await,
                () = at(stop) => if let Err(error) = self.stop(SandboxReason::Idle).await {
                    self.try_later(&error, "stopped");
                },
                () = at(freeze) => if let Err(error) = self.freeze(SandboxReason::Idle).await {
                    self.try_later(&error, "frozen");
                },
            }
        }
    }

    /// It has its whole time again.
    fn try_later(&mut self, error: &SandboxError, what: &str) {
        tracing::warn!(%error, "a sandbox that is idle cannot be {what}");
        self.idle_since = Instant::now();
    }

    /// When what is to happen if nobody uses it until then.
    fn deadlines(&self) -> Deadlines {
        if self.holding > 0 || self.calls > 0 {
            return Deadlines { freeze: None, stop: None, destroy: None };
        }
        let (state, lifecycle) = {
            let view = self.handle.view();
            (view.state, view.lifecycle)
        };
        let settings = &self.shared.settings;
        let after = |seconds: Option<u64>, usual| self.idle_since + seconds.map_or(usual, Duration::from_secs);
        let (freeze_after, stop_after) = (lifecycle.freeze_after_s, lifecycle.stop_after_s);
        let is_active = state == SandboxState::Active && !lifecycle.keep_active;
        let can_stop = self.running.is_some() && self.handle.storage_bytes().is_some() && !lifecycle.keep_active;
        Deadlines {
            freeze: is_active.then(|| after(freeze_after, settings.freeze_after)),
            stop: can_stop.then(|| after(stop_after, settings.stop_after)),
            destroy: lifecycle.destroy_after_s.map(|seconds| self.idle_since + Duration::from_secs(seconds)),
        }
    }

    /// Does what it is asked; returns whether the sandbox is gone. Whoever does not wait for the answer any more gets none.
    async fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Enter { holds, reply } => {
                let entered = self.enter(holds).await;
                let _ = reply.send(entered);
            }
            Message::Call(reply) => {
                let begun = self.call().await;
                let _ = reply.send(begun);
            }
            Message::CallOver => {
                self.calls = self.calls.saturating_sub(1);
                self.used();
            }
            Message::Joined { holds } => {
                self.count(holds, 1);
                if holds && let Err(error) = self.thaw(SandboxReason::Used) {
                    tracing::error!(%error, "a sandbox in which a command runs cannot be woken");
                }
            }
            Message::Leave { holds } => {
                self.count(holds, -1);
                self.used();
            }
            Message::Rouse => {
                self.count(false, -1);
                self.count(true, 1);
                if let Err(error) = self.thaw(SandboxReason::Used) {
                    tracing::error!(%error, "a sandbox in which a command has to end cannot be woken");
                }
            }
            Message::Freeze(reply) => {
                let frozen = match self.holding {
                    0 => self.freeze(SandboxReason::Requested).await,
                    commands => Err(SandboxError::Busy { id: self.handle.id().to_owned(), commands }),
                };
                let _ = reply.send(frozen);
            }
            Message::Wake(reply) => {
                let woken = self.wake(SandboxReason::Requested).await;
                self.used();
                let _ = reply.send(woken);
            }
            Message::Stop(reply) => {
                let stopped = self.stop(SandboxReason::Requested).await;
                let _ = reply.send(stopped);
            }
            Message::Change(change, reply) => {
                let changed = self.change(change).await;
                let _ = reply.send(changed);
            }
            Message::Halt(reply) if self.handle.storage_bytes().is_some() => {
                let stopped = self.stop(SandboxReason::Stopped).await;
                let _ = reply.send(stopped);
            }
            Message::Halt(reply) => {
                self.end(SandboxReason::Stopped, None).await;
                let _ = reply.send(Ok(()));
                return true;
            }
            Message::End(reason, reply) => {
                self.end(reason, None).await;
                let _ = reply.send(Ok(()));
                return true;
            }
        }
        false
    }

    fn count(&mut self, holds: bool, by: isize) {
        let count = if holds { &mut self.holding } else { &mut self.others };
        *count = count.saturating_add_signed(by);
        self.handle.view().commands = self.holding + self.others;
    }

    fn used(&mut self) {
        self.idle_since = Instant::now();
        self.handle.view().used_at_ms = crate::telemetry::unix_ms();
        self.shared.rows.note(self.handle.row());
    }

    async fn enter(&mut self, holds: bool) -> Result<Use, SandboxError> {
        self.wake(SandboxReason::Used).await?;
        let running = self.running.as_ref().ok_or_else(|| self.handle.gone())?;
        let entered = Use::new(&self.handle, running, holds);
        self.count(holds, 1);
        self.used();
        Ok(entered)
    }

    /// A call for its files: a frozen one stays frozen, one that is stopped is started.
    async fn call(&mut self) -> Result<Call, SandboxError> {
        if self.running.is_none() {
            self.start(SandboxReason::Used).await?;
        }
        let running = self.running.as_ref().ok_or_else(|| self.handle.gone())?;
        let call = Call::new(&self.handle, &running.container);
        self.calls += 1;
        self.used();
        Ok(call)
    }

    /// Lets it run, whatever it has to be woken from.
    async fn wake(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        match self.handle.state() {
            SandboxState::Stopped | SandboxState::Broken => self.start(reason).await,
            _ => self.thaw(reason),
        }
    }

    fn thaw(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        let Some(running) = self.running.as_ref().filter(|_| self.handle.state() == SandboxState::Frozen) else {
            return Ok(());
        };
        running.container.thaw()?;
        failpoints::at("sandbox.thawed");
        self.shared.step(&self.handle, Step::Wake, reason, None);
        Ok(())
    }

    /// Gives it a container over its storage.
    async fn start(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        // Without them, commands would be other ones.
        self.handle.env()?;
        let known = "none of that name in the configuration any more".to_owned();
        let unknown = || SandboxError::UnknownTemplate { name: self.handle.template().to_owned(), known };
        let pool = self.pool.as_ref().ok_or_else(unknown)?;
        let container = match root::start(&self.shared, pool, &self.handle, false).await {
            Ok(container) => Arc::new(container),
            Err(error) => {
                self.forget_container();
                if root::is_broken(&error) {
                    let why = error.to_string();
                    self.shared.step(&self.handle, Step::Break, SandboxReason::Damaged, Some(why.clone()));
                    return Err(SandboxError::Broken { id: self.handle.id().to_owned(), why });
                }
                return Err(error);
            }
        };
        self.handle.view().container = Some(container.id().to_owned());
        self.running = Some(Running::new(container));
        self.shared.step(&self.handle, Step::Start, reason, None);
        // Before anybody uses it: what the database has as stopped, the next daemon ends.
        if let Err(error) = self.shared.rows.flush().await {
            self.leave(SandboxReason::Stopped, Some(error.to_string())).await;
            return Err(error.into());
        }
        failpoints::at("sandbox.started");
        Ok(())
    }

    /// Tells the keeper that it has no container, but variables.
    pub fn forget_container(&self) {
        if let Some(keeper) = &self.shared.keeper
            && let Err(error) = note::keep(keeper, &self.handle, None)
        {
            tracing::error!(%error, "the variables of a sandbox would not survive this daemon");
        }
    }

    async fn freeze(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        let state = self.handle.state();
        let Some(running) = &self.running else {
            return Err(SandboxError::NotRunning { id: self.handle.id().to_owned(), state: state.name() });
        };
        if state == SandboxState::Frozen {
            return Ok(());
        }
        if let Err(error) = running.container.freeze().await {
            // What is frozen in part runs on.
            running.container.thaw()?;
            return Err(error.into());
        }
        failpoints::at("sandbox.frozen");
        self.shared.step(&self.handle, Step::Freeze, reason, None);
        Ok(())
    }

    /// Ends its processes and keeps its files.
    async fn stop(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        if self.handle.storage_bytes().is_none() {
            return Err(SandboxError::NoStorage(self.handle.id().to_owned()));
        }
        let Some(running) = &self.running else { return Ok(()) };
        stop::terminate(&running.container, self.shared.settings.stop_grace).await?;
        self.leave(reason, None).await;
        Ok(())
    }

    /// Ends its container and keeps its storage; returns when nothing has that open any more. That it is stopped is on the
    /// disk before anything is killed, so that the next daemon does the rest.
    async fn leave(&mut self, reason: SandboxReason, detail: Option<String>) {
        let Some(running) = self.running.take() else { return };
        self.shared.step(&self.handle, Step::Stop, reason, detail.clone());
        if let Err(error) = self.shared.rows.flush().await {
            tracing::error!(%error, "that a sandbox is stopped is not written down yet");
        }
        failpoints::at("sandbox.stopping");
        let why = match reason {
            SandboxReason::Idle => "it was idle for too long",
            SandboxReason::Stopped => "the daemon was stopped",
            SandboxReason::Ended => "its container ended",
            _ => "somebody asked for it",
        };
        let why = detail.map_or_else(|| why.to_owned(), |detail| format!("{why}: {detail}"));
        stop::kill(&running, (format!("its sandbox was stopped: {why}"), reason != SandboxReason::Ended));
        self.forget_container();
        // Its parts are let go of, and with the last one its file system.
        drop(running);
        match self.shared.storage.let_go(self.handle.id()).await {
            Ok(true) => {}
            Ok(false) => tracing::error!("the storage of a sandbox that is stopped is still open somewhere"),
            Err(error) => tracing::error!(%error, "the storage of a sandbox that is stopped"),
        }
        failpoints::at("sandbox.stopped");
    }

    /// Its container has ended by itself; returns whether it is gone.
    async fn has_ended(&mut self) -> bool {
        let detail = self.running.as_ref().and_then(|running| stop::how_it_ended(&running.container));
        if self.handle.storage_bytes().is_some() {
            self.leave(SandboxReason::Ended, detail).await;
            return false;
        }
        self.end(SandboxReason::Ended, detail).await;
        true
    }

    async fn change(&mut self, change: SandboxChange) -> Result<(), SandboxError> {
        if let Some(env) = change.env {
            self.handle.give_env(env)?;
            if self.running.is_none() {
                self.forget_container();
            }
        }
        let before = {
            let mut view = self.handle.view();
            let before = (view.labels.clone(), view.lifecycle);
            view.labels = change.labels.unwrap_or_else(|| before.0.clone());
            view.lifecycle = change.lifecycle.unwrap_or(before.1);
            before
        };
        self.shared.rows.note(self.handle.row());
        let written = self.shared.rows.flush().await;
        if written.is_err() {
            let mut view = self.handle.view();
            (view.labels, view.lifecycle) = before;
            drop(view);
            self.shared.rows.note(self.handle.row());
        }
        Ok(written?)
    }

    /// Ends it. Why is on the disk before it is done, so that the next daemon knows.
    async fn end(&mut self, reason: SandboxReason, detail: Option<String>) {
        self.shared.step(&self.handle, Step::End, reason, detail);
        if let Err(error) = self.shared.rows.flush().await {
            tracing::error!(%error, "why a sandbox is gone is not written down yet");
        }
        failpoints::at("sandbox.ended");
        if let Some(keeper) = &self.shared.keeper {
            keeper.forget(&Key::Sandbox(self.handle.id().to_owned()));
        }
        if let Some(running) = self.running.take() {
            let is_decided = matches!(reason, SandboxReason::Idle | SandboxReason::Requested | SandboxReason::Stopped);
            let why = self.handle.why_gone().unwrap_or_default();
            // Commands that run in it have a part of it, and see it end.
            stop::kill(&running, (format!("its sandbox is gone: {why}"), is_decided));
        }
        self.shared.remove_storage(&self.handle).await;
    }
}

async fn ended(running: Option<&Running>) {
    match running {
        Some(running) => running.container.ended().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
