//! What a new layer has in it before a container is made of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::error::{DiskError, Result, failed};

/// Things of one name that are set aside.
const MOST_ASIDE: usize = 1000;

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

/// Makes sure that `name` below the directory `home` of a layer is a directory, since something is to be mounted on it. What its
/// user has put in its place is set aside.
///
/// # Errors
/// The layer cannot be read or written.
pub fn keep_directory(layer: BorrowedFd<'_>, home: &str, name: &str, owner: (u32, u32)) -> Result<()> {
    let parts =
        |path: &str| -> Vec<String> { path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect() };
    let mut within = open(layer, "upper").map_err(failed("open the layer's directory upper"))?;
    for part in parts(home) {
        within = open(within.as_fd(), &part).map_err(failed(format!("open {part} of {home}")))?;
    }
    for part in parts(name) {
        within = match open(within.as_fd(), &part) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                set_aside(within.as_fd(), &part).map_err(failed(format!("set {home}/{part} aside")))?;
                rustix::fs::mkdirat(&within, part.as_str(), Mode::from_raw_mode(0o700))
                    .map_err(failed(format!("create {home}/{part}")))?;
                let made = open(within.as_fd(), &part).map_err(failed(format!("open {home}/{part}")))?;
                change(made.as_fd(), 0o700, owner).map_err(failed(format!("give {home}/{part} its owner")))?;
                made
            }
            Err(errno) => return Err(failed(format!("open {home}/{part}"))(errno)),
        };
    }
    Ok(())
}

/// Moves what is called `name` to the first free name of `name.1`, `name.2` and so on.
fn set_aside(within: BorrowedFd<'_>, name: &str) -> std::result::Result<(), Errno> {
    for number in 1..=MOST_ASIDE {
        let aside = format!("{name}.{number}");
        match rustix::fs::renameat_with(within, name, within, aside, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_in_the_way_of_a_mount_is_set_aside() {
        let layer = tempfile::tempdir().unwrap();
        let home = layer.path().join("upper/home/u");
        fs::create_dir_all(&home).unwrap();
        let descriptor = fs::File::open(layer.path()).unwrap();
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let keep = || keep_directory(descriptor.as_fd(), "/home/u", ".x/y", own).unwrap();
        keep();
        assert!(home.join(".x/y").is_dir());
        fs::write(home.join(".x/y/kept"), "").unwrap();
        keep();
        assert!(home.join(".x/y/kept").exists(), "a directory stays as it is");
        fs::rename(home.join(".x"), home.join("moved")).unwrap();
        std::os::unix::fs::symlink("/etc", home.join(".x")).unwrap();
        fs::write(home.join(".x.1"), "taken").unwrap();
        keep();
        assert!(home.join(".x/y").is_dir() && !home.join(".x").is_symlink());
        assert_eq!(fs::read_link(home.join(".x.2")).unwrap(), std::path::Path::new("/etc"));
        assert_eq!(fs::read_to_string(home.join(".x.1")).unwrap(), "taken");
    }
}
