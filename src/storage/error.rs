//! Why there is no space, or a file system cannot be used.

use thaw_os::disk::DiskError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The size is out of range.
    #[error("must be from {least} to {most} (`storage.max_bytes`)")]
    Size {
        /// Least.
        least: u64,
        /// Most.
        most: u64,
    },
    /// All file systems together would be larger than they may be.
    #[error(
        "it takes {} MiB of disk, and {} MiB of the {} MiB for all are left (`storage.pool_bytes`): delete what is not needed, \
         or ask for less", wanted >> 20, free >> 20, pool >> 20
    )]
    PoolFull {
        /// Bytes that it would take.
        wanted: u64,
        /// Bytes that are left.
        free: u64,
        /// Bytes that there may be.
        pool: u64,
    },
    /// The host's disk would be too full.
    #[error(
        "it takes {} MiB of disk, and {} MiB are free, of which {} MiB stay free (`storage.reserve_bytes`)",
        wanted >> 20, free >> 20, reserve >> 20
    )]
    HostFull {
        /// Bytes that it would take.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are to stay free.
        reserve: u64,
    },
    /// A file system in a file could not be made or used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The directory of images cannot be read or written.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A task of the daemon ended early.
    #[error("a task of the daemon ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl StorageError {
    /// Whether there is too little space.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::PoolFull { .. } | Self::HostFull { .. } | Self::Disk(DiskError::Full(_)))
    }

    /// Whether the file system itself is the reason, so that it fails the next time too.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Disk(DiskError::Damaged(_) | DiskError::Missing(_)))
    }
}
