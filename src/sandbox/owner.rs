//! The task that owns one sandbox. Everything that happens to it happens here, one after another, so that a wake, a freeze
//! and an end never meet.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SandboxError;
use super::handle::{Call, Handle, Inbox, Message, Use};
use super::shared::Shared;
use super::state::Step;
use crate::container::Sandbox as Container;
use crate::failpoints;
use crate::keeper::Key;
use thaw_client::types::{SandboxChange, SandboxReason, SandboxState};

/// Owner of a sandbox that has its container.
pub(super) struct Owner {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    container: Arc<Container>,
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

impl Owner {
    pub fn new(shared: Arc<Shared>, handle: Arc<Handle>, container: Arc<Container>, inbox: Inbox) -> Self {
        let unused = crate::telemetry::unix_ms().saturating_sub(handle.view().used_at_ms);
        let now = Instant::now();
        // A host that has not run for so long counts from its own beginning.
        let idle_since = now.checked_sub(Duration::from_millis(unused)).unwrap_or(now);
        Self { shared, handle, container, inbox, holding: 0, others: 0, calls: 0, idle_since }
    }

    /// Runs until the sandbox is gone.
    pub async fn run(mut self) {
        loop {
            let (freeze_at, destroy_at) = self.deadlines();
            tokio::select! {
                biased;
                // The handle, which this holds too, has a sender.
                Some(message) = self.inbox.recv() => if self.take(message).await { return },
                () = self.container.ended() => return self.end(SandboxReason::Ended, self.how_it_ended()).await,
                () = at(destroy_at) => return self.end(SandboxReason::Idle, None).await,
                () = at(freeze_at) => {
                    if let Err(error) = self.freeze(SandboxReason::Idle).await {
                        tracing::warn!(%error, "a sandbox that is idle cannot be frozen");
                        // It has its whole time again.
                        self.idle_since = Instant::now();
                    }
                }
            }
        }
    }

    /// When it is to be frozen and destroyed if nobody uses it until then.
    fn deadlines(&self) -> (Option<Instant>, Option<Instant>) {
        if self.holding > 0 || self.calls > 0 {
            return (None, None);
        }
        let (state, lifecycle) = {
            let view = self.handle.view();
            (view.state, view.lifecycle)
        };
        let freeze_after = lifecycle.freeze_after_s.map_or(self.shared.settings.freeze_after, Duration::from_secs);
        let is_to_freeze = state == SandboxState::Active && !lifecycle.keep_active;
        (
            is_to_freeze.then(|| self.idle_since + freeze_after),
            lifecycle.destroy_after_s.map(|seconds| self.idle_since + Duration::from_secs(seconds)),
        )
    }

    /// Does what it is asked; returns whether the sandbox is gone. Whoever does not wait for the answer any more gets none.
    async fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Enter { holds, reply } => {
                let entered = self.enter(holds);
                let _ = reply.send(entered);
            }
            Message::Call(reply) => {
                self.calls += 1;
                self.used();
                let _ = reply.send(Ok(Call::new(&self.handle, &self.container)));
            }
            Message::CallOver => {
                self.calls = self.calls.saturating_sub(1);
                self.used();
            }
            Message::Joined { holds } => {
                self.count(holds, 1);
                if holds && let Err(error) = self.wake(SandboxReason::Used) {
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
                if let Err(error) = self.wake(SandboxReason::Used) {
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
                let woken = self.wake(SandboxReason::Requested);
                self.used();
                let _ = reply.send(woken);
            }
            Message::Change(change, reply) => {
                let changed = self.change(change).await;
                let _ = reply.send(changed);
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

    fn enter(&mut self, holds: bool) -> Result<Use, SandboxError> {
        self.wake(SandboxReason::Used)?;
        self.count(holds, 1);
        self.used();
        Ok(Use::new(&self.handle, &self.container, holds))
    }

    fn wake(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        if self.handle.state() != SandboxState::Frozen {
            return Ok(());
        }
        self.container.thaw()?;
        failpoints::at("sandbox.thawed");
        self.shared.step(&self.handle, Step::Wake, reason, None);
        Ok(())
    }

    async fn freeze(&mut self, reason: SandboxReason) -> Result<(), SandboxError> {
        if self.handle.state() == SandboxState::Frozen {
            return Ok(());
        }
        if let Err(error) = self.container.freeze().await {
            // What is frozen in part runs on.
            self.container.thaw()?;
            return Err(error.into());
        }
        failpoints::at("sandbox.frozen");
        self.shared.step(&self.handle, Step::Freeze, reason, None);
        Ok(())
    }

    async fn change(&mut self, change: SandboxChange) -> Result<(), SandboxError> {
        let before = {
            let mut view = self.handle.view();
            let before = (view.labels.clone(), view.lifecycle);
            let SandboxChange { labels, lifecycle } = change;
            view.labels = labels.unwrap_or_else(|| before.0.clone());
            view.lifecycle = lifecycle.unwrap_or(before.1);
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

    /// More about a container that ended without being told to.
    fn how_it_ended(&self) -> Option<String> {
        let used = self.container.usage().ok()?.since(&self.container.baseline());
        (used.oom_kills > 0).then(|| {
            let mib = self.container.limits().memory_bytes >> 20;
            format!("its memory limit of {mib} MiB had been exceeded {} times", used.oom_kills)
        })
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
        // Commands that run in it have a part of it, and see it end.
        if let Err(error) = self.container.kill() {
            tracing::error!(%error, "could not kill a sandbox");
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
