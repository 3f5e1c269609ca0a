//! Lock on the daemon's directories: one daemon per directory, because a daemon destroys at its start what it does not
//! know there.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thaw_os::kernel::{LOCK_PATIENCE, LockError, lock_directory};

/// Why a directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryLockError {
    /// Another process holds the lock.
    #[error("another daemon uses {}: {holders}; stop it, or choose another `{key}`", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its key in the configuration.
        key: &'static str,
        /// Processes that hold the lock.
        holders: String,
    },
    /// The directory cannot be opened or locked.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

/// Lock on a directory. Held until this is dropped or the process ends, in whatever way.
#[derive(Debug)]
pub struct DirectoryLock {
    /// The directory's descriptor, which carries the lock.
    _directory: OwnedFd,
}

impl DirectoryLock {
    /// Locks a directory; `key` is its name in the configuration. Blocks for up to [`LOCK_PATIENCE`] while another
    /// process holds the lock.
    ///
    /// # Errors
    /// See [`DirectoryLockError`].
    pub fn take(path: &Path, key: &'static str) -> Result<Self, DirectoryLockError> {
        Self::take_within(path, key, LOCK_PATIENCE)
    }

    fn take_within(path: &Path, key: &'static str, patience: Duration) -> Result<Self, DirectoryLockError> {
        lock_directory(path, patience).map(|directory| Self { _directory: directory }).map_err(|error| match error {
            LockError::Held(holders) => DirectoryLockError::Taken { path: path.to_owned(), key, holders },
            LockError::Io(source) => DirectoryLockError::Io { path: path.to_owned(), source },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::DirectoryLock;

    #[test]
    fn a_directory_has_one_user_until_it_lets_go() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path(), "paths.run_dir").unwrap();
        let second = DirectoryLock::take_within(directory.path(), "paths.run_dir", Duration::from_millis(50));
        let message = second.unwrap_err().to_string();
        assert!(message.contains("another daemon uses") && message.contains("`paths.run_dir`"), "{message}");
        drop(first);
        DirectoryLock::take(directory.path(), "paths.run_dir").unwrap();
        let message = DirectoryLock::take(&directory.path().join("none"), "paths.run_dir").unwrap_err().to_string();
        assert!(message.contains("No such file"), "{message}");
    }
}
