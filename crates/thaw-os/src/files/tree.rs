//! Removing files and directories.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::error::at;
use super::look::FileKind;
use super::write::step;
use super::{Condition, FileError, FileLimits, Files, Named, Why};
use crate::workspace::MAX_DEPTH;

impl Files<'_> {
    /// Removes a file, a link, or a directory, which has to be empty unless everything in it is to go too. What lies on
    /// another file system stays.
    ///
    /// # Errors
    /// See [`Why`]; some of what is in a directory may be gone then.
    pub fn remove(
        &self,
        path: &[u8],
        recursive: bool,
        condition: &Condition,
        limits: FileLimits,
    ) -> Result<(), FileError> {
        let Named { above, name } = self.named(path)?;
        self.permitted(above.as_fd()).map_err(at(path))?;
        let info = self.info(above.as_fd(), &name).map_err(at(path))?;
        if let Condition::Tagged(tags) = condition
            && !tags.contains(&info.tag)
        {
            return Err(FileError::new(path, Why::Changed));
        }
        if info.kind != FileKind::Directory {
            return rustix::fs::unlinkat(&above, &name, AtFlags::empty()).map_err(at(path));
        }
        match rustix::fs::unlinkat(&above, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {}
            // A directory that something is mounted on is busy.
            removed => return removed.map_err(at(path)),
        }
        let mut left = limits.entries;
        self.empty(above.as_fd(), &name, path, &mut left, 0)?;
        rustix::fs::unlinkat(&above, &name, AtFlags::REMOVEDIR).map_err(at(path))
    }

    /// Removes everything in a directory.
    fn empty(
        &self,
        above: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        left: &mut u64,
        depth: usize,
    ) -> Result<(), FileError> {
        if depth >= MAX_DEPTH {
            let why = format!("lies in more than {MAX_DEPTH} directories; remove it with a command");
            return Err(FileError::new(path, Why::TooLarge(why)));
        }
        let directory = step(above, name).map_err(at(path))?;
        self.permitted(directory.as_fd()).map_err(at(path))?;
        // Again from the start while there is something: what is removed while a directory is read may hide the rest.
        while let names @ [_, ..] = &names(&directory, *left).map_err(at(path))?[..] {
            for name in names {
                let inner = [path, b"/", name.to_bytes()].concat();
                *left = left.checked_sub(1).ok_or_else(|| {
                    let why = "is more than may be removed at once (`sandbox.file_entries`); do it again for the rest";
                    FileError::new(&inner, Why::TooLarge(why.to_owned()))
                })?;
                match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR) => {
                        self.empty(directory.as_fd(), name, &inner, left, depth + 1)?;
                        rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR).map_err(at(&inner))?;
                    }
                    Err(errno) => return Err(FileError::new(&inner, errno)),
                }
            }
        }
        Ok(())
    }
}

/// Names in a directory: all of them, or one more than may be.
fn names(directory: &OwnedFd, left: u64) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() as u64 > left {
            break;
        }
    }
    Ok(names)
}
