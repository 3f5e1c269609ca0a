//! Making files in the directory, as its owner's.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{STRICT, shown};
use crate::kernel;

/// Mode of directories that nobody says anything of.
const DIRECTORY_MODE: u32 = 0o755;

/// Something to be made.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where, relative to the directory; see [`super::relative`].
    pub path: Vec<u8>,
    /// What.
    pub what: What,
}

/// What is made.
#[derive(Clone, PartialEq, Eq)]
pub enum What {
    /// A directory with these permissions.
    Directory(u32),
    /// A file with these permissions and this content.
    File(u32, Vec<u8>),
    /// A symbolic link with this target.
    Link(Vec<u8>),
}

impl std::fmt::Debug for Entry {
    /// Without path and content, which are the user's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.what {
            What::Directory(_) => "a directory",
            What::File(..) => "a file",
            What::Link(_) => "a link",
        })
    }
}

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{path:?} cannot be put into /workspace: {source}")]
pub struct PutError {
    /// Which.
    pub path: String,
    /// Why.
    pub source: io::Error,
}

impl PutError {
    /// Whether there was no room for it.
    pub fn is_too_large(&self) -> bool {
        let errno = self.source.raw_os_error();
        errno == Some(Errno::NOSPC.raw_os_error()) || errno == Some(Errno::DQUOT.raw_os_error())
    }

    fn new(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self { path: shown(path), source: source.into() }
    }
}

/// Makes `entries` in `directory`, in their order, for this user and group of the host. A directory may be there already;
/// what lies above an entry is made.
///
/// Must run on a thread that is thrown away afterwards: it makes files as somebody else from here on.
///
/// # Errors
/// The first entry that cannot be made; those before it are there.
pub fn put(directory: BorrowedFd<'_>, (user, group): (u32, u32), entries: &[Entry]) -> Result<(), PutError> {
    // A file system of the container's own user namespace takes no files of an owner that does not exist in there, and the
    // host's root does not (EOVERFLOW).
    kernel::own_files_as(user, group).map_err(|error| PutError::new(b"/workspace", error))?;
    let mut above: Option<(&[u8], OwnedFd)> = None;
    let mut modes = Vec::new();
    for entry in entries {
        let (parent, name) = split(&entry.path);
        if above.as_ref().is_none_or(|(path, _)| *path != parent) {
            above = Some((parent, parents(directory, parent).map_err(|errno| PutError::new(parent, errno))?));
        }
        let Some((_, place)) = &above else { continue };
        make(place.as_fd(), name, &entry.what).map_err(|errno| PutError::new(&entry.path, errno))?;
        if let What::Directory(mode) = entry.what {
            modes.push((&entry.path, mode));
        }
    }
    // What lies in them had to be made first; the innermost first, since it may have to be the last that can be reached.
    modes.sort_by(|one, other| other.0.cmp(one.0));
    for (path, mode) in modes {
        let set = || -> Result<(), Errno> { rustix::fs::fchmod(open_directory(directory, path)?, permissions(mode)) };
        set().map_err(|errno| PutError::new(path, errno))?;
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

fn open_directory(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, OsStr::from_bytes(path), flags, Mode::empty(), STRICT)
}

/// The directory that `path` names, made as far as it is missing.
pub(crate) fn parents(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    match open_directory(directory, path) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    let mut at = open_directory(directory, b"")?;
    for part in path.split(|byte| *byte == b'/') {
        make(at.as_fd(), part, &What::Directory(DIRECTORY_MODE))?;
        at = open_directory(at.as_fd(), part)?;
    }
    Ok(at)
}

fn make(above: BorrowedFd<'_>, name: &[u8], what: &What) -> Result<(), Errno> {
    let name = OsStr::from_bytes(name);
    match what {
        // Passable for now, whatever it is to be in the end.
        What::Directory(_) => match rustix::fs::mkdirat(above, name, permissions(0o700)) {
            Ok(()) => rustix::fs::fchmod(open_directory(above, name.as_bytes())?, permissions(DIRECTORY_MODE)),
            Err(Errno::EXIST) => open_directory(above, name.as_bytes()).map(drop),
            Err(errno) => Err(errno),
        },
        What::File(mode, content) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(above, name, flags, permissions(0o600))?;
            let mut rest = content.as_slice();
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest)?;
                rest = &rest[written..];
            }
            rustix::fs::fchmod(&file, permissions(*mode))
        }
        What::Link(target) => rustix::fs::symlinkat(OsStr::from_bytes(target), above, name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn file(path: &str, content: &str) -> Entry {
        Entry { path: path.into(), what: What::File(0o644, content.into()) }
    }

    /// On a thread of its own, as this process's own user.
    fn put_into(directory: &std::path::Path, entries: Vec<Entry>) -> Result<(), PutError> {
        let opened = fs::File::open(directory).unwrap();
        let metadata = opened.metadata().unwrap();
        let owner = (metadata.uid(), metadata.gid());
        std::thread::spawn(move || put(opened.as_fd(), owner, &entries)).join().unwrap()
    }

    #[test]
    fn files_directories_and_links_are_made_with_what_lies_above_them() {
        let place = tempfile::tempdir().unwrap();
        let entries = vec![
            file("a/b/c.txt", "one"),
            file("a/b/d\n.txt", ""),
            Entry { path: b"run".to_vec(), what: What::File(0o4755, b"#!/bin/sh\n".to_vec()) },
            Entry { path: b"locked".to_vec(), what: What::Directory(0o500) },
            file("locked/in", "two"),
            Entry { path: b"\xff".to_vec(), what: What::Link(b"/etc/passwd".to_vec()) },
        ];
        put_into(place.path(), entries).unwrap();
        let at = |path: &str| place.path().join(path);
        assert_eq!(fs::read_to_string(at("a/b/c.txt")).unwrap(), "one");
        assert_eq!(fs::read_to_string(at("locked/in")).unwrap(), "two");
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(["a", "a/b/c.txt", "run", "locked"].map(mode), [0o755, 0o644, 0o755, 0o500]);
        let link = place.path().join(OsStr::from_bytes(b"\xff"));
        assert_eq!(fs::read_link(link).unwrap().to_str(), Some("/etc/passwd"));
        fs::set_permissions(at("locked"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn nothing_is_written_through_a_link_or_over_something() {
        let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(other.path(), place.path().join("out")).unwrap();
        symlink(other.path().join("x"), place.path().join("dangling")).unwrap();
        fs::write(place.path().join("there"), "kept").unwrap();
        for path in ["out/x", "dangling", "there", "there/x"] {
            let error = put_into(place.path(), vec![file(path, "new")]).unwrap_err();
            assert!(!error.is_too_large(), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(place.path().join("there")).unwrap(), "kept");
    }
}
