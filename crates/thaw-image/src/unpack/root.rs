//! File operations below one directory that never leave it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// User and group of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    /// User and group.
    pub(crate) fn ids(self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    pub(crate) const ROOT: Owner = Owner { uid: 0, gid: 0 };

    /// `None` above 2^31 - 1: such numbers mean "unchanged" or overflow somewhere.
    pub(crate) fn new(uid: u64, gid: u64) -> Option<Self> {
        let number = |id| i32::try_from(id).ok().map(i32::unsigned_abs);
        Some(Owner { uid: number(uid)?, gid: number(gid)? })
    }
}

/// A directory of the root, open. Its inode number and a name say which entry is meant, whatever path led there.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
    /// When it was last modified.
    pub(super) modified: Timespec,
}

impl Directory {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let found = rustix::fs::fstat(&fd)?;
        let modified = Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec.cast_signed() };
        Ok(Directory { fd, inode: found.st_ino, modified })
    }
}

/// An entry: inode of its directory, and its name.
pub(super) type Place = (u64, Vec<u8>);

/// The root directory. Paths are relative, clean (no `.`, `..` or empty part) and may be empty for the root.
pub(super) struct Root {
    fd: OwnedFd,
    /// How deep each directory lies, by inode: through links, short paths can make deep trees.
    depths: HashMap<u64, usize>,
    max_depth: usize,
    /// Owners can only be set by root.
    set_owners: bool,
}

impl Root {
    /// `fd` is an empty directory.
    pub(super) fn new(fd: OwnedFd, max_depth: usize) -> io::Result<Self> {
        let depths = HashMap::from([(rustix::fs::fstat(&fd)?.st_ino, 0)]);
        Ok(Root { fd, depths, max_depth, set_owners: rustix::process::geteuid().is_root() })
    }

    /// Opens a directory. Links on the way are followed as a process inside would follow them; the last part may
    /// be a link only if `follow` says so, else there is `ENOTDIR`.
    pub(super) fn directory(&self, path: &[u8], follow: bool) -> io::Result<Directory> {
        let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // The kernel could not be sure because something was renamed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => {
                    return Directory::new(other?);
                }
            }
        }
    }

    /// Makes a directory, private until [`Root::set_directory`]; one that is there stays. Returns its inode, or
    /// `None` if it would lie too deep.
    pub(super) fn make_directory(&mut self, above: &Directory, name: &[u8]) -> io::Result<Option<u64>> {
        let depth = self.depths.get(&above.inode).copied().unwrap_or(0) + 1;
        if depth > self.max_depth {
            return Ok(None);
        }
        match rustix::fs::mkdirat(&above.fd, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&above.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    return Ok(Some(found.st_ino));
                }
                rustix::fs::unlinkat(&above.fd, name, AtFlags::empty())?;
                rustix::fs::mkdirat(&above.fd, name, Mode::RWXU)?;
            }
            other => other?,
        }
        let found = rustix::fs::statat(&above.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.depths.insert(found.st_ino, depth);
        Ok(Some(found.st_ino))
    }

    /// Sets mode, owner and time; does nothing if something else took its place meanwhile.
    pub(super) fn set_directory(&self, path: &[u8], expected: u64, set: &Attributes) -> io::Result<()> {
        let directory = match self.directory(path, false) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                return Ok(());
            }
            other => other?,
        };
        if directory.inode != expected {
            return Ok(());
        }
        if self.set_owners {
            let Owner { uid, gid } = set.owner;
            rustix::fs::fchown(&directory.fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(set.mode))?;
        let time = Timespec { tv_sec: set.mtime, tv_nsec: 0 };
        Ok(rustix::fs::futimens(&directory.fd, &Timestamps { last_access: time, last_modification: time })?)
    }

    /// Gives a directory back its time; does nothing if something else took its place meanwhile.
    pub(super) fn set_modified(&self, path: &[u8], expected: u64, modified: Timespec) -> io::Result<()> {
        match self.directory(path, true) {
            Ok(directory) if directory.inode == expected => {
                let times = Timestamps { last_access: modified, last_modification: modified };
                Ok(rustix::fs::futimens(&directory.fd, &times)?)
            }
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a symbolic link, in place of whatever had its name. Its target is only text.
    pub(super) fn make_symlink(
        &self,
        above: &Directory,
        name: &[u8],
        target: &[u8],
        set: &Attributes,
    ) -> io::Result<()> {
        self.replacing(above, name, || rustix::fs::symlinkat(target, &above.fd, name))?;
        if self.set_owners {
            let Owner { uid, gid } = set.owner;
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(&above.fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let time = Timespec { tv_sec: set.mtime, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(&above.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives a file another name, in place of whatever had it. A symbolic link is not followed; `EPERM` for a
    /// directory.
    pub(super) fn make_hardlink(
        &self,
        from: BorrowedFd<'_>,
        from_name: &[u8],
        above: &Directory,
        name: &[u8],
    ) -> io::Result<()> {
        // Before anything is replaced: the target must be there and must not be a directory.
        if is_directory(from, from_name)? {
            return Err(Errno::PERM.into());
        }
        self.replacing(above, name, || rustix::fs::linkat(from, from_name, &above.fd, name, AtFlags::empty()))
    }

    fn replacing<T>(&self, above: &Directory, name: &[u8], make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(above, name, &HashSet::new())?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes `name` and all below it, except what `keep` has.
    pub(super) fn remove(&self, above: &Directory, name: &[u8], keep: &HashSet<Place>) -> io::Result<()> {
        let directory = match is_directory(above.fd.as_fd(), name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        };
        let kept = !keep.is_empty() && keep.contains(&(above.inode, name.to_vec()));
        if !directory {
            return if kept { Ok(()) } else { Ok(rustix::fs::unlinkat(&above.fd, name, AtFlags::empty())?) };
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&above.fd, name, flags, Mode::empty())?;
        self.clear(&Directory::new(fd)?, keep)?;
        if kept {
            return Ok(());
        }
        match rustix::fs::unlinkat(&above.fd, name, AtFlags::REMOVEDIR) {
            // Something below it is kept, and so it is.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes all that is in a directory, except what `keep` has.
    pub(super) fn clear(&self, directory: &Directory, keep: &HashSet<Place>) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
        }
        for name in names {
            self.remove(directory, &name, keep)?;
        }
        Ok(())
    }
}

/// What is set on a node once it is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) owner: Owner,
    /// Seconds since 1970.
    pub(super) mtime: i64,
}

/// Whether `name` is itself a directory (a link to one is not).
fn is_directory(above: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    let found = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}
