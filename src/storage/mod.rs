//! Owns the space on the disk that sandboxes write to: images of file systems below `paths.state_dir`, and how much of the
//! disk they may take together.
//!
//! ```text
//! make ──► image ── attach ──► mounted ── the last process that has it ends ──► image ── remove ──► nothing
//!   │ the pool or the disk is full: nothing is made
//! ```
//!
//! The space of an image is taken as a whole when it is made, and admitted like memory: no later write of a sandbox finds the
//! host full. An image is copied from a template of its size ([`thaw_os::disk`]). It is known by its name; whose it is, and
//! that it is not wanted any more, is known by who made it.
//!
//! Called by `sandbox`. Deliberately absent: a list of what should exist, and removing what nobody seems to know.

mod error;
mod images;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thaw_os::disk::{self, Attached, Directory, Format};

pub use error::StorageError;
pub use thaw_client::config::MIN_STORAGE_BYTES as MIN_BYTES;

/// Settings; see `[storage]` in the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the images are.
    pub directory: PathBuf,
    /// Bytes that they may take together.
    pub pool_bytes: u64,
    /// Bytes that stay free on their file system.
    pub reserve_bytes: u64,
    /// Size of one that nobody says the size of.
    pub default_bytes: u64,
    /// Largest size.
    pub max_bytes: u64,
    /// Bytes for each of which there can be a file.
    pub bytes_per_inode: u64,
    /// How long to wait until an image is not attached any more.
    pub patience: Duration,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Bytes that images may take together.
    pub pool_bytes: u64,
    /// Bytes that they take.
    pub used_bytes: u64,
    /// Number of images.
    pub images: usize,
}

/// The images.
#[derive(Debug)]
pub struct Storage {
    settings: Settings,
    /// Bytes of each, by name.
    images: Mutex<BTreeMap<String, u64>>,
    /// One is made at a time: what is free is looked at and taken in one step.
    making: tokio::sync::Mutex<()>,
}

impl Storage {
    /// Looks at what there is, and clears away what an earlier daemon was about to make.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(settings: Settings) -> Result<Self, StorageError> {
        let images = images::found(&settings.directory)?;
        Ok(Self { settings, images: Mutex::new(images), making: tokio::sync::Mutex::default() })
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        images::path(&self.settings.directory, name)
    }

    fn format(&self, usable_bytes: u64) -> Format {
        Format { usable_bytes, bytes_per_inode: self.settings.bytes_per_inode }
    }

    /// The size that a request comes to.
    ///
    /// # Errors
    /// [`StorageError::Size`].
    pub fn size(&self, asked: Option<u64>) -> Result<u64, StorageError> {
        let (least, most) = (MIN_BYTES, self.settings.max_bytes);
        let size = asked.unwrap_or(self.settings.default_bytes);
        if (least..=most).contains(&size) { Ok(size) } else { Err(StorageError::Size { least, most }) }
    }

    /// Whether there is an image of that name.
    pub fn has(&self, name: &str) -> bool {
        self.images().contains_key(name)
    }

    /// Names of all images.
    pub fn names(&self) -> Vec<String> {
        self.images().keys().cloned().collect()
    }

    /// How much there is.
    pub fn figures(&self) -> Figures {
        let images = self.images();
        Figures { pool_bytes: self.settings.pool_bytes, used_bytes: images.values().sum(), images: images.len() }
    }

    /// Makes an empty file system, with the directories `upper` and `work` in it. It is on the disk when this returns.
    ///
    /// # Errors
    /// See [`StorageError`]; nothing is left of it then.
    pub async fn make(&self, name: &str, usable_bytes: u64) -> Result<(), StorageError> {
        let format = self.format(usable_bytes);
        let wanted = format.image_bytes();
        let _turn = self.making.lock().await;
        let Figures { pool_bytes, used_bytes, .. } = self.figures();
        let free = pool_bytes.saturating_sub(used_bytes);
        if wanted > free {
            return Err(StorageError::PoolFull { wanted, free, pool: pool_bytes });
        }
        let (directory, path, reserve) =
            (self.settings.directory.clone(), self.path(name), self.settings.reserve_bytes);
        blocking(move || images::make(&directory, &path, &format, reserve)).await?;
        self.images().insert(name.to_owned(), wanted);
        Ok(())
    }

    /// Mounts an image, and repairs it first if the kernel has seen errors in it. Waits until whoever had it before has let go
    /// of it.
    ///
    /// # Errors
    /// See [`StorageError`].
    pub async fn attach(&self, name: &str) -> Result<OwnedFd, StorageError> {
        let (path, patience) = (self.path(name), self.settings.patience);
        let Attached { mount, repaired } = blocking(move || Ok(disk::attach(&path, patience)?)).await?;
        if repaired {
            tracing::warn!(image = name, "its file system had errors, which e2fsck has repaired");
        }
        Ok(mount)
    }

    /// Prepares a new file system as the layer of a root over `image`.
    ///
    /// # Errors
    /// See [`StorageError`].
    pub async fn prepare(
        &self,
        layer: &Arc<OwnedFd>,
        image: &Path,
        directories: Vec<Directory>,
    ) -> Result<(), StorageError> {
        use std::os::fd::AsFd;
        let (layer, image) = (Arc::clone(layer), image.to_owned());
        blocking(move || Ok(disk::prepare_layer(layer.as_fd(), &image, &directories)?)).await
    }

    /// Makes sure that a layer has the directory `name` below `home`, on which something is to be mounted.
    ///
    /// # Errors
    /// See [`StorageError`].
    pub async fn keep_directory(
        &self,
        layer: &Arc<OwnedFd>,
        home: &str,
        name: &str,
        owner: (u32, u32),
    ) -> Result<(), StorageError> {
        use std::os::fd::AsFd;
        let (layer, home, name) = (Arc::clone(layer), home.to_owned(), name.to_owned());
        blocking(move || Ok(disk::keep_directory(layer.as_fd(), &home, &name, owner)?)).await
    }

    /// Waits until nothing has the image mounted any more, so that everything is in it; false if something still has it
    /// after `storage.detach_timeout_seconds`.
    ///
    /// # Errors
    /// The image is gone.
    pub async fn let_go(&self, name: &str) -> Result<bool, StorageError> {
        let (path, patience) = (self.path(name), self.settings.patience);
        blocking(move || Ok(!disk::is_attached(&path, patience)?)).await
    }

    /// Removes an image. What still has it mounted keeps its space until it ends, which is waited for.
    ///
    /// # Errors
    /// It cannot be removed; one that does not exist counts as removed.
    pub async fn remove(&self, name: &str) -> Result<(), StorageError> {
        match self.let_go(name).await {
            Ok(true) | Err(StorageError::Disk(disk::DiskError::Missing(_))) => {}
            Ok(false) => tracing::error!(image = name, "removed although something still has it open"),
            Err(error) => return Err(error),
        }
        let (path, directory) = (self.path(name), self.settings.directory.clone());
        blocking(move || images::remove(&directory, &path)).await?;
        self.images().remove(name);
        Ok(())
    }
}

/// Runs what waits for the disk beside the daemon's tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await?
}
