//! Applies the layers of an image to an empty directory, whoever wrote them.
//!
//! A layer is taken as an attack: every write goes through a descriptor of its parent directory that was resolved
//! below the root without following a symbolic link (`openat2`), nothing is overwritten in place, no device is
//! made, no setuid bit or extended attribute survives, and an archive that two programs could read differently is
//! refused.

mod headers;
mod root;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use self::headers::{Item, Kind};
use self::root::{Owner, Root};
use crate::image::progress::Progress;

/// What one image may cost. Reaching a limit refuses the image.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sum of the sizes of all files, bytes.
    pub unpacked_bytes: u64,
    /// Sum of the sizes of all tar archives, bytes: above `unpacked_bytes` by the headers.
    pub archive_bytes: u64,
    /// Entries of all archives, and directories that they imply.
    pub entries: u64,
    /// Sum of the lengths of all paths, bytes; they are held in memory while a layer is applied.
    pub path_bytes: u64,
    /// Directories above a file.
    pub depth: usize,
    /// Layers of an image.
    pub layers: usize,
    /// Size of an index, manifest or configuration, bytes.
    pub document_bytes: u64,
}

/// 16 GiB: twenty times the largest image that thawd's forerunners had (745 MB).
pub const MAX_UNPACKED_BYTES: u64 = 16 << 30;
/// A million files: Node's largest dependency trees have about a tenth.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// 256 MiB of paths.
pub const MAX_PATH_BYTES: u64 = 256 << 20;
/// Deeper than any real tree, shallow enough to remove it again by recursion.
pub const MAX_DEPTH: usize = 128;
/// What Docker allows.
pub const MAX_LAYERS: usize = 127;
/// 4 MiB, as registries do.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            unpacked_bytes: MAX_UNPACKED_BYTES,
            // A header and padding for each entry at most.
            archive_bytes: MAX_UNPACKED_BYTES + MAX_ENTRIES * 1024,
            entries: MAX_ENTRIES,
            path_bytes: MAX_PATH_BYTES,
            depth: MAX_DEPTH,
            layers: MAX_LAYERS,
            document_bytes: MAX_DOCUMENT_BYTES,
        }
    }
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The archive cannot be read, or only one way of several.
    #[error("archive: {0}")]
    Archive(#[source] io::Error),
    /// An entry asks for something that is not done.
    #[error("entry {path}: {reason}")]
    Entry {
        /// Its path, with odd bytes escaped.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit was reached.
    #[error("more than the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// This machine failed.
    #[error("entry {path}: {source}")]
    Io {
        /// Path of the entry, with odd bytes escaped.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl UnpackError {
    fn entry(path: &[u8], reason: impl fmt::Display) -> Self {
        UnpackError::Entry { path: printable(path), reason: reason.to_string() }
    }
}

/// Bytes for people: quoted and without control characters.
fn printable(path: &[u8]) -> String {
    let shown = &path[..path.len().min(200)];
    format!("\"{}\"", shown.escape_ascii())
}

/// Whiteout names start with this.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of this kind are notes of AUFS to itself.
const AUFS: &[u8] = b".wh..wh.";

/// A directory that layers are applied to, lowest first.
pub(super) struct Unpacker<'a> {
    root: Root,
    limits: &'a Limits,
    progress: &'a dyn Progress,
    bytes: u64,
    entries: u64,
    path_bytes: u64,
    /// What the present layer made: its own whiteouts do not hide it.
    made: HashSet<Vec<u8>>,
    /// Directories whose mode and owner are set when the layer is complete.
    directories: BTreeMap<Vec<u8>, (u32, Owner)>,
}

impl<'a> Unpacker<'a> {
    /// `root` is an empty directory. As root, files get the owners that the layers say.
    pub(super) fn new(root: OwnedFd, limits: &'a Limits, progress: &'a dyn Progress) -> Self {
        Unpacker {
            root: Root::new(root),
            limits,
            progress,
            bytes: 0,
            entries: 0,
            path_bytes: 0,
            made: HashSet::new(),
            directories: BTreeMap::new(),
        }
    }

    /// Sum of the sizes of the files unpacked so far, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Applies one layer: an uncompressed tar archive. On an error the directory is left half done.
    pub(super) fn layer(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        self.made.clear();
        self.directories.clear();
        headers::each(archive, |item, content| self.item(item, content))?;
        let directories = std::mem::take(&mut self.directories);
        // Children before parents, so that a directory is still passable while those inside are set.
        for (path, (mode, owner)) in directories.iter().rev() {
            self.root
                .set_directory(path, *mode, *owner)
                .map_err(|source| UnpackError::Io { path: printable(path), source })?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item, content: &mut dyn Read) -> Result<(), UnpackError> {
        let path = self.checked(&item.path)?;
        let io = |source: io::Error| match source.raw_os_error() {
            Some(libc::ELOOP | libc::EXDEV) => UnpackError::entry(&item.path, "its path leads through a link"),
            Some(libc::ENOTDIR) => UnpackError::entry(&item.path, "its path leads through a file"),
            _ => UnpackError::Io { path: printable(&item.path), source },
        };
        let Some((parent, name)) = split(&path) else {
            // The entry of the root itself.
            return match item.kind {
                Kind::Directory => {
                    self.directories.insert(Vec::new(), (item.mode & 0o1777, item.owner));
                    Ok(())
                }
                _ => Err(UnpackError::entry(&item.path, "the root must be a directory")),
            };
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(UnpackError::entry(&item.path, "is a whiteout of no file"));
            }
            return self.whiteout(parent, name, hidden).map_err(io);
        }
        let above = self.parent(parent)?;
        match &item.kind {
            Kind::Directory => {
                self.root.make_directory(&above, name).map_err(io)?;
                self.directories.insert(path.clone(), (item.mode & 0o1777, item.owner));
            }
            Kind::File { size } => {
                if *size > self.limits.unpacked_bytes.saturating_sub(self.bytes) {
                    let limit = self.limits.unpacked_bytes;
                    return Err(UnpackError::Limit { what: "unpacked bytes", limit });
                }
                self.bytes += size;
                let mut content = Tell { inner: content.take(*size), progress: self.progress };
                let written =
                    self.root.make_file(&above, name, &mut content, item.mode & 0o777, item.owner, item.mtime);
                if written.map_err(io)? != *size {
                    return Err(UnpackError::entry(&item.path, "the archive ends in the middle of it"));
                }
            }
            Kind::Symlink { target } => self.root.make_symlink(&above, name, target, item.owner).map_err(io)?,
            Kind::Hardlink { target } => {
                let target = self.checked(target)?;
                if target == path {
                    return Err(UnpackError::entry(&item.path, "is a link to itself"));
                }
                let Some((from, from_name)) = split(&target) else {
                    return Err(UnpackError::entry(&item.path, "is a link to a directory"));
                };
                let from = self.root.directory(from).map_err(io)?;
                self.root.make_hardlink(&from, from_name, &above, name).map_err(|source| {
                    match source.raw_os_error() {
                        Some(libc::ENOENT) => UnpackError::entry(&item.path, "is a link to a file that is not there"),
                        Some(libc::EPERM) => UnpackError::entry(&item.path, "is a link to a directory"),
                        _ => io(source),
                    }
                })?;
            }
        }
        self.made.insert(path);
        Ok(())
    }

    /// Checks a path and returns it without `.` and doubled slashes; empty means the root.
    fn checked(&mut self, path: &[u8]) -> Result<Vec<u8>, UnpackError> {
        if path.first() == Some(&b'/') {
            return Err(UnpackError::entry(path, "its path is absolute"));
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0;
        for part in path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            if part == b".." {
                return Err(UnpackError::entry(path, "its path has a `..`"));
            }
            if part.contains(&0) {
                return Err(UnpackError::entry(path, "its path has a zero byte"));
            }
            depth += 1;
            if depth > self.limits.depth {
                return Err(UnpackError::Limit { what: "levels of directories", limit: self.limits.depth as u64 });
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        self.count(clean.len())?;
        Ok(clean)
    }

    fn count(&mut self, path_length: usize) -> Result<(), UnpackError> {
        self.entries += 1;
        self.path_bytes += path_length as u64;
        if self.entries > self.limits.entries {
            return Err(UnpackError::Limit { what: "entries", limit: self.limits.entries });
        }
        if self.path_bytes > self.limits.path_bytes {
            return Err(UnpackError::Limit { what: "bytes of paths", limit: self.limits.path_bytes });
        }
        Ok(())
    }

    /// The directory at `path`; those that no entry made come into being as root's with mode 0755.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let io = |source: io::Error| match source.raw_os_error() {
            Some(libc::ELOOP | libc::EXDEV) => UnpackError::entry(path, "leads through a link"),
            Some(libc::ENOTDIR) => UnpackError::entry(path, "leads through a file"),
            _ => UnpackError::Io { path: printable(path), source },
        };
        match self.root.directory(path) {
            Ok(found) => return Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(io(error)),
        }
        let mut ends: Vec<usize> = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).collect();
        ends.push(path.len());
        for end in ends {
            let part = &path[..end];
            match self.root.directory(part) {
                Ok(_) => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(io(error)),
            }
            self.count(part.len())?;
            let Some((above, name)) = split(part) else { continue };
            let above = self.root.directory(above).map_err(io)?;
            self.root.make_directory(&above, name).map_err(io)?;
            self.directories.insert(part.to_vec(), (0o755, Owner::ROOT));
            self.made.insert(part.to_vec());
        }
        self.root.directory(path).map_err(io)
    }

    /// Hides what lower layers have. A whiteout of something that is not there is no error.
    fn whiteout(&mut self, parent: &[u8], name: &[u8], hidden: &[u8]) -> io::Result<()> {
        if name != OPAQUE && name.starts_with(AUFS) {
            return Ok(());
        }
        let above = match self.root.directory(parent) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other?,
        };
        if name == OPAQUE {
            return self.root.clear(&above, parent, &self.made);
        }
        self.root.remove(&above, hidden, &join(parent, hidden), &self.made)
    }
}

/// Directory and name of a clean path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None if path.is_empty() => None,
        None => Some((&[], path)),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

struct Tell<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Tell<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advanced(count as u64);
        Ok(count)
    }
}
