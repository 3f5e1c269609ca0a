//! Archives (tar): of what has a path, and what is in one into a directory.

use std::ffi::{CString, OsStr};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::error::at;
use super::look::{FileKind, split};
use super::write::{mkdir, step};
use super::{Condition, FileError, FileLimits, Files, NewFile, Why};
use crate::workspace::{self, Collected, MAX_PATH, Rules, relative, reopen};

/// Something that is to be packed, looked at before.
#[derive(Debug)]
pub struct Packing {
    path: Vec<u8>,
    /// The directory that it is in.
    above: OwnedFd,
    /// Its name there; empty for the root, of which everything is packed.
    name: Vec<u8>,
    limits: workspace::Limits,
    /// FIFOs, sockets and devices, which are left out.
    left_out: u64,
}

impl Packing {
    /// How many FIFOs, sockets and devices are left out.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Files<'_> {
    /// Looks whether what has this path can be packed as a whole. A link is packed as a link.
    ///
    /// # Errors
    /// See [`Why`]; the first of what cannot be packed.
    pub fn scan(&self, path: &[u8], limits: FileLimits) -> Result<Packing, FileError> {
        self.look(path, false)?;
        let (above, name) = match split(path) {
            (_, b"") => (self.directory(path)?, Vec::new()),
            (above, name) => (self.directory(above)?, name.to_vec()),
        };
        let limits = workspace::Limits { bytes: limits.bytes, entries: limits.entries };
        let mut packing = Packing { path: path.to_vec(), above, name, limits, left_out: 0 };
        packing.left_out = self.collect(&packing, None::<io::Sink>)?.left_out;
        Ok(packing)
    }

    /// Writes the archive; the first part of each path in it is the name of what is packed.
    ///
    /// # Errors
    /// Something has changed so that it cannot be packed any more, or the archive cannot be written.
    pub fn pack(&self, packing: &Packing, archive: impl Write) -> Result<(), FileError> {
        self.collect(packing, Some(archive)).map(drop)
    }

    fn collect<W: Write>(&self, packing: &Packing, archive: Option<W>) -> Result<Collected, FileError> {
        let refuses = |looked: BorrowedFd<'_>| self.permitted(looked).err().map(|why| why.to_string());
        let rules = Rules { leaves_out: true, refuses: &refuses };
        let Packing { path, above, name, limits, .. } = packing;
        let collected = workspace::pack(above.as_fd(), name, *limits, self.place.id_base, rules, archive);
        let collected = collected.map_err(at(path))?;
        match collected.problems.first() {
            None => Ok(collected),
            Some(problem) => {
                let above = split(path).0;
                let which = [above, problem.path.as_bytes()].concat();
                Err(FileError::new(&which, Why::Unpackable(problem.problem.clone())))
            }
        }
    }

    /// Makes what is in an archive below a directory that is there. Files and links take the place of files and links;
    /// owners are not as the archive says. Returns how many entries it had.
    ///
    /// # Errors
    /// See [`Why`]; what stands before that in the archive was made.
    pub fn unpack(&self, path: &[u8], limits: FileLimits, archive: &mut dyn Read) -> Result<u64, FileError> {
        let looked = self.directory(path)?;
        let top = reopen(&looked, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at(path))?;
        let mut unpacking = Unpacking { files: self, top, path, limits, entries: 0, modes: Vec::new(), last: None };
        let unreadable = |error: io::Error| FileError::new(path, no_archive(&error));
        let mut archive = Archive::new(archive);
        for entry in archive.entries().map_err(unreadable)? {
            unpacking.entry(entry.map_err(unreadable)?)?;
        }
        unpacking.finish()
    }
}

fn no_archive(error: &io::Error) -> Why {
    Why::Invalid(format!("cannot be unpacked to: what was sent is no tar archive, or not a whole one: {error}"))
}

/// What is unpacked.
struct Unpacking<'a> {
    files: &'a Files<'a>,
    top: OwnedFd,
    path: &'a [u8],
    /// What is left.
    limits: FileLimits,
    entries: u64,
    /// Directories that were made, and their permissions, which they get when everything is in them.
    modes: Vec<(Vec<u8>, u32)>,
    /// The directory that the last entry was in.
    last: Option<(Vec<u8>, OwnedFd)>,
}

/// Gives as many bytes as it was said that there would be, or an error.
struct Whole<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within it"));
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl Unpacking<'_> {
    fn whole(&self, inner: &[u8]) -> Vec<u8> {
        [self.path, b"/", inner].concat()
    }

    fn entry(&mut self, mut entry: Entry<'_, &mut dyn Read>) -> Result<(), FileError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        self.entries += 1;
        let given = entry.path_bytes().into_owned();
        let whole = self.whole(&given);
        if self.entries > self.limits.entries {
            let why = format!("is more than the {} entries that an archive may have", self.limits.entries);
            return Err(FileError::new(&whole, Why::TooLarge(why + " (`sandbox.file_entries`)")));
        }
        let invalid = |why: &str| FileError::new(&whole, Why::Invalid(format!("in the archive {why}")));
        // Absolute paths lie below the directory, as with tar.
        let inner = relative(&given, "").map_err(invalid)?;
        let mode = entry.header().mode().map_err(|error| FileError::new(&whole, no_archive(&error)))? & 0o777;
        if inner.is_empty() {
            return match kind {
                // The directory itself stays as it is.
                EntryType::Directory => Ok(()),
                _ => Err(invalid("has no name")),
            };
        }
        let (above, name) = self.place(&inner)?;
        let above = above.as_fd();
        match kind {
            EntryType::Directory => {
                if make_directory(above, &name).map_err(behind_a_link(&whole))? {
                    self.modes.push((inner, mode));
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let modified = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok());
                let new = NewFile { mode: Some(mode), modified, condition: Condition::None };
                let size = entry.size();
                let mut content = Whole { content: &mut entry, left: size };
                let most = self.limits.bytes;
                self.files.create_in(above, &name, &whole, &new, most, &mut content)?;
                self.limits.bytes = most.saturating_sub(size);
                Ok(())
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return Err(invalid("is a link to nothing"));
                }
                let target = OsStr::from_bytes(&target);
                self.files
                    .replace(above, &name, |meanwhile| rustix::fs::symlinkat(target, above, meanwhile))
                    .map_err(at(&whole))
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = relative(&target, "").map_err(|why| invalid(&format!("has a target that {why}")))?;
                let (beside, its) = self.open(&target)?;
                self.files
                    .replace(above, &name, |meanwhile| {
                        rustix::fs::linkat(&beside, &its, above, meanwhile, rustix::fs::AtFlags::empty())
                    })
                    .map_err(at(&whole))
            }
            _ => Err(invalid("is no file, directory or link")),
        }
    }

    /// The directory of an entry, made as far as it is missing, and the entry's name.
    fn place(&mut self, inner: &[u8]) -> Result<(OwnedFd, CString), FileError> {
        let (above, _) = parts(inner);
        if self.last.as_ref().is_none_or(|(last, _)| last != above) {
            self.last = None;
        }
        let (opened, name) = match self.last.take() {
            Some((_, opened)) => (opened, name(inner)),
            None => self.open(inner)?,
        };
        let copy = opened.try_clone().map_err(at(inner))?;
        self.last = Some((above.to_vec(), copy));
        Ok((opened, name))
    }

    fn open(&self, inner: &[u8]) -> Result<(OwnedFd, CString), FileError> {
        let (above, _) = parts(inner);
        let whole = self.whole(above);
        let opened = workspace::parents(self.top.as_fd(), above).map_err(behind_a_link(&whole))?;
        self.files.permitted(opened.as_fd()).map_err(at(&whole))?;
        Ok((opened, name(inner)))
    }

    fn finish(self) -> Result<u64, FileError> {
        let mut modes = self.modes;
        // The innermost first: those above may not be passable afterwards.
        modes.sort_by(|one, other| other.0.cmp(&one.0));
        for (inner, mode) in modes {
            let set = || {
                let above = workspace::parents(self.top.as_fd(), parts(&inner).0)?;
                rustix::fs::fchmod(step(above.as_fd(), &name(&inner))?, Mode::from_raw_mode(mode))
            };
            set().map_err(at(&[self.path, b"/", &inner].concat()))?;
        }
        Ok(self.entries)
    }
}

/// Whether a directory was made, or was there.
fn make_directory(above: BorrowedFd<'_>, name: &CString) -> Result<bool, Errno> {
    // Passable for now, whatever it is to be in the end.
    match mkdir(above, name, 0o700) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => step(above, name).map(|_| false),
        Err(errno) => Err(errno),
    }
}

fn parts(inner: &[u8]) -> (&[u8], &[u8]) {
    match inner.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&inner[..at], &inner[at + 1..]),
        None => (b"", inner),
    }
}

/// The last part of a clean path, which has no zero.
fn name(inner: &[u8]) -> CString {
    CString::new(parts(inner).1).unwrap_or_default()
}

fn behind_a_link(path: &[u8]) -> impl FnOnce(Errno) -> FileError {
    move |errno| match errno {
        Errno::LOOP => {
            FileError::new(path, Why::Invalid("lies behind a link, which archives do not follow".to_owned()))
        }
        errno => FileError::new(path, errno),
    }
}

impl Files<'_> {
    /// Makes something under another name, and puts it in the place of a file or a link, if there is one.
    fn replace(
        &self,
        above: BorrowedFd<'_>,
        name: &CString,
        make: impl FnOnce(&CString) -> Result<(), Errno>,
    ) -> Result<(), Why> {
        match self.info(above, name) {
            Ok(info) if !matches!(info.kind, FileKind::File | FileKind::Link) => return Err(Why::Exists),
            Ok(_) | Err(Why::Missing) => {}
            Err(why) => return Err(why),
        }
        let meanwhile = super::write::unused();
        make(&meanwhile)?;
        rustix::fs::renameat(above, &meanwhile, above, name).map_err(|errno| {
            // What is left of it is the user's to remove.
            let _ = rustix::fs::unlinkat(above, &meanwhile, rustix::fs::AtFlags::empty());
            errno.into()
        })
    }
}
