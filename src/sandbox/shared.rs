//! What every sandbox makes use of.

use std::sync::Arc;
use std::time::Duration;

use super::handle::Handle;
use super::rows::Rows;
use super::state::{self, Step};
use crate::container::{FileLimits, StoredImage};
use crate::failpoints;
use crate::feed::Feed;
use crate::keeper::Keeper;
use crate::storage::Storage;
use thaw_client::types::{DaemonEvent, DaemonEventKind, SandboxReason};

/// Settings of all sandboxes; see `[sandbox]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Time of idleness after which a sandbox is frozen, if its lifecycle does not say.
    pub freeze_after: Duration,
    /// Sandboxes at the same time.
    pub max: usize,
    /// Sandboxes of one user at the same time.
    pub max_per_user: usize,
    /// How long one that is gone is known.
    pub retention: Duration,
    /// Most of them.
    pub retained: usize,
    /// Calls for files at the same time.
    pub file_calls: usize,
    /// What each of them may take.
    pub files: FileLimits,
    /// How long a creation waits for a container.
    pub queue_timeout: Duration,
    /// Size of the root to write to of one that asks for none, bytes.
    pub storage_bytes: Option<u64>,
    /// Time of idleness after which one with storage is stopped, if its lifecycle does not say.
    pub stop_after: Duration,
    /// How long its processes have for ending, when it is stopped.
    pub stop_grace: Duration,
}

/// Finds an image by its digest, or says why there is none.
pub type FindImage = Box<dyn Fn(&str) -> Result<StoredImage, String> + Send + Sync>;

pub(super) struct Shared {
    pub settings: Settings,
    pub rows: Arc<Rows>,
    pub keeper: Option<Arc<Keeper>>,
    pub feed: Arc<Feed>,
    pub storage: Arc<Storage>,
    pub images: FindImage,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes a step of a sandbox: what is shown, what is written down, and what those are told who watch.
    pub fn step(&self, handle: &Handle, step: Step, reason: SandboxReason, detail: Option<String>) {
        let container = {
            let mut view = handle.view();
            match state::after(view.state, step) {
                Ok(state) => view.state = state,
                Err(error) => {
                    tracing::error!(%error, "a bug: a step of a sandbox is left out");
                    return;
                }
            }
            (view.reason, view.detail) = (reason, detail.clone());
            view.since_ms = crate::telemetry::unix_ms();
            let container = view.container.clone();
            if matches!(step, Step::Stop | Step::End) {
                view.container = None;
            }
            container
        };
        self.rows.note(handle.row());
        handle.publish_state();
        let kind = match step {
            Step::Begin => DaemonEventKind::SandboxCreated,
            Step::Freeze => DaemonEventKind::SandboxFrozen,
            Step::Wake | Step::Start => DaemonEventKind::SandboxWoken,
            Step::Stop => DaemonEventKind::SandboxStopped,
            Step::Break => DaemonEventKind::SandboxBroken,
            Step::End => DaemonEventKind::SandboxGone,
        };
        let said =
            detail.as_ref().map_or_else(|| reason.name().to_owned(), |more| format!("{}: {more}", reason.name()));
        tracing::info!(reason = said, "sandbox {}", kind.name().trim_start_matches("sandbox_"));
        let mut event = DaemonEvent::new(kind);
        event.provider = Some(handle.template().to_owned());
        event.sandbox = Some(handle.id().to_owned());
        event.user = Some(handle.user().to_owned());
        (event.container, event.detail) = (container, Some(said));
        self.feed.publish(event);
    }

    /// Removes the file system of one that is gone, or was not created after all.
    pub async fn remove_storage(&self, handle: &Handle) {
        if handle.storage_bytes().is_none() {
            return;
        }
        failpoints::at("storage.removing");
        if let Err(error) = self.storage.remove(handle.id()).await {
            tracing::error!(%error, "the storage of a sandbox that is gone is still there; the next start removes it");
        }
        handle.unpin();
    }
}
