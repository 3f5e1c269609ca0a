//! Passes one user's credential files to one container. The tmpfs for them is made and attached by descriptor when the
//! container is created. At the claim, the files are written through the mount's descriptor while the container is
//! frozen. So no process inside sees an incomplete file, and no path inside is looked up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use thaw_os::kernel;
use zeroize::Zeroizing;

/// Why the files could not be passed. Never contains their content.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The container's provider has no credential directory.
    #[error("this container takes no credential files")]
    NoDirectory,
    /// The files do not fit into the tmpfs.
    #[error("the credential files do not fit into {limit} bytes")]
    TooLarge {
        /// Size of the tmpfs, bytes.
        limit: u64,
    },
    /// A step failed.
    #[error("{step}: {source}")]
    Io {
        /// The step that failed.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> CredentialError {
    move |error| CredentialError::Io { step, source: error.into() }
}

/// Makes an empty tmpfs. `owner` is the user's id on the host, `limit` the size in bytes.
pub fn create(owner: u32, limit: u64) -> Result<OwnedFd, CredentialError> {
    let context =
        rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open the credential tmpfs"))?;
    let (size, owner_text) = (limit.to_string(), owner.to_string());
    for (key, value) in [("size", size.as_str()), ("mode", "0700"), ("uid", &owner_text), ("gid", &owner_text)] {
        rustix::mount::fsconfig_set_string(&context, key, value).map_err(failed("configure the credential tmpfs"))?;
    }
    match rustix::mount::fsconfig_set_flag(&context, "noswap") {
        // EINVAL: before Linux 6.4. The pages are then charged to the daemon, which has no swap under systemd
        // (thawd.service).
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(failed("keep the credential tmpfs out of swap")(errno)),
    }
    rustix::mount::fsconfig_create(&context).map_err(failed("create the credential tmpfs"))?;
    // Executable, as the home directory around it: CLIs keep hooks, plugins and downloaded tools there.
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("mount the credential tmpfs"))
}

/// Writes the files into the tmpfs.
pub fn fill(mount: BorrowedFd<'_>, files: &[(&str, &str)], owner: u32, limit: u64) -> Result<(), CredentialError> {
    for (name, content) in files {
        write_file(mount, name, content, owner).map_err(|error| match error {
            Errno::NOSPC => CredentialError::TooLarge { limit },
            errno => failed("write a credential file")(errno),
        })?;
    }
    Ok(())
}

/// Removes files of these names. All of them are tried.
pub fn remove(mount: BorrowedFd<'_>, names: &[String]) -> Result<(), CredentialError> {
    let mut removed = Ok(());
    for name in names {
        match rustix::fs::unlinkat(mount, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => removed = Err(failed("remove a credential file")(errno)),
        }
    }
    removed
}

fn write_file(directory: BorrowedFd<'_>, name: &str, content: &str, owner: u32) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    let mut rest = content.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// The credential directory of a claimed container, for reading what the command made of the files. It stays readable
/// after the container is gone.
#[derive(Debug)]
pub struct CredentialFiles {
    mount: OwnedFd,
}

/// Inode, size and modification time of a file, which show whether it may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: i64,
    changed: (i64, u64),
}

impl CredentialFiles {
    pub(super) fn new(mount: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { mount: mount.try_clone_to_owned()? })
    }

    /// The stamp of a file now; `None` if the file is gone.
    ///
    /// # Errors
    /// The system's error.
    pub fn stamp(&self, name: &str) -> io::Result<Option<Stamp>> {
        match rustix::fs::statat(&self.mount, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(is) => {
                let changed = (is.st_mtime, is.st_mtime_nsec);
                Ok(Some(Stamp { inode: is.st_ino, size: is.st_size, changed }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Content of a file of at most `limit` bytes; `None` if the file is gone. Follows no link and does not block,
    /// since the command decides what is there.
    ///
    /// # Errors
    /// The file is not a regular file, or is larger.
    pub fn read(&self, name: &str, limit: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.mount, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let is = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(is.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file any more"));
        }
        // Full size from the start: growing would leave copies in freed memory.
        let mut content = Zeroizing::new(vec![0; limit + 1]);
        let mut length = 0;
        while length < content.len() {
            match rustix::io::read(&file, &mut content[length..])? {
                0 => break,
                more => length += more,
            }
        }
        if length > limit {
            return Err(io::Error::other(format!("it is larger than {limit} bytes")));
        }
        content.truncate(length);
        Ok(Some(content))
    }
}

/// Attaches the tmpfs to `directory`, in the mount namespace of the process behind `pidfd`.
pub async fn attach(pidfd: OwnedFd, mount: OwnedFd, directory: OwnedFd) -> Result<OwnedFd, CredentialError> {
    let (done, result) = tokio::sync::oneshot::channel();
    // A thread of its own rather than one of the pool: the thread changes its mount namespace.
    std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || {
            let attached = kernel::attach_in_namespace(pidfd.as_fd(), mount.as_fd(), directory.as_fd());
            let _ = done.send(attached.map(|()| mount));
        })
        .map_err(failed("start a thread"))?;
    result
        .await
        .map_err(|_| failed("attach the credentials")(io::Error::other("the thread ended early")))?
        .map_err(failed("attach the credentials"))
}
