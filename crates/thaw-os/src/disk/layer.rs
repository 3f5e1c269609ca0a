//! What a new layer has in it before a container is made of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::error::{DiskError, Result, failed};

/// A directory of a root that is to be another one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Absolute path inside.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// Its owner and group, inside.
    pub owner: (u32, u32),
}

/// Prepares `upper` in the mounted file system `layer` for a root over `image`: its root directory is as that of the image,
/// and `directories`, which the image has, have their own owners.
///
/// # Errors
/// [`DiskError::NoDirectory`] if the image lacks one of them; others if the layer cannot be written.
pub fn prepare_layer(layer: BorrowedFd<'_>, image: &Path, directories: &[Directory]) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let image =
        rustix::fs::openat(CWD, image, flags, Mode::empty()).map_err(failed(format!("open {}", image.display())))?;
    let upper = open(layer, "upper").map_err(failed("open the layer's directory upper"))?;
    as_below(upper.as_fd(), image.as_fd(), "")?;
    for Directory { path, mode, owner } in directories {
        let (mut parent, mut below) = (None, String::new());
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !below.is_empty() {
                below.push('/');
            }
            below.push_str(part);
            let within = parent.as_ref().unwrap_or(&upper);
            parent = Some(directory(within.as_fd(), part, image.as_fd(), &below)?);
        }
        let Some(made) = parent else { continue };
        change(made.as_fd(), *mode, *owner).map_err(failed(format!("give {path} its owner")))?;
    }
    rustix::fs::syncfs(&upper).map_err(failed("sync the layer"))
}

fn open(within: BorrowedFd<'_>, name: &str) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(within, name, flags, Mode::empty())
}

/// Makes `name`, unless it is there, with the attributes of the image's directory `below`.
fn directory(within: BorrowedFd<'_>, name: &str, image: BorrowedFd<'_>, below: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(within, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => {
            let made = open(within, name).map_err(failed(format!("open /{below}")))?;
            as_below(made.as_fd(), image, below)?;
            Ok(made)
        }
        Err(Errno::EXIST) => open(within, name).map_err(failed(format!("open /{below}"))),
        Err(errno) => Err(failed(format!("create /{below}"))(errno)),
    }
}

/// Gives a directory of the layer the mode and the owner of the image's.
fn as_below(made: BorrowedFd<'_>, image: BorrowedFd<'_>, below: &str) -> Result<()> {
    let none = |_| DiskError::NoDirectory(below.to_owned());
    let there = if below.is_empty() {
        rustix::fs::fstat(image).map_err(none)?
    } else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let directory = rustix::fs::openat2(image, below, flags, Mode::empty(), resolve).map_err(none)?;
        rustix::fs::fstat(&directory).map_err(none)?
    };
    change(made, there.st_mode & 0o7777, (there.st_uid, there.st_gid)).map_err(failed(format!("copy what /{below} is")))
}

fn change(directory: BorrowedFd<'_>, mode: u32, (user, group): (u32, u32)) -> std::result::Result<(), Errno> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    rustix::fs::chownat(directory.as_fd(), c"", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    rustix::fs::fchmod(directory, Mode::from_raw_mode(mode))
}
