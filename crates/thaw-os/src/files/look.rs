//! From a path to what it means, and what is known of that.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::at;
use super::{FileError, Files, Named, Why};
use crate::workspace::{MAX_NAME, MAX_PATH, reopen};

/// How every path is resolved: `/` and `..` end at the container's root, and links of the kernel's (`/proc/PID/root`) lead
/// nowhere.
pub(super) const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// How often a path is resolved again when what lies above it was moved meanwhile (EAGAIN, openat2(2)).
const ATTEMPTS: u32 = 100;

/// Links in a row that are followed, as the kernel does (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Id of an owner that does not exist in the container.
const NOBODY: u32 = 65_534;

/// File systems of the kernel's, whose files do something when they are opened, by their magic numbers (statfs(2)).
const OF_THE_KERNEL: [i64; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xcafe_4a11, // bpf
    0x6e73_6673, // nsfs
    0x4249_4e4d, // binfmt_misc
];

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device,
}

impl FileKind {
    pub(super) fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Link,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::Device,
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Link => "a link",
            Self::Fifo => "a FIFO",
            Self::Socket => "a socket",
            Self::Device => "a device",
        }
    }
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name in its directory; `/` for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Permissions.
    pub mode: u32,
    /// Owner and group, as they are inside.
    pub owner: (u32, u32),
    /// Size of a file's content, bytes.
    pub bytes: u64,
    /// When the content changed, milliseconds since 1970.
    pub modified_ms: u64,
    /// Where a link leads.
    pub target: Option<Vec<u8>>,
    /// Changes with the content, and with everything else that is known of it.
    pub tag: String,
}

/// Some of what is in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// By name.
    pub items: Vec<Info>,
    /// There is more behind the last of them.
    pub is_more: bool,
}

/// Does it again while somebody moves what is above the file.
pub(super) fn patiently<T>(call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

/// An absolute path that was given from outside.
pub(super) fn check(path: &[u8]) -> Result<(), FileError> {
    let problem = match path {
        [b'/', ..] if path.len() > MAX_PATH => "is longer than 4095 bytes",
        [b'/', ..] if path.contains(&0) => "contains a zero byte",
        [b'/', ..] if path.split(|byte| *byte == b'/').any(|name| name.len() > MAX_NAME) => {
            "has a name of more than 255 bytes"
        }
        [b'/', ..] => return Ok(()),
        _ => "does not begin with `/`",
    };
    Err(FileError::new(path, Why::Invalid(problem.to_owned())))
}

/// The directory that something is in, and its name there; the name is empty for what has none of its own.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) if !matches!(&path[at + 1..], b"." | b"..") => (&path[..=at], &path[at + 1..]),
        _ => (b"/", b""),
    }
}

impl Files<'_> {
    /// Looks at what has this path, without opening it. The last link is followed if it is to be.
    pub(super) fn look(&self, path: &[u8], follow: bool) -> Result<(OwnedFd, Stat), FileError> {
        check(path)?;
        let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = OFlags::PATH | OFlags::CLOEXEC | last;
        let looked =
            patiently(|| rustix::fs::openat2(&self.place.root, OsStr::from_bytes(path), flags, Mode::empty(), RESOLVE));
        let looked = looked.map_err(at(path))?;
        let stat = self.permitted(looked.as_fd()).map_err(at(path))?;
        Ok((looked, stat))
    }

    /// What is known of something, unless it is none of the container's own files.
    pub(super) fn permitted(&self, looked: BorrowedFd<'_>) -> Result<Stat, Why> {
        let stat = rustix::fs::fstat(looked)?;
        // Its type differs from one architecture to the next.
        #[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "see above")]
        let kind = rustix::fs::fstatfs(looked)?.f_type as i64;
        if self.place.hidden.contains(&stat.st_dev) || OF_THE_KERNEL.contains(&kind) {
            return Err(Why::Hidden);
        }
        Ok(stat)
    }

    /// The directory with this path.
    pub(super) fn directory(&self, path: &[u8]) -> Result<OwnedFd, FileError> {
        let (looked, stat) = self.look(path, true)?;
        if FileKind::of(&stat) == FileKind::Directory {
            return Ok(looked);
        }
        Err(FileError::new(path, Why::NotADirectory))
    }

    /// The name that a path means, in its directory, which is there.
    pub(super) fn named(&self, path: &[u8]) -> Result<Named, FileError> {
        check(path)?;
        let (above, name) = split(path);
        let no_name = || FileError::new(path, Why::Invalid("names nothing in a directory".to_owned()));
        if name.is_empty() {
            return Err(no_name());
        }
        Ok(Named { above: self.directory(above)?, name: CString::new(name).map_err(|_| no_name())? })
    }

    /// The path that a path means whose last part may be a link, also one to something that is not there yet.
    pub(super) fn through_links(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut path = path.to_vec();
        for _ in 0..MAX_LINKS {
            let (looked, stat) = match self.look(&path, false) {
                Ok(looked) => looked,
                Err(FileError { why: Why::Missing, .. }) => return Ok(path),
                Err(error) => return Err(error),
            };
            if FileKind::of(&stat) != FileKind::Link {
                return Ok(path);
            }
            let target = rustix::fs::readlinkat(&looked, c"", Vec::new()).map_err(at(&path))?;
            path = match target.as_bytes() {
                whole @ [b'/', ..] => whole.to_vec(),
                part => [split(&path).0, part].concat(),
            };
        }
        Err(FileError::new(&path, Errno::LOOP))
    }

    pub(super) fn info(&self, above: BorrowedFd<'_>, name: &CString) -> Result<Info, Why> {
        let stat = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = match FileKind::of(&stat) {
            FileKind::Link => Some(rustix::fs::readlinkat(above, name, Vec::new())?.into_bytes()),
            _ => None,
        };
        Ok(Info { target, ..self.describe(name.to_bytes(), &stat) })
    }

    pub(super) fn describe(&self, name: &[u8], stat: &Stat) -> Info {
        let id = |host: u32| host.checked_sub(self.place.id_base).filter(|id| *id < 65_536).unwrap_or(NOBODY);
        let kind = FileKind::of(stat);
        let whole_ms = u64::try_from(stat.st_mtime).unwrap_or(0).saturating_mul(1000);
        Info {
            name: name.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            owner: (id(stat.st_uid), id(stat.st_gid)),
            bytes: if kind == FileKind::File { stat.st_size.unsigned_abs() } else { 0 },
            modified_ms: whole_ms.saturating_add(stat.st_mtime_nsec / 1_000_000),
            target: None,
            tag: tag(stat),
        }
    }

    /// What is known of what has this path. Of a link, that is itself.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn stat(&self, path: &[u8]) -> Result<Info, FileError> {
        let (looked, stat) = self.look(path, false)?;
        let name = match split(path).1 {
            b"" => b"/",
            name => name,
        };
        let mut info = self.describe(name, &stat);
        if info.kind == FileKind::Link {
            info.target = Some(rustix::fs::readlinkat(&looked, c"", Vec::new()).map_err(at(path))?.into_bytes());
        }
        Ok(info)
    }

    /// At most `limit` of what is in a directory, by name, behind the name `after`.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn list(&self, path: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Listing, FileError> {
        let directory = self.directory(path)?;
        let opened = reopen(&directory, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at(path))?;
        // One more than asked for, so that it is known whether there is more; never all names of a large directory.
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&opened).map_err(at(path))? {
            let entry = entry.map_err(at(path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || after.is_some_and(|after| name.to_bytes() <= after) {
                continue;
            }
            if names.len() <= limit || names.last().is_some_and(|last: &CString| name < last.as_c_str()) {
                names.insert(name.to_owned());
            }
            if names.len() > limit.saturating_add(1) {
                names.pop_last();
            }
        }
        let is_more = names.len() > limit;
        // What was removed meanwhile is not there.
        let items = names.iter().take(limit).filter_map(|name| self.info(directory.as_fd(), name).ok()).collect();
        Ok(Listing { items, is_more })
    }

    /// Opens a regular file to read it.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn read(&self, path: &[u8]) -> Result<(File, Info), FileError> {
        let (looked, stat) = self.look(path, true)?;
        let info = self.describe(split(path).1, &stat);
        if info.kind != FileKind::File {
            return Err(FileError::new(path, Why::NotAFile(info.kind.words())));
        }
        Ok((reopen(&looked, OFlags::RDONLY).map_err(at(path))?.into(), info))
    }
}

fn tag(stat: &Stat) -> String {
    format!(
        "{:x}.{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec
    )
}
