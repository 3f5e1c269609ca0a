//! Fetching files as one archive, in the form that tar(1) reads.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::{MAX_DEPTH, MAX_PATH, STRICT, reopen, shown};

/// Size of a block of an archive, bytes (ustar).
const BLOCK: u64 = 512;

/// What ends an archive, bytes.
const TRAILER: u64 = 2 * BLOCK;

/// Names longer than this take blocks of their own, bytes.
const SHORT_NAME: usize = 99;

/// Problems that are told one by one; further ones are counted.
const MAX_PROBLEMS: usize = 32;

/// Id in the archive of an owner that does not exist in the container.
const NOBODY: u64 = 65_534;

/// How much is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the archive, bytes.
    pub bytes: u64,
    /// Files, directories and links in it, those that are left out counted too.
    pub entries: u64,
}

/// What could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which path; see [`shown`].
    pub path: String,
    /// Why, as a fragment.
    pub problem: String,
}

/// What was fetched, and what was not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Files, directories and links in the archive.
    pub entries: u64,
    /// Size of the archive, bytes.
    pub bytes: u64,
    /// What is missing of what was wanted.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// FIFOs, sockets and devices that were left out without being problems.
    pub left_out: u64,
}

/// What is done with what cannot be in an archive, or must not.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// FIFOs, sockets and devices are left out and counted; otherwise each is a problem.
    pub leaves_out: bool,
    /// Why something is not for an archive, as a fragment.
    pub refuses: &'a dyn Fn(BorrowedFd<'_>) -> Option<String>,
}

/// Writes what is at `wanted` below `directory` into `archive`, which is emptied first: whole directories, links as links.
/// Owners are told as they are inside, where ids begin with `id_base` of the host. Nothing may run any more that could
/// change the files; if something does, an entry is cut off or filled up with zeros to the size that it began with.
///
/// # Errors
/// The archive cannot be written. Whatever is wrong with a file is among the problems.
pub fn collect(
    directory: BorrowedFd<'_>,
    wanted: &[Vec<u8>],
    limits: Limits,
    id_base: u32,
    archive: &File,
) -> io::Result<Collected> {
    archive.set_len(0)?;
    let mut archive = archive;
    io::Seek::seek(&mut archive, io::SeekFrom::Start(0))?;
    let rules = Rules { leaves_out: false, refuses: &|_| None };
    let mut collector = Collector::new(Some(Builder::new(archive)), limits, id_base, rules);
    for path in outermost(wanted) {
        collector.wanted(directory, path)?;
    }
    let told = collector.finish()?;
    let bytes = archive.metadata()?.len();
    Ok(Collected { bytes, ..told })
}

/// Writes what has this name in a directory as an archive, as [`collect`] does; for an empty name, everything in it. Without
/// an `archive`, only looks how that would be. Whoever changes the files meanwhile has them changed in the archive too.
///
/// # Errors
/// The archive cannot be written.
pub(crate) fn pack<W: Write>(
    directory: BorrowedFd<'_>,
    name: &[u8],
    limits: Limits,
    id_base: u32,
    rules: Rules<'_>,
    archive: Option<W>,
) -> io::Result<Collected> {
    let mut collector = Collector::new(archive.map(Builder::new), limits, id_base, rules);
    collector.wanted(directory, name)?;
    collector.finish()
}

/// Without those that lie in others.
fn outermost(wanted: &[Vec<u8>]) -> Vec<&[u8]> {
    let all: BTreeSet<&[u8]> = wanted.iter().map(Vec::as_slice).collect();
    let is_below = |path: &[u8]| {
        let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        !path.is_empty() && above.chain([&b""[..]]).any(|above| all.contains(above))
    };
    all.iter().copied().filter(|path| !is_below(path)).collect()
}

struct Collector<'a, W: Write> {
    /// None that only looks.
    builder: Option<Builder<W>>,
    limits: Limits,
    id_base: u32,
    rules: Rules<'a>,
    told: Collected,
    /// Entries that were looked at.
    seen: u64,
    /// No further entry is looked at.
    is_full: bool,
}

impl<'a, W: Write> Collector<'a, W> {
    fn new(builder: Option<Builder<W>>, limits: Limits, id_base: u32, rules: Rules<'a>) -> Self {
        let told = Collected { bytes: TRAILER, ..Collected::default() };
        Self { builder, limits, id_base, rules, told, seen: 0, is_full: false }
    }

    fn finish(mut self) -> io::Result<Collected> {
        self.builder.as_mut().map_or(Ok(()), Builder::finish)?;
        Ok(self.told)
    }

    fn wanted(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        // What is only passed through need not be readable.
        let access = if path.is_empty() { OFlags::RDONLY } else { OFlags::PATH };
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = rustix::fs::openat2(directory, OsStr::from_bytes(above), flags, Mode::empty(), STRICT);
        let above = match above {
            Ok(above) => above,
            Err(errno) => {
                self.failed(path, errno);
                return Ok(());
            }
        };
        if path.is_empty() {
            return self.inside(above, path, 0);
        }
        let depth = path.iter().filter(|byte| **byte == b'/').count();
        match CString::new(name) {
            Ok(name) => self.entry(above.as_fd(), &name, path, depth),
            Err(_) => Ok(()),
        }
    }

    fn entry(&mut self, above: BorrowedFd<'_>, name: &CStr, path: &[u8], depth: usize) -> io::Result<()> {
        if self.is_full {
            return Ok(());
        }
        self.seen += 1;
        if self.seen > self.limits.entries {
            self.is_full = true;
            let most = self.limits.entries;
            self.problem(path, format!("is more than the {most} files that are collected; so may others be"));
            return Ok(());
        }
        if path.len() > MAX_PATH {
            self.problem(path, format!("has a path of more than {MAX_PATH} bytes"));
            return Ok(());
        }
        // Looked at first, without opening: to open a FIFO or a device has effects.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let looked = rustix::fs::openat(above, name, flags, Mode::empty());
        let (looked, stat) = match looked.and_then(|looked| rustix::fs::fstat(&looked).map(|stat| (looked, stat))) {
            Ok(looked) => looked,
            Err(errno) => {
                self.failed(path, errno);
                return Ok(());
            }
        };
        if let Some(problem) = (self.rules.refuses)(looked.as_fd()) {
            self.problem(path, problem);
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match reopen(&looked, OFlags::RDONLY) {
                Ok(file) => self.file(file, path, &stat),
                Err(errno) => {
                    self.failed(path, errno);
                    Ok(())
                }
            },
            FileType::Directory if depth >= MAX_DEPTH => {
                self.problem(path, format!("lies in more than {MAX_DEPTH} directories"));
                Ok(())
            }
            FileType::Directory => match reopen(&looked, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(directory) => {
                    if self.append(EntryType::Directory, path, &stat, &[], None)? {
                        self.inside(directory, path, depth + 1)?;
                    }
                    Ok(())
                }
                Err(errno) => {
                    self.failed(path, errno);
                    Ok(())
                }
            },
            FileType::Symlink => match rustix::fs::readlinkat(&looked, c"", Vec::new()) {
                Ok(target) => self.append(EntryType::Symlink, path, &stat, target.as_bytes(), None).map(drop),
                Err(errno) => {
                    self.failed(path, errno);
                    Ok(())
                }
            },
            _ if self.rules.leaves_out => {
                self.told.left_out += 1;
                Ok(())
            }
            other => {
                let what = match other {
                    FileType::Fifo => "a FIFO",
                    FileType::Socket => "a socket",
                    _ => "a device",
                };
                self.problem(path, format!("is {what}: files, directories and links are collected"));
                Ok(())
            }
        }
    }

    /// Everything in a directory, by name.
    fn inside(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        let names = match self.names(&directory) {
            Ok(names) => names,
            Err(errno) => {
                self.failed(path, errno);
                return Ok(());
            }
        };
        for name in names {
            let mut inner = path.to_vec();
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(name.to_bytes());
            self.entry(directory.as_fd(), &name, &inner, depth)?;
        }
        Ok(())
    }

    /// One more than there is room for, at most.
    fn names(&self, directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
        let room = self.limits.entries.saturating_sub(self.seen).saturating_add(1);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            if names.len() as u64 >= room {
                break;
            }
        }
        names.sort();
        Ok(names)
    }

    fn file(&mut self, file: OwnedFd, path: &[u8], stat: &Stat) -> io::Result<()> {
        let mut content = File::from(file);
        self.append(EntryType::Regular, path, stat, &[], Some(&mut content)).map(drop)
    }

    /// Adds an entry, if it fits; whether it did.
    fn append(
        &mut self,
        kind: EntryType,
        path: &[u8],
        stat: &Stat,
        target: &[u8],
        content: Option<&mut File>,
    ) -> io::Result<bool> {
        let size = if content.is_some() { stat.st_size.unsigned_abs() } else { 0 };
        let long = |name: &[u8]| if name.len() > SHORT_NAME { BLOCK + blocks(name.len() as u64 + 1) } else { 0 };
        let cost = BLOCK.saturating_add(blocks(size)) + long(path) + long(target);
        if self.told.bytes.saturating_add(cost) > self.limits.bytes {
            let most = self.limits.bytes;
            self.problem(path, format!("does not fit: {size} bytes, of {most} that are collected in all"));
            return Ok(false);
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(self.id(stat.st_uid));
        header.set_gid(self.id(stat.st_gid));
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        let name = Path::new(OsStr::from_bytes(path));
        if let Some(builder) = &mut self.builder {
            match content {
                // As long as it was when it was looked at, whatever is read.
                Some(content) => {
                    let exact = content.chain(io::repeat(0)).take(size);
                    builder.append_data(&mut header, name, exact)?;
                }
                None if kind == EntryType::Symlink => {
                    builder.append_link(&mut header, name, Path::new(OsStr::from_bytes(target)))?;
                }
                None => builder.append_data(&mut header, name, io::empty())?,
            }
        }
        self.told.bytes += cost;
        self.told.entries += 1;
        Ok(true)
    }

    fn id(&self, host: u32) -> u64 {
        host.checked_sub(self.id_base).map(u64::from).filter(|id| *id < 65_536).unwrap_or(NOBODY)
    }

    fn failed(&mut self, path: &[u8], errno: Errno) {
        let problem = match errno {
            Errno::NOENT | Errno::NOTDIR => "is not there".to_owned(),
            Errno::LOOP => "lies behind a link, which is not followed".to_owned(),
            // Somebody holds a lease on it (fcntl(2)), or it has changed.
            Errno::AGAIN => "is busy".to_owned(),
            errno => format!("cannot be read: {errno}"),
        };
        self.problem(path, problem);
    }

    fn problem(&mut self, path: &[u8], problem: String) {
        if self.told.problems.len() < MAX_PROBLEMS {
            let path = shown(path).chars().take(MAX_PATH).collect();
            self.told.problems.push(Problem { path, problem });
        } else {
            self.told.more_problems += 1;
        }
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
