//! Making files: beside what is there, and then in its place, so that nobody ever sees a part of one.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::at;
use super::look::FileKind;
use super::{FileError, FileLimits, Files, Info, Named, Why};

/// Permissions of a file that nobody says anything of.
const MODE: u32 = 0o644;

/// What is taken from the content at once, bytes.
const PIECE: usize = 64 << 10;

/// What has to be there for a request to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Anything, or nothing.
    #[default]
    None,
    /// Nothing.
    Absent,
    /// Something.
    Present,
    /// A file with one of these tags.
    Tagged(Vec<String>),
}

impl Condition {
    fn check(&self, found: Option<&Info>) -> Result<(), Why> {
        match (self, found) {
            (Self::None, _) | (Self::Absent, None) | (Self::Present, Some(_)) => Ok(()),
            (Self::Tagged(tags), Some(info)) if tags.contains(&info.tag) => Ok(()),
            _ => Err(Why::Changed),
        }
    }
}

/// A file that is to be made.
#[derive(Debug, Clone, Default)]
pub struct NewFile {
    /// Permissions; those of the file that is there, or 0644, when absent.
    pub mode: Option<u32>,
    /// When its content changed, seconds since 1970; now when absent.
    pub modified: Option<i64>,
    /// What has to be there.
    pub condition: Condition,
}

/// What a file is made of, until it has its name.
struct Unfinished<'a> {
    file: File,
    above: BorrowedFd<'a>,
    /// Its name meanwhile, where the file system has no files without names.
    name: Option<CString>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // It may be gone, and what is left is the user's to remove.
            let _ = rustix::fs::unlinkat(self.above, name, AtFlags::empty());
        }
    }
}

/// A name that nothing has.
pub(super) fn unused() -> CString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (now, count) = (crate::kernel::since_boot().as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = format!(".thawd-{}-{now}-{count}", std::process::id());
    // It has no zero.
    CString::new(name).unwrap_or_default()
}

impl<'a> Unfinished<'a> {
    fn new(above: BorrowedFd<'a>) -> Result<Self, Errno> {
        let mode = Mode::from_raw_mode(0o600);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(above, c".", flags | OFlags::TMPFILE, mode) {
            Ok(file) => return Ok(Self { file: file.into(), above, name: None }),
            // File systems that have none say so, and old overlays.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        let name = unused();
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(above, &name, flags, mode)?;
        Ok(Self { file: file.into(), above, name: Some(name) })
    }

    /// Gives it its name, where nothing may be unless it takes the place of something.
    fn finish(mut self, name: &CString, replaces: bool) -> Result<(), Errno> {
        let place = format!("/proc/thread-self/fd/{}", self.file.as_raw_fd());
        let link = |name: &CString| rustix::fs::linkat(CWD, &*place, self.above, name, AtFlags::SYMLINK_FOLLOW);
        if self.name.is_none() {
            if !replaces {
                return link(name);
            }
            let meanwhile = unused();
            link(&meanwhile)?;
            self.name = Some(meanwhile);
        }
        let Some(meanwhile) = &self.name else { return Ok(()) };
        let flags = if replaces { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(self.above, meanwhile, self.above, name, flags)?;
        self.name = None;
        Ok(())
    }
}

impl Files<'_> {
    /// Makes a file, or puts it in the place of one, with all that can be read of `content`. Returns what is known of it, and
    /// whether it is a new one.
    ///
    /// # Errors
    /// See [`Why`]; what was there is there as it was.
    pub fn create(
        &self,
        path: &[u8],
        new: &NewFile,
        limits: FileLimits,
        content: &mut dyn Read,
    ) -> Result<(Info, bool), FileError> {
        let path = &*self.through_links(path)?;
        let Named { above, name } = self.named(path)?;
        self.create_in(above.as_fd(), &name, path, new, limits.bytes, content)
    }

    /// The same in a directory that was found already; `path` is for errors.
    pub(super) fn create_in(
        &self,
        above: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        new: &NewFile,
        most: u64,
        content: &mut dyn Read,
    ) -> Result<(Info, bool), FileError> {
        self.permitted(above).map_err(at(path))?;
        // Looked at now, for whoever would send a lot in vain, and again in the end.
        let before = self.found(above, name, &new.condition).map_err(at(path))?;
        let mode = new.mode.or(before.map(|info| info.mode)).unwrap_or(MODE);
        let mut unfinished = Unfinished::new(above).map_err(at(path))?;
        copy(content, &mut unfinished.file, most).map_err(at(path))?;
        rustix::fs::fchmod(&unfinished.file, Mode::from_raw_mode(mode & 0o777)).map_err(at(path))?;
        if let Some(seconds) = new.modified {
            let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&unfinished.file, &times).map_err(at(path))?;
        }
        let _turn = self.place.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.found(above, name, &new.condition).map_err(at(path))?;
        let replaces = before.is_some() || new.condition != Condition::Absent;
        unfinished.finish(name, replaces).map_err(at(path))?;
        Ok((self.info(above, name).map_err(at(path))?, before.is_none()))
    }

    /// The file that is to make way, if there is one: a regular file or a link, and as the condition says.
    fn found(&self, above: BorrowedFd<'_>, name: &CString, condition: &Condition) -> Result<Option<Info>, Why> {
        let found = match self.info(above, name) {
            Ok(info) => Some(info),
            Err(Why::Missing) => None,
            Err(why) => return Err(why),
        };
        if let Some(Info { kind, .. }) = &found
            && !matches!(kind, FileKind::File | FileKind::Link)
        {
            return Err(Why::NotAFile(kind.words()));
        }
        condition.check(found.as_ref())?;
        // Permissions of a link say nothing.
        Ok(found.map(|info| if info.kind == FileKind::Link { Info { mode: MODE, ..info } } else { info }))
    }

    /// Makes a directory, and with `parents` what is missing above it. Returns what is known of it, and whether it is new.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn make_directory(&self, path: &[u8], mode: u32, parents: bool) -> Result<(Info, bool), FileError> {
        if parents {
            self.make_parents(path)?;
        }
        let Named { above, name } = self.named(path)?;
        self.permitted(above.as_fd()).map_err(at(path))?;
        let is_new = match mkdir(above.as_fd(), &name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) if parents => false,
            Err(errno) => return Err(FileError::new(path, errno)),
        };
        let info = self.info(above.as_fd(), &name).map_err(at(path))?;
        match info.kind {
            FileKind::Directory => Ok((info, is_new)),
            // A link to a directory is as good.
            FileKind::Link => self.directory(path).map(|_| (info, false)),
            _ => Err(FileError::new(path, Why::Exists)),
        }
    }

    /// Makes what is missing above a path.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn make_parents(&self, path: &[u8]) -> Result<(), FileError> {
        super::look::check(path)?;
        let (parents, _) = super::look::split(path);
        let ends = parents.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in ends.skip(1) {
            let part = &parents[..end];
            match self.directory(part) {
                Ok(_) => {}
                Err(FileError { why: Why::Missing, .. }) => {
                    let Named { above, name } = self.named(part)?;
                    match mkdir(above.as_fd(), &name, 0o755) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(FileError::new(part, errno)),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives something another path on the same file system. What is there makes way if it is to.
    ///
    /// # Errors
    /// See [`Why`].
    pub fn rename(&self, from: &[u8], to: &[u8], replaces: bool) -> Result<Info, FileError> {
        let old = self.named(from)?;
        let new = self.named(to)?;
        for (named, path) in [(&old, from), (&new, to)] {
            self.permitted(named.above.as_fd()).map_err(at(path))?;
        }
        // What is wrong with the one or the other.
        self.info(old.above.as_fd(), &old.name).map_err(at(from))?;
        let flags = if replaces { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let _turn = self.place.turn.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::renameat_with(&old.above, &old.name, &new.above, &new.name, flags).map_err(at(to))?;
        self.info(new.above.as_fd(), &new.name).map_err(at(to))
    }
}

/// Copies all of it, at most as much as may be.
fn copy(content: &mut dyn Read, file: &mut File, most: u64) -> Result<(), Why> {
    let mut piece = vec![0; PIECE];
    let mut copied = 0u64;
    loop {
        let read = match content.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Why::Io(error)),
        };
        copied += read as u64;
        if copied > most {
            return Err(Why::TooLarge(
                "goes beyond the bytes that one request may bring (`sandbox.file_bytes`)".to_owned(),
            ));
        }
        file.write_all(&piece[..read])?;
    }
}

/// Makes a directory with just these permissions, whatever mask the daemon has.
pub(super) fn mkdir(above: BorrowedFd<'_>, name: &CString, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode & 0o777);
    rustix::fs::mkdirat(above, name, mode)?;
    match step(above, name) {
        Ok(made) => rustix::fs::fchmod(&made, mode),
        // Not the owner's to read, or somebody has taken it away already.
        Err(_) => Ok(()),
    }
}

/// Opens a directory in a directory: no link, and on the same file system.
pub(super) fn step(above: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    super::look::patiently(|| rustix::fs::openat2(above, name, flags, Mode::empty(), resolve))
}
