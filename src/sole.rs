//! One daemon per directory: what it keeps in its directories, and sweeps at its start, is nobody else's.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    /// Another daemon has it.
    #[error("another daemon uses {}; stop it, or choose another `{key}`", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its key in the configuration.
        key: &'static str,
    },
    /// It cannot be opened or locked.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory that is this daemon's alone until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct Sole {
    /// Locked by flock(2): the directory itself, so that there is no file to be left behind. Closed at an exec.
    _directory: File,
}

impl Sole {
    /// Takes a directory; `key` is its name in the configuration.
    ///
    /// # Errors
    /// See [`SoleError`].
    pub fn take(path: &Path, key: &'static str) -> Result<Self, SoleError> {
        let failed = |source| SoleError::Io { path: path.to_owned(), source };
        let directory = File::open(path).map_err(failed)?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { _directory: directory }),
            Err(TryLockError::WouldBlock) => Err(SoleError::Taken { path: path.to_owned(), key }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sole;

    #[test]
    fn a_directory_has_one_user_until_it_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let first = Sole::take(directory.path(), "paths.run_dir").unwrap();
        let message = Sole::take(directory.path(), "paths.run_dir").unwrap_err().to_string();
        assert!(message.contains("another daemon uses") && message.contains("`paths.run_dir`"), "{message}");
        drop(first);
        Sole::take(directory.path(), "paths.run_dir").unwrap();
        let message = Sole::take(&directory.path().join("none"), "paths.run_dir").unwrap_err().to_string();
        assert!(message.contains("No such file"), "{message}");
    }
}
