//! File operations below one directory that never leave it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::join;

/// User and group of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    uid: Uid,
    gid: Gid,
}

impl Owner {
    pub(super) const ROOT: Owner = Owner { uid: Uid::ROOT, gid: Gid::ROOT };

    /// `None` above 2^31 - 1: such numbers mean "unchanged" or overflow somewhere.
    pub(super) fn new(uid: u64, gid: u64) -> Option<Self> {
        let number = |id| i32::try_from(id).ok().map(i32::unsigned_abs);
        Some(Owner { uid: Uid::from_raw(number(uid)?), gid: Gid::from_raw(number(gid)?) })
    }
}

/// The root directory. Paths are relative, clean (no `.`, `..` or empty part) and may be empty for the root.
pub(super) struct Root {
    fd: OwnedFd,
    /// Owners can only be set by root.
    set_owners: bool,
}

impl Root {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Root { fd, set_owners: rustix::process::geteuid().is_root() }
    }

    /// Opens a directory without following any link: `ELOOP` if there is one on the way.
    pub(super) fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
        // No O_NOFOLLOW: with it a link at the end would be reported as "not a directory".
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // The kernel could not be sure because something was renamed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Makes a directory, private until [`Root::set_directory`]; one that is there stays.
    pub(super) fn make_directory(&self, above: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let make = || rustix::fs::mkdirat(above, name, Mode::RWXU);
        match make() {
            Err(Errno::EXIST) => {
                if is_directory(above, name)? {
                    return Ok(());
                }
                rustix::fs::unlinkat(above, name, AtFlags::empty())?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Sets mode and owner; does nothing if something else took its place meanwhile.
    pub(super) fn set_directory(&self, path: &[u8], mode: u32, owner: Owner) -> io::Result<()> {
        let directory = match self.directory(path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                return Ok(());
            }
            other => other?,
        };
        self.set(&directory, mode, owner)
    }

    fn set(&self, fd: impl AsFd, mode: u32, owner: Owner) -> io::Result<()> {
        if self.set_owners {
            rustix::fs::fchown(&fd, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?)
    }

    /// Writes a new file, in place of whatever had its name; returns how many bytes it got.
    pub(super) fn make_file(
        &self,
        above: &OwnedFd,
        name: &[u8],
        content: &mut impl Read,
        mode: u32,
        owner: Owner,
        mtime: i64,
    ) -> io::Result<u64> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.replacing(above, name, || rustix::fs::openat(above, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut file = File::from(fd);
        let written = copy(content, &mut file)?;
        self.set(&file, mode, owner)?;
        let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
        Ok(written)
    }

    /// Makes a symbolic link, in place of whatever had its name. Its target is only text.
    pub(super) fn make_symlink(&self, above: &OwnedFd, name: &[u8], target: &[u8], owner: Owner) -> io::Result<()> {
        self.replacing(above, name, || rustix::fs::symlinkat(target, above, name))?;
        if self.set_owners {
            rustix::fs::chownat(above, name, Some(owner.uid), Some(owner.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Gives a file a second name, in place of whatever had it. A symbolic link is not followed.
    pub(super) fn make_hardlink(
        &self,
        from: &OwnedFd,
        from_name: &[u8],
        above: &OwnedFd,
        name: &[u8],
    ) -> io::Result<()> {
        // Before anything is replaced: the target must be there and must not be a directory.
        if is_directory(from, from_name)? {
            return Err(Errno::PERM.into());
        }
        self.replacing(above, name, || rustix::fs::linkat(from, from_name, above, name, AtFlags::empty()))
    }

    fn replacing<T>(&self, above: &OwnedFd, name: &[u8], make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(above, name, name, &HashSet::new())?;
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    /// Removes `name` and all below it, except what `keep` has. `path` is its path from the root.
    pub(super) fn remove(&self, above: &OwnedFd, name: &[u8], path: &[u8], keep: &HashSet<Vec<u8>>) -> io::Result<()> {
        let directory = match is_directory(above, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        };
        let kept = keep.contains(path);
        if !directory {
            return if kept { Ok(()) } else { Ok(rustix::fs::unlinkat(above, name, AtFlags::empty())?) };
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = rustix::fs::openat(above, name, flags, Mode::empty())?;
        self.clear(&inside, path, keep)?;
        if kept {
            return Ok(());
        }
        match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
            // Something below it is kept, and so it is.
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes all that is in a directory, except what `keep` has. `path` is its path from the root.
    pub(super) fn clear(&self, directory: &OwnedFd, path: &[u8], keep: &HashSet<Vec<u8>>) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
        }
        for name in names {
            self.remove(directory, &name, &join(path, &name), keep)?;
        }
        Ok(())
    }
}

/// Whether `name` is itself a directory (a link to one is not).
fn is_directory(above: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    let found = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// Copies in large pieces: layers are mostly made of a few large files.
fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    use std::io::Write;
    let mut buffer = [0; 64 * 1024];
    let mut total = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..count])?;
        total += count as u64;
    }
}
