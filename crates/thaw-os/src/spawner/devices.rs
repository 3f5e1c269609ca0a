//! The `/dev` of a container: a file system of its own with device nodes of its own. Those of the host would be inodes
//! that everybody has: a lock on one holds up the host's root, and inotify shows who opens it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::mount::MountAttrFlags;

use super::error::{Result, failed};
use super::filesystem::{make_directory, new_mount};
use crate::kernel;

/// Devices that every container has: name, major, minor (Linux Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links beside them, and where they lead.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A detached, read-only mount for a container whose root is the host's user `id_base`. Made by the spawner, as root of the
/// host: nobody else can make a device node, or a file system on which one works.
pub fn devices(id_base: u32) -> Result<OwnedFd> {
    let owner = id_base.to_string();
    let dev = new_mount(
        "tmpfs",
        &[("mode", "0755"), ("uid", &owner), ("gid", &owner), ("size", "65536"), ("nr_inodes", "64")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let (user, group) = (Some(Uid::from_raw(id_base)), Some(Gid::from_raw(id_base)));
    for (name, major, minor) in DEVICES {
        let what = || format!("make /dev/{name} (it takes CAP_MKNOD, and the device controller's consent)");
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number)
            .map_err(failed(what()))?;
        // The umask has cut the mode.
        rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(0o666), AtFlags::empty()).map_err(failed(what()))?;
        rustix::fs::chownat(&dev, name, user, group, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(what()))?;
    }
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).map_err(failed(format!("create /dev/{name}")))?;
        rustix::fs::chownat(&dev, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(format!("own /dev/{name}")))?;
    }
    drop(make_directory(dev.as_fd(), "pts", 0o755, (id_base, id_base))?);
    drop(make_directory(dev.as_fd(), "shm", 0o1777, (id_base, id_base))?);
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    kernel::set_mount_attributes(dev.as_fd(), attributes, None).map_err(failed("make /dev read-only"))?;
    Ok(dev)
}
