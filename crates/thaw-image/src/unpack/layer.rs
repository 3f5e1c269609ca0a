//! Unpacks a layer's archive into numbered files and the list of its entries.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::content::{self, Entry, Kind, What};
use super::headers::{self, Item, ItemKind};
use super::notes::Notes;
use super::root::Owner;
use super::{Limits, UnpackError, Used, printable};
use crate::digest::{FileHasher, HashingWriter};
use crate::progress::Progress;

/// Prefix of whiteout names.
const WHITEOUT: &[u8] = b".wh.";
/// Whiteout that hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of other names, which are internal to AUFS.
const AUFS: &[u8] = b".wh..wh.";

/// Result of unpacking an archive.
pub(crate) struct Unpacked {
    /// Usage of the limits, without the size of the archive itself.
    pub(crate) used: Used,
    /// Digest of the list of its entries.
    pub(crate) contents: String,
    /// Parts of the archive that were left out.
    pub(crate) notes: Notes,
}

/// Unpacks an uncompressed tar archive: its files go to the empty directory `files`, named by number, and the list of
/// its entries to `list`. If run as root, files get the owners of the archive. `used` is what lower layers have used of
/// `limits`. After an error both are incomplete.
pub(crate) fn unpack(
    archive: impl Read,
    files: OwnedFd,
    list: File,
    used: &Used,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Unpacked, UnpackError> {
    let mut reader = Reader {
        files,
        list: HashingWriter::new(BufWriter::new(list)),
        next: 0,
        special: HashSet::new(),
        notes: Notes::default(),
        set_owners: rustix::process::geteuid().is_root(),
        used: used.clone(),
        limits,
        progress,
        buffer: vec![0; 64 * 1024],
    };
    headers::each(archive, |item, content| reader.item(item, content))?;
    let (mut list, _, contents) = reader.list.finish();
    list.flush().map_err(|error| UnpackError::io(b"", error))?;
    Ok(Unpacked { used: reader.used.since(used), contents, notes: reader.notes })
}

struct Reader<'a> {
    files: OwnedFd,
    list: HashingWriter<BufWriter<File>>,
    /// Number of the next file.
    next: u64,
    /// Paths of devices and pipes, which are left out, together with hard links to them.
    special: HashSet<Vec<u8>>,
    notes: Notes,
    /// Whether owners can be set, which only root can.
    set_owners: bool,
    /// Usage of this layer and those below.
    used: Used,
    limits: &'a Limits,
    progress: &'a dyn Progress,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    fn item(&mut self, item: &Item, content: &mut dyn Read) -> Result<(), UnpackError> {
        let path = self.checked(&item.path)?;
        let (parent, name) = match super::split(&path) {
            Some(parts) => parts,
            None if matches!(item.kind, ItemKind::Directory) => (&[][..], &[][..]),
            None => return Err(UnpackError::entry(&item.path, "the root must be a directory")),
        };
        let entry = if name == OPAQUE {
            Entry { path: parent.to_vec(), what: What::Opaque }
        } else if name.starts_with(AUFS) {
            return Ok(());
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(UnpackError::entry(&item.path, "is a whiteout of no file"));
            }
            Entry { path: join(parent, hidden), what: What::Whiteout }
        } else {
            match self.what(item, &path, content)? {
                Some(what) => Entry { path, what },
                None => return Ok(()),
            }
        };
        content::write(&mut self.list, &entry).map_err(|error| UnpackError::io(&item.path, error))
    }

    /// What an entry does; `None` if it is left out.
    fn what(&mut self, item: &Item, path: &[u8], content: &mut dyn Read) -> Result<Option<What>, UnpackError> {
        if self.special.remove(path) {
            // The last of several entries for one path counts.
            self.notes.forget_left_out(&printable(path));
        }
        if item.mode & 0o6000 != 0 && matches!(item.kind, ItemKind::File { .. }) {
            self.notes.setuid(&printable(path));
        }
        let (kind, mode) = match &item.kind {
            ItemKind::Special(what) => {
                self.notes.left_out(&printable(path), what);
                self.special.insert(path.to_vec());
                return Ok(None);
            }
            // The sticky bit of a directory such as /tmp is the only special bit that does no harm.
            ItemKind::Directory => (Kind::Directory, item.mode & 0o1777),
            ItemKind::Symlink { target } => (Kind::Symlink { target: target.clone() }, 0o777),
            ItemKind::File { size } => {
                self.used.count_bytes(*size, self.limits)?;
                let mode = item.mode & 0o777;
                let (written, digest) = self
                    .file(&mut content.take(*size), mode, item)
                    .map_err(|error| UnpackError::io(&item.path, error))?;
                if written != *size {
                    return Err(UnpackError::entry(&item.path, "the archive ends in the middle of it"));
                }
                (Kind::File { size: *size, digest }, mode)
            }
            ItemKind::Hardlink { target } => {
                let target = self.checked(target)?;
                if target == path {
                    return Err(UnpackError::entry(&item.path, "is a link to itself"));
                }
                if target.is_empty() {
                    return Err(UnpackError::entry(&item.path, "is a link to a directory"));
                }
                if self.special.contains(&target) {
                    self.notes.left_out(&printable(path), "another name of one of them");
                    self.special.insert(path.to_vec());
                    return Ok(None);
                }
                return Ok(Some(What::Hardlink { target }));
            }
        };
        Ok(Some(What::Node { kind, mode, owner: item.owner, mtime: item.mtime }))
    }

    /// Checks a path and returns it relative to the image's root, with or without a leading slash in the archive,
    /// without `.` and doubled slashes; empty means the root.
    fn checked(&mut self, path: &[u8]) -> Result<Vec<u8>, UnpackError> {
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
        self.used.count_entry(clean.len(), self.limits)?;
        Ok(clean)
    }

    /// Writes the next file; returns its size in bytes and its digest.
    fn file(&mut self, content: &mut impl Read, mode: u32, item: &Item) -> io::Result<(u64, String)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.files, self.next.to_string(), flags, Mode::RUSR | Mode::WUSR)?;
        self.next += 1;
        let mut file = File::from(fd);
        let mut hasher = FileHasher::new();
        let mut written = 0;
        loop {
            let count = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&self.buffer[..count]);
            file.write_all(&self.buffer[..count])?;
            written += count as u64;
            self.progress.advanced(count as u64);
        }
        if self.set_owners {
            let Owner { uid, gid } = item.owner;
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
        let time = Timespec { tv_sec: item.mtime, tv_nsec: 0 };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
        Ok((written, hasher.finish()))
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
