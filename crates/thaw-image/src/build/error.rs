//! Errors of builds, with a text that says what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Most of a program's standard error that is kept, bytes from the end.
const LONGEST_RAW: usize = 64 << 10;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A manifest or recipe is invalid.
    #[error("{}: {reason}", path.display())]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A path cannot be in an image.
    #[error("path {path:?}: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A program or file of this machine is missing.
    #[error("{what} is not installed: run `apt-get install {package}`")]
    Missing {
        /// The program or file.
        what: String,
        /// The Debian package that has it.
        package: String,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {}", super::cause::cause(program, raw))]
    Program {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its standard error.
        raw: String,
    },
    /// `package-lock.json` and `image.toml` do not belong together.
    #[error("{}: {reason}; renew it with `thawctl image lock`", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Locked packages are no longer available, and replacing them was not allowed.
    #[error("{}: {what} is neither in the cache nor to be had any more: run `{command}`, or build without --locked", path.display())]
    Withdrawn {
        /// The lock file.
        path: PathBuf,
        /// Name and version of each package.
        what: String,
        /// Command that renews the lock.
        command: String,
    },
    /// The layout folder holds something that is not an image layout.
    #[error("{} is not empty and no OCI image layout: name another folder", path.display())]
    NotALayout {
        /// The folder.
        path: PathBuf,
    },
}

impl BuildError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        BuildError::Io { path: path.to_owned(), source }
    }

    pub(super) fn program(program: &'static str, status: std::process::ExitStatus, stderr: &[u8]) -> Self {
        let from = stderr.len().saturating_sub(LONGEST_RAW);
        BuildError::Program { program, status, raw: String::from_utf8_lossy(&stderr[from..]).into_owned() }
    }

    /// The complete standard error of the program that failed.
    pub fn raw(&self) -> Option<&str> {
        match self {
            BuildError::Program { raw, .. } => Some(raw),
            _ => None,
        }
    }
}
