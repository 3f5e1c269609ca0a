//! Roots to write to: how a sandbox with storage gets a container, the first time and each time after it was stopped.

use std::sync::Arc;

use super::handle::Handle;
use super::shared::Shared;
use super::{SandboxError, claim};
use crate::container::{Sandbox as Container, StoredImage, Template, WORKSPACE};
use crate::failpoints;
use crate::pool::Pool;
use crate::storage::StorageError;
use thaw_os::disk::Directory;

/// Makes the file system of a new sandbox, and its container.
///
/// # Errors
/// See [`SandboxError`].
pub(super) async fn make(
    shared: &Shared,
    pool: &Pool,
    handle: &Handle,
    usable_bytes: u64,
) -> Result<Container, SandboxError> {
    // Nothing is taken from the disk for a sandbox that could not have a container.
    let template = pool.made_from().await?;
    shared.storage.make(handle.id(), usable_bytes).await?;
    failpoints::at("storage.made");
    if let Some(hold) = &template.hold {
        handle.pin(hold.clone());
        shared.rows.note(handle.row());
        shared.rows.flush().await?;
    }
    start(shared, pool, handle, true).await
}

/// Makes a container over the file system of a sandbox.
///
/// # Errors
/// See [`SandboxError`].
pub(super) async fn start(
    shared: &Shared,
    pool: &Pool,
    handle: &Handle,
    is_new: bool,
) -> Result<Container, SandboxError> {
    let template = template(shared, pool, handle).await?;
    let layer = Arc::new(shared.storage.attach(handle.id()).await?);
    failpoints::at("storage.attached");
    if is_new {
        shared.storage.prepare(&layer, &template.root.image, directories(&template)).await?;
        failpoints::at("storage.prepared");
    }
    let mut own = Template::clone(&template);
    own.root.writable = true;
    // It is a directory of the root, like home.
    (own.workspace, own.prestarted) = (false, None);
    if let (Some(home), Some((name, _))) = (&own.home, &own.credentials) {
        shared.storage.keep_directory(&layer, home, name, (own.user, own.group)).await?;
    }
    own.layer = Some(layer);
    claim::claim(shared, pool, handle, Some(Arc::new(own))).await
}

/// What its container is made from: what the pool's containers are, but over the image that it began with.
async fn template(shared: &Shared, pool: &Pool, handle: &Handle) -> Result<Arc<Template>, SandboxError> {
    let template = pool.made_from().await?;
    let Some(wanted) = handle.image() else { return Ok(template) };
    if template.hold.as_ref().is_some_and(|hold| *hold.digest() == *wanted) {
        return Ok(template);
    }
    let StoredImage { root, hold } = (shared.images)(&wanted).map_err(SandboxError::NoImage)?;
    handle.pin(hold.clone());
    let mut other = Template::clone(&template);
    (other.root, other.hold) = (root, Some(hold));
    Ok(Arc::new(other))
}

/// Directories that are its user's, wherever the image has them.
fn directories(template: &Template) -> Vec<Directory> {
    let owner = (template.user, template.group);
    let home = template.home.iter().map(|home| Directory { path: home.clone(), mode: 0o700, owner });
    let workspace = template.workspace.then(|| Directory { path: WORKSPACE.to_owned(), mode: 0o755, owner });
    home.chain(workspace).collect()
}

/// Why a sandbox cannot be used any more, if that is what the error means.
pub(super) fn is_broken(error: &SandboxError) -> bool {
    match error {
        SandboxError::Storage(error) => StorageError::is_broken(error),
        SandboxError::NoImage(_) => true,
        _ => false,
    }
}
