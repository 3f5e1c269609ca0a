//! Lock on a directory for one process, by flock(2), so that no lock file can be left behind.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Longest wait for a lock. A process that was killed while it started a child leaves its lock to the child, until the
/// child has executed its program and thereby closed the lock. That takes milliseconds, more on a busy machine.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Pause between two tries.
const AGAIN: Duration = Duration::from_millis(10);

/// Why a directory could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another process held the lock for the whole wait. The processes that have the directory open, in words.
    Held(String),
    /// The directory cannot be opened or locked.
    Io(io::Error),
}

/// Locks the directory `path` until the returned descriptor is dropped, or this process ends or executes a program.
/// Blocks for up to `patience` while another process holds the lock.
///
/// # Errors
/// See [`LockError`].
pub fn lock_directory(path: &Path, patience: Duration) -> Result<OwnedFd, LockError> {
    let until = Instant::now() + patience;
    let failed = |errno: Errno| LockError::Io(errno.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held(holders(path))),
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// The other processes that have `path` open, one of which holds the lock: `process 12 (thawd), process 13 (thawd)`.
fn holders(path: &Path) -> String {
    let Ok(wanted) = fs::metadata(path) else { return "nobody that can be found".to_owned() };
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let mut open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let is_it = |file: fs::DirEntry| {
            // Follows the link to the file that is open.
            let data = fs::metadata(file.path());
            data.is_ok_and(|data| (data.dev(), data.ino()) == (wanted.dev(), wanted.ino()))
        };
        if open.any(is_it) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {name} ({})", command.trim_end()));
        }
    }
    if found.is_empty() { "nobody that can be found".to_owned() } else { found.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::{LockError, lock_directory};

    /// A process that has the lock, as one that was started and has not executed yet.
    fn holder(directory: &std::path::Path, seconds: &str) -> std::process::Child {
        let child = Command::new("flock").arg(directory).args(["sleep", seconds]).stdin(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while lock_directory(directory, Duration::ZERO).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(20), "flock(1) does not lock");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    #[test]
    fn a_lock_that_is_let_go_soon_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = holder(directory.path(), "0.5");
        lock_directory(directory.path(), Duration::from_secs(20)).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn whoever_keeps_it_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = holder(directory.path(), "60");
        let begun = Instant::now();
        let Err(LockError::Held(holders)) = lock_directory(directory.path(), Duration::from_millis(200)) else {
            panic!("it is locked");
        };
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert!(holders.contains(&format!("process {}", child.id())), "{holders}");
        assert!(holders.contains("(flock)") || holders.contains("(sleep)"), "{holders}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
