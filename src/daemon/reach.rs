//! Keeps a running daemon reachable: its sockets, and the keeper's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::directories::public_directory;
use super::error::{DaemonError, io_error};
use crate::api;
use crate::directory_lock::DirectoryLock;
use crate::keeper::Keeper;
use thaw_client::config;

/// How often a running daemon looks whether it can be found.
const REACH_INTERVAL: Duration = Duration::from_secs(5);

/// What others need to find a running daemon, and what it keeps.
pub(super) struct Reach {
    pub(super) run_dir: PathBuf,
    /// The API's socket and its group, if it is ours to make.
    pub(super) socket: Option<(PathBuf, String)>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) state: Arc<api::State>,
    pub(super) connections: config::Connections,
}

impl Reach {
    /// Looks now and then whether all of it is still there, and makes again what is not: somebody may clear away the run
    /// directory, and unnoticed the next daemon would lose everything.
    pub(super) async fn keep(self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(REACH_INTERVAL);
        // The lock on the directory that was made again.
        let mut again = None;
        loop {
            interval.tick().await;
            let is_served = self.socket.as_ref().is_none_or(|(path, _)| path.exists());
            if is_served && self.keeper.is_reachable() {
                continue;
            }
            tracing::error!(
                run_dir = %self.run_dir.display(),
                "sockets of this daemon have been removed; they are made again, so that it and what it keeps are found"
            );
            if let Err(error) = self.restore(is_served, &mut again, &stop) {
                tracing::error!(%error, "they cannot be made again");
            }
        }
    }

    fn restore(
        &self,
        is_served: bool,
        again: &mut Option<DirectoryLock>,
        stop: &CancellationToken,
    ) -> Result<(), DaemonError> {
        if !self.run_dir.exists() {
            public_directory(&self.run_dir)?;
            *again = Some(DirectoryLock::take(&self.run_dir, "paths.run_dir")?);
        }
        if !self.keeper.is_reachable() {
            self.keeper.renew();
        }
        if let Some((path, group)) = self.socket.as_ref().filter(|_| !is_served) {
            let listener = api::bind(path, group).map_err(io_error(format!("listen on {}", path.display())))?;
            let router = api::router(Arc::clone(&self.state));
            tokio::spawn(api::serve(listener, router, self.connections.clone(), stop.clone()));
        }
        Ok(())
    }
}
