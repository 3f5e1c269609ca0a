//! Sandboxes that outlive their daemon: how the next one adopts them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::Instrument;

use super::Sandboxes;
use super::handle::{Handle, Running, Use};
use super::note;
use super::owner::Owner;
use super::rows::Row;
use crate::container::{Orphan, Process};
use crate::egress::Policy;
use crate::keeper::{Kept, Key};
use thaw_client::types::{SandboxReason, SandboxState};

/// A sandbox of an earlier daemon, with those of its commands that nobody has gone on with yet. Dropping it ends them.
#[derive(Debug)]
pub struct Survivor {
    handle: Arc<Handle>,
    running: Running,
    processes: BTreeMap<u32, Process>,
}

impl Survivor {
    /// A command of it that goes on.
    pub fn resume(&mut self, tag: u32, holds: bool) -> Option<(Use, Process)> {
        let process = self.processes.remove(&tag)?;
        Some((self.handle.joined(&self.running, holds), process))
    }

    /// Removes credential files of a prompt that does not go on.
    pub fn withdraw(&self, names: &[String]) {
        if let Err(error) = self.running.container.withdraw(names) {
            tracing::error!(sandbox = self.handle.id(), %error, "a credential stays in its user's sandbox");
        }
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Arc<Handle> {
        &self.handle
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        for process in self.processes.values() {
            // One that has ended is not there any more.
            if let Err(error) = process.signal(libc::SIGKILL) {
                tracing::warn!(sandbox = self.handle.id(), %error, "a command that nobody knows of may run on");
            }
        }
    }
}

/// How many of an earlier daemon's there are.
#[derive(Debug, Default)]
struct Counts {
    stopped: usize,
    lost: usize,
}

impl Sandboxes {
    /// Goes on with the sandboxes of an earlier daemon: `rows` is what was written down, `kept` what the keeper has, by
    /// sandbox. `tags` are those of commands that executions know of, by container. Containers of sandboxes are removed from
    /// `orphans`. Returns those that live, by container.
    pub fn adopt(
        &self,
        rows: Vec<Row>,
        mut kept: BTreeMap<String, Kept>,
        orphans: &mut BTreeMap<String, Orphan>,
        tags: &BTreeMap<String, Vec<u32>>,
        egress: impl Fn(&str, &[String]) -> Option<Arc<Policy>>,
    ) -> BTreeMap<String, Survivor> {
        let mut survivors = BTreeMap::new();
        let mut counts = Counts::default();
        for row in rows {
            let kept = kept.remove(&row.id);
            match row.state {
                SandboxState::Gone => {
                    // The daemon was killed when it was about to end it.
                    if kept.is_some() {
                        self.forget_kept(&row.id);
                    }
                    self.bury(row);
                }
                SandboxState::Stopped | SandboxState::Broken => {
                    counts.stopped += 1;
                    self.rest(row, kept, orphans);
                }
                SandboxState::Creating | SandboxState::Active | SandboxState::Frozen => {
                    match self.adopt_one(row.clone(), kept.as_ref(), orphans, tags, &egress) {
                        Ok(survivor) => {
                            survivors.insert(survivor.running.container.id().to_owned(), survivor);
                        }
                        Err(reason) => {
                            counts.lost += 1;
                            tracing::warn!(sandbox = %row.id, %reason, "a sandbox did not survive");
                            self.lose(row, kept, orphans, reason);
                        }
                    }
                }
            }
        }
        // Of sandboxes that were never written down, or whose database is another one.
        kept.keys().for_each(|id| self.forget_kept(id));
        self.name_strangers();
        let Counts { stopped, lost } = counts;
        if survivors.len() + stopped + lost > 0 {
            tracing::info!(live = survivors.len(), stopped, lost, "sandboxes of an earlier daemon");
        }
        survivors
    }

    fn forget_kept(&self, id: &str) {
        if let Some(keeper) = &self.shared.keeper {
            keeper.forget(&Key::Sandbox(id.to_owned()));
        }
    }

    /// One that is gone: nothing of it stays but its row.
    fn bury(&self, row: Row) {
        let has_storage = row.storage_bytes.is_some() && self.shared.storage.has(&row.id);
        let handle = Handle::revive(row, None, None, None).0;
        self.insert(Arc::clone(&handle));
        if has_storage {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.remove_storage(&handle).await });
        }
    }

    /// One whose container is gone: with storage it is stopped, unless it was about to be created.
    fn lose(&self, row: Row, kept: Option<Kept>, orphans: &mut BTreeMap<String, Orphan>, reason: String) {
        let stays = row.storage_bytes.is_some() && row.state != SandboxState::Creating;
        let state = if stays { SandboxState::Stopped } else { SandboxState::Gone };
        let now = crate::telemetry::unix_ms();
        let row = Row { state, reason: SandboxReason::Lost, detail: Some(reason), since_ms: now, ..row };
        self.shared.rows.note(row.clone());
        if stays {
            self.rest(row, kept, orphans);
        } else {
            self.forget_kept(&row.id);
            self.bury(row);
        }
    }

    /// One that is stopped. If it has a container, the daemon was killed when it was about to end or to begin that.
    fn rest(&self, row: Row, kept: Option<Kept>, orphans: &mut BTreeMap<String, Orphan>) {
        let (mut env, mut key) = (None, None);
        match kept.as_ref().map(note::read) {
            Some(Ok((note, variables))) => {
                (env, key) = (Some(variables), note.key);
                drop(note.container.and_then(|container| orphans.remove(&container)));
            }
            Some(Err(reason)) => tracing::warn!(sandbox = %row.id, %reason, "its variables are lost"),
            None => {}
        }
        let template = row.template.clone();
        let (handle, inbox) = Handle::revive(row, env, key, None);
        if let Some(image) = handle.image() {
            match (self.shared.images)(&image) {
                Ok(found) => handle.pin(found.hold),
                Err(reason) => tracing::warn!(sandbox = handle.id(), %reason, "it cannot be started again"),
            }
        }
        self.insert(Arc::clone(&handle));
        let pool = self.templates.get(&template).cloned();
        let owner = Owner::new(Arc::clone(&self.shared), Arc::clone(&handle), pool, None, inbox);
        owner.forget_container();
        tokio::spawn(owner.run().instrument(handle.span().clone()));
    }

    /// Images of file systems that no row speaks of are left alone: their rows may be in another database.
    fn name_strangers(&self) {
        let known = self.known();
        for name in self.shared.storage.names().into_iter().filter(|name| !known.contains_key(name)) {
            tracing::error!(
                image = name,
                "no sandbox has this file system in `paths.state_dir`/storage; it takes space of `storage.pool_bytes` until \
                 somebody removes it"
            );
        }
    }

    fn adopt_one(
        &self,
        mut row: Row,
        kept: Option<&Kept>,
        orphans: &mut BTreeMap<String, Orphan>,
        tags: &BTreeMap<String, Vec<u32>>,
        egress: &impl Fn(&str, &[String]) -> Option<Arc<Policy>>,
    ) -> Result<Survivor, String> {
        let Some(kept) = kept else {
            return Err(match row.state {
                SandboxState::Creating => "the daemon was restarted while it was created".to_owned(),
                _ => "the host or the process that keeps containers was restarted".to_owned(),
            });
        };
        let (note, env) = note::read(kept)?;
        let id = note.container.ok_or("its container had ended")?;
        let orphan = orphans.remove(&id).ok_or("its container is gone")?;
        if !orphan.may_be_claimed() {
            return Err("the daemon was restarted while it was created".to_owned());
        }
        let policy = egress(&row.template, orphan.allowed());
        let policy = policy.ok_or("it is not known any more where it may connect to")?;
        let none = Vec::new();
        let running = tags.get(&id).unwrap_or(&none);
        let adopted = orphan.into_sandbox((&row.id, &row.user), note.claimed_at_ms, policy, running);
        let (container, processes) = adopted.map_err(|error| error.to_string())?;
        // The kernel knows better than a row that may be a moment old.
        let is_frozen = container.is_frozen().map_err(|error| error.to_string())?;
        let state = if is_frozen { SandboxState::Frozen } else { SandboxState::Active };
        if row.state != state {
            let is_new = row.state == SandboxState::Creating;
            row.reason = match state {
                SandboxState::Frozen if is_new => SandboxReason::Created,
                SandboxState::Frozen => SandboxReason::Idle,
                _ if is_new => SandboxReason::Created,
                _ => SandboxReason::Used,
            };
            (row.state, row.since_ms) = (state, crate::telemetry::unix_ms());
            self.shared.rows.note(row.clone());
        }
        let (handle, inbox) = Handle::revive(row, Some(env), note.key, Some(id));
        self.insert(Arc::clone(&handle));
        if let Some(found) = handle.image().map(|image| (self.shared.images)(&image)) {
            match found {
                Ok(found) => handle.pin(found.hold),
                Err(reason) => tracing::warn!(sandbox = handle.id(), %reason, "it cannot be started again"),
            }
        }
        let container = Running::new(Arc::new(container));
        let pool = self.templates.get(handle.template()).cloned();
        let owner = Owner::new(Arc::clone(&self.shared), Arc::clone(&handle), pool, Some(container.clone()), inbox);
        tokio::spawn(owner.run().instrument(handle.span().clone()));
        let processes = running.iter().copied().zip(processes).collect();
        Ok(Survivor { handle, running: container, processes })
    }
}
