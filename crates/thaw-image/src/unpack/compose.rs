//! Replays the lists of layers into one directory. Files are not copied: they are hard links to those of the layers.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Timespec;

use super::content::{Entry, Kind, What};
use super::root::{Attributes, Directory, Owner, Place, Root};
use super::{Limits, UnpackError, Used, printable, split};

/// A root file system that layers are put into, lowest first.
pub(crate) struct Composer<'a> {
    root: Root,
    limits: &'a Limits,
    /// Entries so far, including directories that they implied.
    used: Used,
    /// What the current layer made: its own whiteouts do not hide that.
    made: HashSet<Place>,
    /// Directories by path, with their inode and the attributes to set when the layer is complete.
    directories: BTreeMap<Vec<u8>, (u64, Attributes)>,
    /// Directories of lower layers in which something changes, by inode, with one of their paths and the time to
    /// restore.
    touched: BTreeMap<u64, (Vec<u8>, Timespec)>,
}

impl<'a> Composer<'a> {
    /// `root` is an empty directory. If run as root, directories and links get the owners of the layers.
    pub(crate) fn new(root: OwnedFd, limits: &'a Limits) -> io::Result<Self> {
        Ok(Composer {
            root: Root::new(root, limits.depth)?,
            limits,
            used: Used::default(),
            made: HashSet::new(),
            directories: BTreeMap::new(),
            touched: BTreeMap::new(),
        })
    }

    /// Applies one layer: its entries in order, and the directory with its numbered files. After an error the root is
    /// incomplete.
    pub(crate) fn layer(
        &mut self,
        mut next: impl FnMut() -> io::Result<Option<Entry>>,
        files: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        self.made.clear();
        self.directories.clear();
        let mut number = 0_u64;
        while let Some(entry) = next().map_err(|error| UnpackError::io(b"", error))? {
            self.entry(&entry, files, &mut number)?;
        }
        self.settle()
    }

    /// Makes the mount points that every container needs, where no layer has an entry of that name: they cannot be made
    /// later, since a container's root is read-only. Then makes `workdir`, the directory that commands start in, for
    /// `owner`. Existing entries stay as they are, including links and files.
    pub(crate) fn complete(&mut self, workdir: &[u8], owner: Owner) -> Result<(), UnpackError> {
        (self.made, self.directories) = (HashSet::new(), BTreeMap::new());
        let root = self.root.directory(b"", true).map_err(|error| UnpackError::io(b"", error))?;
        self.touch(b"", &root);
        for (name, mode) in DIRECTORIES {
            if !exists(&root, name)? {
                self.directory(&root, name, name, Attributes { mode, owner: Owner::ROOT, mtime: 0 })?;
            }
        }
        match self.root.directory(b"etc", false) {
            Ok(etc) => {
                self.touch(b"etc", &etc);
                for name in EMPTY_FILES {
                    if !exists(&etc, name)? {
                        make_empty(&etc, name).map_err(|error| UnpackError::io(name, error))?;
                    }
                }
            }
            // A link or a file: the image has decided.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {}
            Err(error) => return Err(UnpackError::io(b"etc", error)),
        }
        let clean: Vec<&[u8]> =
            workdir.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        if !clean.is_empty() && !clean.contains(&&b".."[..]) && !clean.iter().any(|part| part.contains(&0)) {
            let path = clean.join(&b'/');
            let there = self.root.directory(&path, true);
            if there.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT)) {
                // If the directory cannot be made, the command that cannot start in it reports that.
                if let Ok(made) = self.parent(&path) {
                    let attributes = Attributes { mode: 0o755, owner, mtime: 0 };
                    self.directories.insert(path, (made.inode, attributes));
                }
            }
        }
        self.settle()
    }

    /// Sets the attributes that must be set after the last change.
    fn settle(&mut self) -> Result<(), UnpackError> {
        for (inode, (path, modified)) in std::mem::take(&mut self.touched) {
            self.root.set_modified(&path, inode, modified).map_err(|error| UnpackError::io(&path, error))?;
        }
        // Children before parents: a directory stays accessible until those inside are done, and its time is the
        // layer's.
        for (path, (inode, attributes)) in std::mem::take(&mut self.directories).iter().rev() {
            self.root.set_directory(path, *inode, attributes).map_err(|error| UnpackError::io(path, error))?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, files: BorrowedFd<'_>, number: &mut u64) -> Result<(), UnpackError> {
        let path = &entry.path;
        let io = |source| explained(path, source);
        match &entry.what {
            What::Opaque => match self.root.directory(path, true) {
                Ok(directory) => {
                    self.touch(path, &directory);
                    self.root.clear(&directory, &self.made).map_err(io)
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                Err(error) => Err(io(error)),
            },
            What::Whiteout => {
                let Some((parent, name)) = split(path) else { return Ok(()) };
                match self.root.directory(parent, true) {
                    Ok(above) => {
                        self.touch(parent, &above);
                        self.root.remove(&above, name, &self.made).map_err(io)
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                    Err(error) => Err(io(error)),
                }
            }
            What::Hardlink { target } => {
                let Some(((parent, name), (from, from_name))) = split(path).zip(split(target)) else {
                    return Err(UnpackError::entry(path, "is a link to a directory"));
                };
                let above = self.parent(parent)?;
                let from = self.root.directory(from, true).map_err(|error| match error.raw_os_error() {
                    Some(libc::ENOENT) => UnpackError::entry(path, "is a link to a file that is not there"),
                    _ => io(error),
                })?;
                if from.inode == above.inode && from_name == name {
                    return Err(UnpackError::entry(path, "is a link to itself"));
                }
                self.root.make_hardlink(from.fd.as_fd(), from_name, &above, name).map_err(|error| {
                    match error.raw_os_error() {
                        Some(libc::ENOENT) => UnpackError::entry(path, "is a link to a file that is not there"),
                        Some(libc::EPERM) => UnpackError::entry(path, "is a link to a directory"),
                        _ => io(error),
                    }
                })?;
                self.made.insert((above.inode, name.to_vec()));
                self.used.count_entry(path.len(), self.limits)
            }
            What::Node { kind, mode, owner, mtime } => {
                let attributes = Attributes { mode: *mode, owner: *owner, mtime: *mtime };
                self.node(path, kind, &attributes, files, number)
            }
        }
    }

    fn node(
        &mut self,
        path: &[u8],
        kind: &Kind,
        attributes: &Attributes,
        files: BorrowedFd<'_>,
        number: &mut u64,
    ) -> Result<(), UnpackError> {
        let io = |source| explained(path, source);
        let Some((parent, name)) = split(path) else {
            let root = self.root.directory(b"", true).map_err(io)?;
            self.directories.insert(Vec::new(), (root.inode, *attributes));
            return Ok(());
        };
        let above = self.parent(parent)?;
        match kind {
            Kind::Directory => self.directory(&above, name, path, *attributes)?,
            Kind::Symlink { target } => self.root.make_symlink(&above, name, target, attributes).map_err(io)?,
            Kind::File { .. } => {
                let from = number.to_string();
                *number += 1;
                self.root.make_hardlink(files, from.as_bytes(), &above, name).map_err(io)?;
            }
        }
        self.made.insert((above.inode, name.to_vec()));
        self.used.count_entry(path.len(), self.limits)
    }

    fn directory(
        &mut self,
        above: &Directory,
        name: &[u8],
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let made = self.root.make_directory(above, name).map_err(|source| explained(path, source))?;
        let Some(inode) = made else {
            return Err(UnpackError::Limit { what: "levels of directories", limit: self.limits.depth as u64 });
        };
        self.directories.insert(path.to_vec(), (inode, attributes));
        Ok(())
    }

    /// Records the time of a directory before something changes in it for the first time.
    fn touch(&mut self, path: &[u8], directory: &Directory) {
        self.touched.entry(directory.inode).or_insert_with(|| (path.to_vec(), directory.modified));
    }

    /// Opens the directory at `path`. Directories without an entry of their own are made as root's, with mode 0755.
    fn parent(&mut self, path: &[u8]) -> Result<Directory, UnpackError> {
        let io = |source| explained(path, source);
        match self.root.directory(path, true) {
            Ok(found) => {
                self.touch(path, &found);
                return Ok(found);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(io(error)),
        }
        let mut above = self.root.directory(b"", true).map_err(io)?;
        self.touch(b"", &above);
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let part = &path[..end];
            let found = match self.root.directory(part, true) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let Some((_, name)) = split(part) else { continue };
                    if rustix::fs::statat(&above.fd, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(UnpackError::entry(path, "its path leads through a link to nowhere"));
                    }
                    self.used.count_entry(part.len(), self.limits)?;
                    let attributes = Attributes { mode: 0o755, owner: Owner::ROOT, mtime: 0 };
                    self.directory(&above, name, part, attributes)?;
                    self.made.insert((above.inode, name.to_vec()));
                    self.root.directory(part, true).map_err(io)?
                }
                other => other.map_err(io)?,
            };
            self.touch(part, &found);
            above = found;
        }
        Ok(above)
    }
}

/// Directories that containers have something mounted on, and their modes.
const DIRECTORIES: [(&[u8], u32); 7] = [
    (b"dev", 0o755),
    (b"etc", 0o755),
    (b"proc", 0o555),
    (b"run", 0o755),
    (b"sys", 0o555),
    (b"tmp", 0o1777),
    (b"workspace", 0o755),
];
/// Files in `/etc` that an engine mounts its own over.
const EMPTY_FILES: [&[u8]; 3] = [b"hosts", b"hostname", b"resolv.conf"];

/// Whether a directory has an entry of this name.
fn exists(above: &Directory, name: &[u8]) -> Result<bool, UnpackError> {
    match rustix::fs::statat(&above.fd, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(UnpackError::io(name, error.into())),
    }
}

/// Makes an empty file that everybody can read.
fn make_empty(above: &Directory, name: &[u8]) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, Timestamps};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&above.fd, name, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    let time = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?)
}

/// Converts an error of the system for an archive.
fn explained(path: &[u8], source: io::Error) -> UnpackError {
    match source.raw_os_error() {
        Some(libc::ELOOP) => UnpackError::entry(path, "its path leads through too many links"),
        Some(libc::EXDEV) => UnpackError::entry(path, "its path leads out of the root"),
        Some(libc::ENOTDIR) => UnpackError::entry(path, "its path leads through a file"),
        Some(libc::EMLINK) => UnpackError::entry(path, "its file has more names than the file system can count"),
        _ => UnpackError::Io { path: printable(path), source },
    }
}
