//! Sandboxes that outlive their daemon: the note to the keeper about each, and how the next daemon adopts them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::Instrument;
use zeroize::Zeroizing;

use super::Sandboxes;
use super::handle::{Handle, Use};
use super::owner::Owner;
use super::rows::Row;
use crate::container::{Orphan, Process, Sandbox as Container};
use crate::egress::Policy;
use crate::idempotency::IdempotencyKey;
use crate::keeper::{Keeper, Kept, Key};
use thaw_client::types::{SandboxReason, SandboxState};

/// What is to be known of a sandbox besides its row. Its variables lie in a file in memory, which comes with it.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    container: String,
    claimed_at_ms: u64,
    #[serde(default)]
    key: Option<IdempotencyKey>,
}

/// Lets it survive the daemon, with the container that it is about to claim.
///
/// # Errors
/// The daemon has no descriptor or no memory left.
pub(super) fn keep(keeper: &Keeper, handle: &Handle, container: &str) -> io::Result<()> {
    let file = rustix::fs::memfd_create("thawd-sandbox", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&Zeroizing::new(serde_json::to_vec(handle.env())?))?;
    let claimed_at_ms = crate::telemetry::unix_ms();
    let note = Note { container: container.to_owned(), claimed_at_ms, key: handle.key().cloned() };
    let file = Arc::new(OwnedFd::from(file));
    keeper.put(Key::Sandbox(handle.id().to_owned()), serde_json::to_string(&note)?, vec![file]);
    Ok(())
}

fn read(kept: &Kept) -> Result<(Note, BTreeMap<String, String>), String> {
    let note: Note = serde_json::from_str(&kept.note).map_err(|error| error.to_string())?;
    let file = kept.fds.first().ok_or("its variables were not kept")?;
    let variables = (|| {
        let file = File::from(file.try_clone()?);
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?]);
        file.read_exact_at(&mut bytes, 0)?;
        Ok::<_, io::Error>(serde_json::from_slice(&bytes)?)
    })();
    Ok((note, variables.map_err(|error| format!("its variables cannot be read: {error}"))?))
}

/// A sandbox of an earlier daemon, with those of its commands that nobody has gone on with yet. Dropping it ends them.
#[derive(Debug)]
pub struct Survivor {
    handle: Arc<Handle>,
    container: Arc<Container>,
    processes: BTreeMap<u32, Process>,
}

impl Survivor {
    /// A command of it that goes on.
    pub fn resume(&mut self, tag: u32, holds: bool) -> Option<(Use, Process)> {
        let process = self.processes.remove(&tag)?;
        Some((self.handle.joined(&self.container, holds), process))
    }

    /// Removes credential files of a prompt that does not go on.
    pub fn withdraw(&self, names: &[String]) {
        if let Err(error) = self.container.withdraw(names) {
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
        let mut lost = 0;
        for row in rows {
            let kept = kept.remove(&row.id);
            if row.state == SandboxState::Gone {
                // The daemon was killed when it was about to end it.
                if kept.is_some() {
                    self.forget_kept(&row.id);
                }
                self.insert(Handle::revive(row, BTreeMap::new(), None, None).0);
                continue;
            }
            let id = row.id.clone();
            match self.adopt_one(row.clone(), kept, orphans, tags, &egress) {
                Ok(survivor) => drop(survivors.insert(survivor.container.id().to_owned(), survivor)),
                Err(reason) => {
                    lost += 1;
                    tracing::warn!(sandbox = %id, %reason, "a sandbox did not survive");
                    self.forget_kept(&id);
                    let now = crate::telemetry::unix_ms();
                    let (state, reason, detail) = (SandboxState::Gone, SandboxReason::Lost, Some(reason));
                    let row = Row { state, reason, detail, since_ms: now, ..row };
                    self.shared.rows.note(row.clone());
                    self.insert(Handle::revive(row, BTreeMap::new(), None, None).0);
                }
            }
        }
        // Of sandboxes that were never written down, or whose database is another one.
        kept.keys().for_each(|id| self.forget_kept(id));
        if !survivors.is_empty() || lost > 0 {
            tracing::info!(live = survivors.len(), lost, "sandboxes of an earlier daemon");
        }
        survivors
    }

    fn forget_kept(&self, id: &str) {
        if let Some(keeper) = &self.shared.keeper {
            keeper.forget(&Key::Sandbox(id.to_owned()));
        }
    }

    fn adopt_one(
        &self,
        mut row: Row,
        kept: Option<Kept>,
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
        let (note, env) = read(&kept)?;
        let orphan = orphans.remove(&note.container).ok_or("its container is gone")?;
        if !orphan.may_be_claimed() {
            return Err("the daemon was restarted while it was created".to_owned());
        }
        let policy = egress(&row.template, orphan.allowed());
        let policy = policy.ok_or("it is not known any more where it may connect to")?;
        let none = Vec::new();
        let running = tags.get(&note.container).unwrap_or(&none);
        let adopted = orphan.into_sandbox(&row.id, note.claimed_at_ms, policy, running);
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
        let (handle, inbox) = Handle::revive(row, env, note.key, Some(note.container));
        self.insert(Arc::clone(&handle));
        let container = Arc::new(container);
        let owner = Owner::new(Arc::clone(&self.shared), Arc::clone(&handle), Arc::clone(&container), inbox);
        tokio::spawn(owner.run().instrument(handle.span().clone()));
        let processes = running.iter().copied().zip(processes).collect();
        Ok(Survivor { handle, container, processes })
    }
}
