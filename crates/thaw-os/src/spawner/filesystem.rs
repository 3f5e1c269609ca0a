//! File systems of a container: a read-only root, a bounded writable part, few devices, a trimmed `/proc`, no `/sys`.
//!
//! Every target is opened relative to the new root's descriptor with `openat2` (no symlink is followed, nothing
//! outside the root can be reached) and mounted by descriptor: an image with `/dev -> /etc` (CVE-2026-41579) or a
//! `/proc` that is a link gets an error instead of a mount somewhere else.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};

use super::error::{Result, SetUpError, failed};
use super::parts::{CreateRequest, Mount, Source, TextFile};
use super::protocol::Part;
use super::view::View;
use crate::kernel;

/// Parts of `/proc` that tell about the host or reach into it: hidden (the OCI runtime specification's defaults of
/// the common engines, and what the attack checklist adds), or make the whole host wait while they are read (locks).
pub const MASKED: [&str; 10] =
    ["acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "locks", "sched_debug", "scsi", "timer_list"];

/// Parts of `/proc` that stay readable but must not be written.
pub const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Settings of the container's own network, which has `lo` alone, and of its own user namespace, below `/proc/sys` (Linux
/// Documentation/networking/ip-sysctl.rst, and admin-guide/sysctl/user.rst).
pub const SETTINGS: [(&str, &[u8]); 7] = [
    // Every port is free to every user, and ping needs no privilege.
    ("net/ipv4/ip_unprivileged_port_start", b"0"),
    ("net/ipv4/ping_group_range", b"0 65535"),
    // Connections that nobody has accepted yet, and what they have received, are charged to nobody: few, and little.
    ("net/core/somaxconn", b"64"),
    ("net/ipv4/tcp_rmem", b"4096 65536 65536"),
    // For each user inside; all together have what the host allows one user.
    ("user/max_inotify_instances", b"128"),
    ("user/max_inotify_watches", b"65536"),
    ("user/max_user_namespaces", b"0"),
];

/// Most terminals.
pub const TERMINALS: &str = "48";
/// Root of the container, and its group.
const ROOT: (u32, u32) = (0, 0);

/// Opens the directory on which the new root is mounted, in this process's own mount namespace.
pub fn open_mount_point(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed(format!("open {}", path.display())))
}

/// What the spawner has made for a container, as detached mounts.
pub struct Made {
    /// Its root.
    pub root: OwnedFd,
    /// Its `/dev`.
    pub devices: OwnedFd,
    /// Its volumes, in the order of the request.
    pub volumes: Vec<OwnedFd>,
}

/// Mounts everything and makes `made.root` the root. Returns what the daemon works with, and the container's `/proc/locks`,
/// by which thaw-init counts.
pub fn set_up(
    request: &CreateRequest,
    view: &View,
    made: Made,
    mount_point: OwnedFd,
) -> Result<(Vec<(Part, OwnedFd)>, OwnedFd)> {
    let Made { root, devices, volumes } = made;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make mounts private"))?;
    attach(root.as_fd(), mount_point.as_fd(), "the root file system")?;
    drop(mount_point);

    attach(devices.as_fd(), target(root.as_fd(), "dev")?.as_fd(), "/dev")?;
    let terminals = terminals(devices.as_fd())?;
    let null = rustix::fs::openat(&devices, "null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the container's /dev/null"))?;
    let (proc, locks) = proc(root.as_fd(), devices.as_fd())?;
    generated(request, view, root.as_fd(), proc.as_fd())?;
    control_group(request, root.as_fd())?;
    let mut parts = vec![(Part::Terminals, terminals), (Part::Null, null)];
    parts.extend(mounts(request, root.as_fd(), volumes)?);

    rustix::process::fchdir(&root).map_err(failed("enter the new root"))?;
    // The old root ends up on top of the new one and is detached from there (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("detach the old root"))?;
    rustix::process::chdir("/").map_err(failed("enter /"))?;
    Ok((parts, locks))
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>, what: &str) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags).map_err(failed(format!("mount {what}")))
}

/// Opens a directory of the image as a mount target.
fn target(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
        .map_err(failed(format!("the image needs {path} as a plain directory")))
}

/// A new file system with the given options, detached.
pub fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(format!("open {kind}")))?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value).map_err(failed(format!("{kind} {key}={value}")))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(failed(format!("create {kind}")))?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(format!("mount {kind}")))
}

/// A detached bind mount of the container's own `/dev/null`, checked to be that device and nothing else (CVE-2025-31133).
fn null_device(devices: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mount = kernel::bind_detached(devices, c"null").map_err(failed("open the container's /dev/null"))?;
    let stat = rustix::fs::fstat(&mount).map_err(failed("stat /dev/null"))?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != rustix::fs::makedev(1, 3) {
        let what = "the container's /dev/null".to_owned();
        return Err(SetUpError::Unexpected { what, wanted: "the character device 1:3" });
    }
    // A device can be written to all the same.
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    kernel::set_mount_attributes(mount.as_fd(), attributes, None).map_err(failed("make /dev/null read-only"))?;
    Ok(mount)
}

/// `/proc`, and its file of locks, which is covered afterwards.
fn proc(root: BorrowedFd<'_>, devices: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    // Processes of other users are invisible: uid 1000 does not even see thaw-init (proc(5), hidepid).
    let proc = new_mount("proc", &[("hidepid", "invisible")], attributes)?;
    for (name, value) in SETTINGS {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&proc, format!("sys/{name}"), flags, Mode::empty()) {
            Ok(file) => write_all(&file, value).map_err(failed(format!("set {name}")))?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(format!("open {name}"))(errno)),
        }
    }
    attach(proc.as_fd(), target(root, "proc")?.as_fd(), "/proc")?;
    let locks = rustix::fs::openat(&proc, "locks", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open /proc/locks"))?;
    for name in MASKED {
        let Some(place) = existing(proc.as_fd(), name)? else { continue };
        let stat = rustix::fs::fstat(&place).map_err(failed(format!("stat /proc/{name}")))?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let read_only = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY;
            new_mount("tmpfs", &[("mode", "0555"), ("size", "4096"), ("nr_inodes", "1")], read_only)?
        } else {
            null_device(devices)?
        };
        attach(cover.as_fd(), place.as_fd(), &format!("over /proc/{name}"))?;
    }
    for name in READ_ONLY {
        let Some(place) = existing(proc.as_fd(), name)? else { continue };
        let copy = kernel::bind_detached(place.as_fd(), c"").map_err(failed(format!("copy /proc/{name}")))?;
        let attributes = attributes.bits() as u64 | libc::MOUNT_ATTR_RDONLY;
        kernel::set_mount_attributes(copy.as_fd(), attributes, None)
            .map_err(failed(format!("make /proc/{name} read-only")))?;
        attach(copy.as_fd(), place.as_fd(), &format!("over /proc/{name}"))?;
    }
    Ok((proc, locks))
}

/// Mounts files that thawd generates over those of the image and of `/proc`. They lie on a tmpfs of their own, which
/// the writable part covers afterwards.
fn generated(request: &CreateRequest, view: &View, root: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<()> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let files = new_mount("tmpfs", &[("mode", "0755"), ("size", "1m"), ("nr_inodes", "32")], attributes)?;
    attach(files.as_fd(), target(root, "tmp")?.as_fd(), "/tmp")?;
    let cover = |name: &str, content: &str, place: BorrowedFd<'_>, what: &str| -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&files, name, flags, Mode::from_raw_mode(0o444))
            .map_err(failed(format!("create {what}")))?;
        write_all(&file, content.as_bytes()).map_err(failed(format!("write {what}")))?;
        let name = CString::new(name).map_err(failed("name a file"))?;
        let mount = kernel::bind_detached(files.as_fd(), &name).map_err(failed(format!("bind {what}")))?;
        let attributes = attributes.bits() as u64 | libc::MOUNT_ATTR_RDONLY;
        kernel::set_mount_attributes(mount.as_fd(), attributes, None)
            .map_err(failed(format!("make {what} read-only")))?;
        attach(mount.as_fd(), place, what)
    };
    for (number, TextFile { path, content }) in request.files.iter().enumerate() {
        // An image whose directory or file is a link, or a device, has it its own way.
        let Some(place) = plain_file(root, path.trim_start_matches('/'))? else { continue };
        cover(&format!("file-{number}"), content, place.as_fd(), path)?;
    }
    for (name, content) in view.proc(request.machine.memory_bytes, request.machine.cpus as usize) {
        let Some(place) = existing(proc, name)? else { continue };
        cover(name, &content, place.as_fd(), &format!("/proc/{name}"))?;
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::write(file, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Opens a regular file of the image as a mount target; `None` if there is none.
fn plain_file(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(place) => {
            let stat = rustix::fs::fstat(&place).map_err(failed(format!("stat {path}")))?;
            Ok((FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(place))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(failed(format!("open {path}"))(errno)),
    }
}

/// Mounts the container's own control group read-only, if the image has a directory for it. In the cgroup namespace it is
/// the root, so nothing of others is visible. The JVM, Go, Rust and .NET read their limits there.
fn control_group(request: &CreateRequest, root: BorrowedFd<'_>) -> Result<()> {
    if !request.machine.sees_cgroup {
        return Ok(());
    }
    let Ok(sys) = target(root, "sys") else { return Ok(()) };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let plain = new_mount(
        "tmpfs",
        &[("mode", "0755"), ("size", "4096"), ("nr_inodes", "8")],
        attributes - MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let fs = make_directory(plain.as_fd(), "fs", 0o755, ROOT)?;
    let place = make_directory(fs.as_fd(), "cgroup", 0o755, ROOT)?;
    attach(plain.as_fd(), sys.as_fd(), "/sys")?;
    kernel::set_mount_attributes(plain.as_fd(), attributes.bits() as u64, None)
        .map_err(failed("make /sys read-only"))?;
    let own = new_mount("cgroup2", &[], attributes)?;
    attach(own.as_fd(), place.as_fd(), "/sys/fs/cgroup")
}

fn existing(proc: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    match rustix::fs::openat(proc, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed(format!("open /proc/{name}"))(errno)),
    }
}

/// The terminals of the container, below its `/dev`.
fn terminals(devices: BorrowedFd<'_>) -> Result<OwnedFd> {
    let terminals = new_mount(
        "devpts",
        &[("ptmxmode", "0666"), ("mode", "0620"), ("max", TERMINALS)],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    attach(terminals.as_fd(), target(devices, "pts")?.as_fd(), "/dev/pts")?;
    Ok(terminals)
}

/// A new directory with this owner and group, whatever the umask is.
pub fn make_directory(parent: BorrowedFd<'_>, name: &str, mode: u32, (user, group): (u32, u32)) -> Result<OwnedFd> {
    let what = || format!("create {name}");
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(failed(what()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed(what()))?;
    rustix::fs::chownat(&directory, c"", Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)
        .map_err(failed(what()))?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(failed(what()))?;
    Ok(directory)
}

/// Mounts what the request lists, in its order; `volumes` are those among it. Returns the directories that the daemon works
/// with.
fn mounts(request: &CreateRequest, root: BorrowedFd<'_>, volumes: Vec<OwnedFd>) -> Result<Vec<(Part, OwnedFd)>> {
    let (size, inodes) = (request.ephemeral.bytes.to_string(), request.ephemeral.inodes.to_string());
    // One file system for everything ephemeral, so that one limit bounds everything written.
    let scratch = new_mount(
        "tmpfs",
        &[("mode", "0755"), ("size", &size), ("nr_inodes", &inodes)],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    // A mount must be attached before parts of it can be bound elsewhere; the part for /tmp then covers it.
    attach(scratch.as_fd(), target(root, "tmp")?.as_fd(), "/tmp")?;
    let mut volumes = volumes.into_iter();
    let (mut parts, mut ephemeral) = (Vec::new(), Vec::<(&str, OwnedFd)>::new());
    for (number, Mount { at, source }) in request.mounts.iter().enumerate() {
        let relative = at.trim_start_matches('/');
        match source {
            Source::Ephemeral { mode, owner, collected } => {
                let place = target(root, relative)?;
                let name = format!("part-{number}");
                let directory = make_directory(scratch.as_fd(), &name, *mode, *owner)?;
                if *collected {
                    parts.push((Part::Workspace, directory));
                }
                let name = CString::new(name).map_err(failed("name a file"))?;
                let part = kernel::bind_detached(scratch.as_fd(), &name).map_err(failed(format!("bind {at}")))?;
                attach(part.as_fd(), place.as_fd(), at)?;
                ephemeral.push((relative, part));
            }
            Source::Credentials { owner, .. } => {
                let is_around = |(place, _): &(&str, OwnedFd)| {
                    relative.strip_prefix(*place).is_some_and(|rest| rest.starts_with('/'))
                };
                // In a root that keeps what is written to it, whoever prepared its layer has made the directory.
                let directory = match request.root.writable && !ephemeral.iter().any(is_around) {
                    true => target(root, relative)?,
                    false => credential_directory(relative, *owner, &ephemeral)?,
                };
                parts.push((Part::Credentials, directory));
            }
            Source::Volume { .. } => {
                let volume = volumes.next().ok_or(SetUpError::Descriptors("the spawner"))?;
                attach(volume.as_fd(), target(root, relative)?.as_fd(), at)?;
            }
        }
    }
    match ephemeral.iter().any(|(at, _)| *at == "tmp") {
        true => Ok(parts),
        false => Err(incomplete("a container", "an ephemeral /tmp")),
    }
}

fn incomplete(what: &str, missing: &'static str) -> SetUpError {
    SetUpError::Incomplete { what: what.to_owned(), missing }
}

/// Makes the directory that credentials are mounted on, in one of the ephemeral mounts.
fn credential_directory(at: &str, owner: (u32, u32), ephemeral: &[(&str, OwnedFd)]) -> Result<OwnedFd> {
    let below = |(place, mount)| Some((at.strip_prefix::<&str>(place)?.strip_prefix('/')?, mount));
    let (rest, mount) = ephemeral
        .iter()
        .filter_map(|(place, mount)| below((*place, mount)))
        .min_by_key(|(rest, _)| rest.len())
        .ok_or_else(|| incomplete(&format!("the credential directory /{at}"), "an ephemeral directory around it"))?;
    // The file system is new and nothing runs in it: each part is made, and none can be a link.
    let mut parent = None;
    for part in rest.split('/') {
        let within = parent.as_ref().unwrap_or(mount);
        parent = Some(make_directory(within.as_fd(), part, 0o700, owner)?);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent.as_ref().unwrap_or(mount), ".", flags, Mode::empty())
        .map_err(failed(format!("open the credential directory /{at}")))
}
