//! Root file systems, made by the spawner as root of the host and handed to the container as detached mounts.
//!
//! A root is an overlay, also a read-only one: so each container has inodes of its own, and neither locks, leases nor
//! inotify reach from one container of an image to another. Owners are mapped below it, by the mounts of its layers:
//! an overlay itself cannot be mapped (EINVAL, Linux 6.18).

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::error::{Result, SetUpError, failed};
use super::parts::{CreateRequest, Root};
use super::protocol::Compromise;
use crate::kernel;

/// Attributes of each layer and volume.
const ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Said explicitly, since kernels are built with other defaults: nothing in a layer says where in another layer files are
/// to be found, so that whoever wrote it gets at nothing else.
const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")];

/// Makes roots and volumes.
#[derive(Debug, Default)]
pub struct Roots {
    /// Whether this kernel takes no detached mount as a layer (before 6.15), so that layers are attached for a moment.
    attaches: Cell<bool>,
    /// Whether the spawner has a mount namespace of its own, where that is done.
    apart: Cell<bool>,
}

/// The layers of an overlay, whose mounts are detached.
struct Layers {
    image: OwnedFd,
    below: Below,
}

/// What goes with the image.
enum Below {
    /// Nothing: an empty directory, since overlayfs wants two layers.
    Empty(OwnedFd),
    /// The layer that takes changes: its mount, and in it the directories for them and for work.
    Writable { layer: OwnedFd, upper: OwnedFd, work: OwnedFd },
}

impl Roots {
    /// The root of the container whose user namespace is that of process `pid`, as a detached mount. `layer` is where changes
    /// go if it is writable.
    pub fn make(&self, request: &CreateRequest, pid: i32, layer: Option<OwnedFd>) -> Result<(OwnedFd, Compromise)> {
        let root = &request.root;
        let name = root.image.display();
        let namespace = user_namespace(pid)?;
        if root.writable {
            let layer = layer.ok_or(SetUpError::Descriptors("the daemon"))?;
            let mount = self
                .writable(request, namespace.as_fd(), &layer)
                .map_err(failed(format!("put a writable layer over {name}")))?;
            return Ok((mount, Compromise::default()));
        }
        let (image, mapped) = read_only(&root.image, Some(namespace.as_fd()))?;
        let overlay = open_directory(&root.empty).map_err(io::Error::from).and_then(|empty| {
            let layers = Layers { image, below: Below::Empty(empty) };
            self.overlay(request, layers)
        });
        let (mount, shared_inodes) = match overlay {
            Ok(mount) => (mount, None),
            Err(error) => {
                // Once more: what was a layer may have been attached meanwhile.
                let (plain, _) = read_only(&root.image, mapped.then_some(namespace.as_fd()))?;
                (plain, Some(format!("no overlay over {name}: {error}")))
            }
        };
        Ok((mount, Compromise { unmapped: !mapped, shared_inodes }))
    }

    /// A volume of the container whose user namespace is that of process `pid`, as a detached mount.
    pub fn volume(&self, path: &Path, read_only: bool, pid: i32) -> Result<OwnedFd> {
        let namespace = user_namespace(pid)?;
        let mount = clone_tree(path)?;
        let access = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        kernel::set_mount_attributes(mount.as_fd(), ATTRIBUTES | access, Some(namespace.as_fd()))
            .map_err(failed(format!("map the owners of the volume {}", path.display())))?;
        Ok(mount)
    }

    fn writable(&self, request: &CreateRequest, namespace: BorrowedFd<'_>, directory: &OwnedFd) -> io::Result<OwnedFd> {
        let tree = clone_tree(&request.root.image).map_err(io::Error::other)?;
        kernel::set_mount_attributes(tree.as_fd(), ATTRIBUTES | libc::MOUNT_ATTR_RDONLY, Some(namespace))?;
        let layer = kernel::bind_detached(directory.as_fd(), c"")?;
        kernel::set_mount_attributes(layer.as_fd(), ATTRIBUTES, Some(namespace))?;
        let open = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&layer, name, flags, Mode::empty()).map_err(io::Error::from);
            opened.map_err(|error| io::Error::new(error.kind(), format!("open its directory {name}: {error}")))
        };
        let (upper, work) = (open("upper")?, open("work")?);
        let layers = Layers { image: tree, below: Below::Writable { layer, upper, work } };
        // Directories for work, and those that are copied up, are made by whoever mounts: root of the host is nobody in a
        // mapped layer, so that the kernel would silently mount it read-only.
        let base = request.users.id_base;
        let mount = kernel::with_file_ids(base, base, || self.overlay(request, layers))??;
        if rustix::fs::fstatvfs(&mount)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(io::Error::other("the kernel mounts it read-only: its file system cannot hold a layer"));
        }
        Ok(mount)
    }

    fn overlay(&self, request: &CreateRequest, layers: Layers) -> io::Result<OwnedFd> {
        if !self.attaches.get() {
            match layers.mount(&request.root) {
                // Layers are given by descriptor from 6.13 on (before, one of a path only is none), as detached mounts from
                // 6.15 on.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF)) => {}
                outcome => return outcome,
            }
        }
        if !self.apart.replace(true) {
            kernel::leave_mount_namespace()?;
        }
        let mount = layers.mount_attached(&request.root, &request.mount_point)?;
        // Only now: a layer that no kernel takes gives the same error, and is refused here too.
        self.attaches.set(true);
        Ok(mount)
    }
}

impl Layers {
    /// The overlay, of layers that are given by descriptor.
    fn mount(&self, root: &Root) -> io::Result<OwnedFd> {
        let context = context(root)?;
        let set = |key, fd: &OwnedFd| rustix::mount::fsconfig_set_fd(&context, key, fd);
        set("lowerdir+", &self.image)?;
        match &self.below {
            Below::Empty(empty) => set("lowerdir+", empty)?,
            Below::Writable { upper, work, .. } => {
                set("upperdir", upper)?;
                set("workdir", work)?;
            }
        }
        finish(&context, root)
    }

    /// The same for kernels that know layers by paths only, and only what is mounted somewhere: at `point`, in a mount
    /// namespace that nobody else is in. The overlay has private copies of what it needs.
    fn mount_attached(&self, root: &Root, point: &Path) -> io::Result<OwnedFd> {
        let mounts = match &self.below {
            Below::Empty(_) => vec![&self.image],
            Below::Writable { layer, .. } => vec![&self.image, layer],
        };
        let mut attached = Attached { point, count: 0 };
        for mount in mounts {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount, c"", CWD, point, flags)?;
            attached.count += 1;
        }
        let context = context(root)?;
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let set = |key, value: String| rustix::mount::fsconfig_set_string(&context, key, value);
        match &self.below {
            Below::Empty(empty) => set("lowerdir", format!("{}:{}", path(&self.image), path(empty)))?,
            Below::Writable { upper, work, .. } => {
                set("lowerdir", path(&self.image))?;
                set("upperdir", path(upper))?;
                set("workdir", path(work))?;
            }
        }
        finish(&context, root)
    }
}

/// Mounts on top of each other, taken away again in the end.
struct Attached<'a> {
    point: &'a Path,
    count: usize,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        for _ in 0..self.count {
            let _ = rustix::mount::unmount(self.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn context(root: &Root) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", root.name.as_str())?;
    for (key, value) in OPTIONS {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    Ok(context)
}

fn finish(context: &OwnedFd, root: &Root) -> io::Result<OwnedFd> {
    rustix::mount::fsconfig_create(context).map_err(|errno| explained(context, errno))?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, !root.writable);
    Ok(rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The error with what the kernel says about it: it can be read from the context, one message at a time.
fn explained(context: &OwnedFd, errno: Errno) -> io::Error {
    // Layers that this kernel does not take: the caller looks for the number.
    if errno == Errno::INVAL {
        return errno.into();
    }
    let mut message = [0; 512];
    match rustix::io::read(context, &mut message) {
        Ok(length) => io::Error::other(format!("{errno}: {}", String::from_utf8_lossy(&message[..length]).trim())),
        Err(_) => errno.into(),
    }
}

fn user_namespace(pid: i32) -> Result<File> {
    File::open(format!("/proc/{pid}/ns/user")).map_err(failed(format!("open the user namespace of {pid}")))
}

fn open_directory(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn clone_tree(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(CWD, path, flags).map_err(failed(format!("open {}", path.display())))
}

/// A detached, read-only mount of an image's files, with owners mapped where their file system can do that.
fn read_only(path: &Path, namespace: Option<BorrowedFd<'_>>) -> Result<(OwnedFd, bool)> {
    let attributes = ATTRIBUTES | libc::MOUNT_ATTR_RDONLY;
    if let Some(namespace) = namespace {
        let mount = clone_tree(path)?;
        match kernel::set_mount_attributes(mount.as_fd(), attributes, Some(namespace)) {
            Ok(()) => return Ok((mount, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(failed(format!("map the owners of {}", path.display()))(error)),
        }
    }
    let mount = clone_tree(path)?;
    kernel::set_mount_attributes(mount.as_fd(), attributes, None)
        .map_err(failed(format!("make {} read-only", path.display())))?;
    Ok((mount, false))
}
