//! Calls of the mount API (Linux 5.2 and 5.12) that act on descriptors only and walk no path.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// Sets attributes (`MOUNT_ATTR_*`) of a detached mount, and maps its owners through `user_namespace` if one is given
/// (mount_setattr(2)). The mount becomes private.
///
/// # Errors
/// EINVAL if the file system does not support mapping.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut request =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    if let Some(namespace) = user_namespace {
        request.attr_set |= libc::MOUNT_ATTR_IDMAP;
        request.userns_fd = namespace.as_raw_fd() as u64;
    }
    // SAFETY: the empty path with AT_EMPTY_PATH names the descriptor itself; the structure is of the given size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A detached bind mount of `path` (relative to `directory`), not recursive, never following a final symlink.
///
/// # Errors
/// Those of open_tree(2).
pub fn bind_detached(directory: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(directory, path, flags)?)
}

/// Attaches the detached `mount` onto the directory that `target` refers to, inside the mount namespace of the
/// process behind `pidfd`. No path is looked up, so nothing inside the container can redirect it, and it works
/// while the container is frozen.
///
/// Call on a thread that ends afterwards: the thread stays in that namespace.
///
/// # Errors
/// The process is gone, or the directory was removed.
pub fn attach_in_namespace(pidfd: BorrowedFd<'_>, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only UnshareFlags::FILES has a safety condition; a mount namespace can only be entered by a thread
    // that shares its root and working directory with no other.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::MOUNT)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount.as_fd(), c"", target.as_fd(), c"", flags)?)
}

/// Gives this process a mount namespace of its own: what is mounted outside goes on appearing in it, and nothing that it
/// mounts is seen outside. For a process with one thread.
///
/// # Errors
/// Those of unshare(2) and mount(2).
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: only UnshareFlags::FILES has a safety condition.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?)
}
