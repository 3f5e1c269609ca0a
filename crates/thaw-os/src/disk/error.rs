//! What may go wrong with a file system in a file.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A step failed.
    #[error("{step}: {source}")]
    Io {
        /// Which one.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// The file system that the image was to lie on has too little space.
    #[error("the file system of {} has too little space left", .0.display())]
    Full(PathBuf),
    /// The image does not exist.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The image is still attached.
    #[error("{} is in use: something still has its file system open", .0.display())]
    Busy(PathBuf),
    /// A program is missing.
    #[error("{0} is not installed: install e2fsprogs")]
    NoTool(&'static str),
    /// A program failed.
    #[error("{program}: {message}")]
    Tool {
        /// Which one.
        program: &'static str,
        /// What it said.
        message: String,
    },
    /// The file system cannot be mounted or repaired.
    #[error("its file system is damaged: {0}")]
    Damaged(String),
    /// A directory of a container's root is none.
    #[error("the image needs /{0} as a plain directory")]
    NoDirectory(String),
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, DiskError>;

/// Wraps a system error with the step that failed.
pub fn failed<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> DiskError {
    move |source| DiskError::Io { step: step.into(), source: source.into() }
}

/// The same for a step on a path: what is missing or full is said as such.
pub fn at<E: Into<io::Error>>(step: &str, path: &Path) -> impl FnOnce(E) -> DiskError {
    move |source| {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::NotFound => DiskError::Missing(path.to_owned()),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full(path.to_owned()),
            _ => DiskError::Io { step: format!("{step} {}", path.display()), source },
        }
    }
}
