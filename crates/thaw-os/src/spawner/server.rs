//! The spawner process: takes requests one after the other until the daemon closes the socket.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::confine::{self, Confinement};
use super::filesystem;
use super::protocol::{ChildReply, CreateRequest, MAX_MESSAGE, Part, Reply};
use super::shortage;
use super::view::View;
use crate::kernel::{self, Cloned};

/// Attributes of each root file system.
const ROOT_ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Raised so that the kernel kills something in a container before the daemon (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: &str = "500";

/// Ids that each container has: 0 to 65,535, as user_namespaces(7) examples and subuid(5) have it. The last is thaw-init's.
pub const IDS_PER_CONTAINER: u32 = 65_536;

/// Serves the socket on standard input. Must be called before any thread exists.
///
/// # Errors
/// The socket or `init_program` is unusable; failures of single requests are answered, not returned.
pub fn serve(init_program: &Path) -> io::Result<()> {
    confine::forbid_core_dumps();
    confine::limit_shares().map_err(io::Error::other)?;
    let init = seal(init_program)?;
    let confinement = Confinement::new().map_err(io::Error::other)?;
    let view = View::read();
    let socket = rustix::stdio::stdin();
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let received = match kernel::receive(socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        if received.length == 0 {
            return Ok(());
        }
        let outcome = create(&buffer[..received.length], received.fds, init.as_fd(), &confinement, &view);
        let (reply, fds) = match outcome {
            Ok(created) => created,
            Err(failed) => (Reply::Failed { message: failed.message }, failed.pidfd.into_iter().collect()),
        };
        let body = serde_json::to_vec(&reply).map_err(io::Error::other)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        kernel::send(socket, &[&body], &fds)?;
    }
}

/// Copies the program into a sealed memory file. Whatever happens to the file on disk, and whatever a container does,
/// these bytes stay as they are (CVE-2019-5736). All containers share its pages.
fn seal(program: &Path) -> io::Result<OwnedFd> {
    let content = fs::read(program)
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", program.display())))?;
    // MFD_EXEC (Linux 6.3) is unknown to older kernels, where every memory file is executable.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("thaw-init", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("thaw-init", flags))?;
    let mut file = fs::File::from(file);
    file.write_all(&content)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    // A file that is open for writing cannot be executed (ETXTBSY): keep a read-only descriptor instead.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

struct Failed {
    message: String,
    pidfd: Option<OwnedFd>,
}

impl Failed {
    fn new(what: &str, error: impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {error}"), pidfd: None }
    }
}

fn create(
    body: &[u8],
    fds: Vec<OwnedFd>,
    init: BorrowedFd<'_>,
    confinement: &Confinement,
    view: &View,
) -> Result<(Reply, Vec<OwnedFd>), Failed> {
    let request: CreateRequest =
        serde_json::from_slice(body).map_err(|error| Failed::new("understand the request", error))?;
    let [control, cgroup]: [OwnedFd; 2] =
        fds.try_into().map_err(|fds: Vec<_>| Failed::new("expected 2 descriptors, got", fds.len()))?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Failed::new("create a socket pair", errno))?;

    let cloned = kernel::clone_container(cgroup.as_fd(), request.id_base);
    match cloned.map_err(|error| Failed::new("clone the container", shortage::told(&error)))? {
        Cloned::Child => {
            drop(ours);
            let message = match child(&request, &control, init, (confinement, view), theirs.as_fd()) {
                Ok(never) => match never {},
                Err(message) => message,
            };
            // If this cannot be said, the end of the socket says that something went wrong.
            let _ = say(theirs.as_fd(), &ChildReply::Failed(message), &[]);
            std::process::exit(1)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((theirs, control));
            match parent(&request, pid, ours.as_fd()) {
                Ok((mapped, from_child)) => {
                    let (mut parts, mut fds) = (vec![Part::Pidfd], vec![pidfd]);
                    for (part, fd) in from_child {
                        parts.push(part);
                        fds.push(fd);
                    }
                    Ok((Reply::Created { parts, pid, mapped }, fds))
                }
                Err(message) => {
                    // The child may be waiting for us, or half set up: it must not outlive the failure.
                    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                    Err(Failed { message, pidfd: Some(pidfd) })
                }
            }
        }
    }
}

/// The spawner's side: gives the child its ids, its remaining cgroups and its root, then waits for its exec.
fn parent(request: &CreateRequest, pid: i32, child: BorrowedFd<'_>) -> Result<(bool, Vec<(Part, OwnedFd)>), String> {
    let map = format!("0 {} {IDS_PER_CONTAINER}", request.id_base);
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map).map_err(|error| format!("write {file} ({map}): {error}"))?;
    }
    // From here, with CAP_SYS_RESOURCE over the host: then a command may raise it, and never lower it below this.
    fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ)
        .map_err(|error| format!("set oom_score_adj: {error}"))?;
    let (root, mapped) = root_mount(request, pid)?;
    let mut fds = vec![root];
    for directory in &request.cgroups {
        fds.push(open_tasks(directory)?);
    }
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    kernel::send(child, &[b"go"], &borrowed).map_err(|error| format!("start the child: {error}"))?;
    drop(fds);

    let mut buffer = [0; 4096];
    let (ready, fds) = receive_reply(child, &mut buffer)?;
    let parts = match ready {
        Some(ChildReply::Ready(parts)) => parts,
        Some(ChildReply::Failed(message)) => return Err(message),
        None => return Err("the container's first process ended before it was set up".to_owned()),
    };
    // Closed by the exec, or by a death that the daemon will see; anything said now is a failed exec.
    match receive_reply(child, &mut buffer)?.0 {
        None => Ok((mapped, parts.into_iter().zip(fds).collect())),
        Some(ChildReply::Failed(message)) => Err(message),
        Some(ChildReply::Ready(_)) => Err("the child was ready twice".to_owned()),
    }
}

fn say(parent: BorrowedFd<'_>, reply: &ChildReply, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
    let body = serde_json::to_vec(reply).map_err(|error| error.to_string())?;
    kernel::send(parent, &[&body], fds).map_err(|error| format!("answer the spawner: {error}"))
}

/// Receives the child's next reply; `None` at the end of the socket.
fn receive_reply(child: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(Option<ChildReply>, Vec<OwnedFd>), String> {
    let received = receive(child, buffer)?;
    if received.length == 0 {
        return Ok((None, Vec::new()));
    }
    let reply = serde_json::from_slice(&buffer[..received.length]);
    reply.map(|reply| (Some(reply), received.fds)).map_err(|error| format!("understand the child: {error}"))
}

/// The file by which a thread enters a v1 cgroup.
fn open_tasks(directory: &Path) -> Result<OwnedFd, String> {
    let path = directory.join("tasks");
    rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("open {}: {errno}", path.display()))
}

/// Enters v1 cgroups. A lone thread that moves itself (0) spares the kernel the lock against forks and exits, and with
/// it an RCU grace period of 7 to 10 ms in which every write to a cgroup file of the host waits, thawing included
/// (`cgroup_procs_write_start` in kernel/cgroup/cgroup.c, since Linux 5.5).
fn enter_cgroups(tasks: &[OwnedFd]) -> Result<(), String> {
    for file in tasks {
        rustix::io::write(file, b"0").map_err(|errno| format!("enter a cgroup: {errno}"))?;
    }
    Ok(())
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<kernel::Received, String> {
    loop {
        match kernel::receive(socket, buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.map_err(|error| format!("hear from the child: {error}")),
        }
    }
}

/// A detached, read-only mount of the image's root, with owners mapped where its file system can do that.
fn root_mount(request: &CreateRequest, pid: i32) -> Result<(OwnedFd, bool), String> {
    let name = request.rootfs.display();
    let open = || {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        rustix::mount::open_tree(rustix::fs::CWD, &request.rootfs, flags)
            .map_err(|errno| format!("open the root file system {name}: {errno}"))
    };
    let root = open()?;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user"))
        .map_err(|error| format!("open the user namespace of {pid}: {error}"))?;
    match kernel::set_mount_attributes(root.as_fd(), ROOT_ATTRIBUTES, Some(namespace.as_fd())) {
        Ok(()) => return Ok((root, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(format!("map the owners of {name}: {error}")),
    }
    let root = open()?;
    kernel::set_mount_attributes(root.as_fd(), ROOT_ATTRIBUTES, None)
        .map_err(|error| format!("make {name} read-only: {error}"))?;
    Ok((root, false))
}

/// The container's side, up to the exec of `thaw-init`.
fn child(
    request: &CreateRequest,
    control: &OwnedFd,
    init: BorrowedFd<'_>,
    (confinement, view): (&Confinement, &View),
    parent: BorrowedFd<'_>,
) -> Result<std::convert::Infallible, String> {
    let mut buffer = [0; 16];
    let go = receive(parent, &mut buffer)?;
    let mut fds = go.fds;
    if fds.len() != 1 + request.cgroups.len() {
        return Err("the spawner gave up".to_owned());
    }
    enter_cgroups(&fds.split_off(1))?;
    let [root]: [OwnedFd; 1] = fds.try_into().map_err(|_| "the spawner gave up".to_owned())?;
    // While this process still has the daemon's ids: root of the container may not search private directories.
    let mount_point = filesystem::open_mount_point(&request.mount_point)?;
    confinement.become_root()?;
    let mut made = vec![(Part::Proxy, confinement.listen(request.proxy_port)?)];
    let (parts, locks) = filesystem::set_up(request, view, &root, mount_point)?;
    made.extend(parts);
    rustix::system::sethostname(request.id.as_bytes()).map_err(|errno| format!("set the host name: {errno}"))?;
    let (parts, fds): (Vec<_>, Vec<_>) = made.iter().map(|(part, fd)| (*part, fd.as_fd())).unzip();
    say(parent, &ChildReply::Ready(parts), &fds)?;
    confinement.execute(request, [control, &locks], init)
}
