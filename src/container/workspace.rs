//! Files for the one execution that has a container: put into `/workspace` before anything of its user's runs, fetched
//! when everything in it has been killed. The directory is reached by a descriptor that was taken before anything ran.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::holder::{Held, Holds};
use super::{Container, ContainerError};
use thaw_os::workspace::{self, Collected, Entry, Limits};

/// Where it is inside.
pub const WORKSPACE: &str = "/workspace";

/// Why a container has none.
pub const NO_WORKSPACE: &str = "the image has no directory /workspace that is empty, which files would be put into";

impl<By: Holds> Held<By> {
    fn workspace(&self) -> Result<OwnedFd, ContainerError> {
        let directory = self.container().workspace.as_ref().ok_or(ContainerError::NoWorkspace)?;
        directory.try_clone().map_err(ContainerError::Control)
    }

    /// Makes files in `/workspace`, frozen or not.
    ///
    /// # Errors
    /// There is none, or they do not fit.
    pub async fn put(&self, files: &Arc<[Entry]>) -> Result<(), ContainerError> {
        let Container { id_base, owner, template, .. } = self.container();
        let (owner, files) = ((*owner, id_base + template.group), Arc::clone(files));
        let directory = self.workspace()?;
        if files.is_empty() {
            return Ok(());
        }
        let (done, result) = tokio::sync::oneshot::channel();
        // A thread of its own, not one of the pool's: it makes files as somebody else until it ends.
        std::thread::Builder::new()
            .name("put".to_owned())
            .spawn(move || {
                let _ = done.send(workspace::put(directory.as_fd(), owner, &files));
            })
            .map_err(ContainerError::Control)?;
        let ended = || ContainerError::Control(io::Error::other("the thread ended early"));
        Ok(result.await.map_err(|_| ended())??)
    }

    /// Kills everything in it, waits until nothing runs any more, and writes what is at `wanted` below `/workspace` into
    /// `archive`.
    ///
    /// # Errors
    /// It cannot be killed, or the archive cannot be written.
    pub async fn collect(
        &self,
        wanted: Vec<Vec<u8>>,
        limits: Limits,
        archive: File,
    ) -> Result<Collected, ContainerError> {
        let (directory, id_base) = (self.workspace()?, self.container().id_base);
        let cgroup = self.container().teardown.cgroup();
        self.kill()?;
        cgroup.wait_empty().await?;
        let collect = move || workspace::collect(directory.as_fd(), &wanted, limits, id_base, &archive);
        tokio::task::spawn_blocking(collect).await?.map_err(ContainerError::Control)
    }
}
