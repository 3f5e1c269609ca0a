//! The spawner process: serves requests one after the other until the daemon closes the socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::confine::{self, Confinement};
use super::devices::devices;
use super::error::{Result, SetUpError, failed};
use super::filesystem::{self, Made};
use super::parts::CreateRequest;
use super::protocol::{ChildPart, ChildReply, Compromise, Create, Given, Go, MAX_MESSAGE, Part, Reply};
use super::root::Roots;
use super::view::View;
use crate::kernel::{self, Cloned};

/// Raised so that the kernel kills something in a container before the daemon (proc_pid_oom_score_adj(5)).
pub const OOM_SCORE_ADJ: i32 = 500;

/// Ids that each container has: 0 to 65,535, as user_namespaces(7) examples and subuid(5) have it. The last is thaw-init's.
pub const IDS_PER_CONTAINER: u32 = 65_536;

/// Serves the socket on standard input. Must be called before any thread exists.
///
/// # Errors
/// The socket or `init_program` is unusable; failures of single requests are answered, not returned.
pub fn serve(init_program: &Path) -> io::Result<()> {
    confine::forbid_core_dumps();
    confine::limit_shares().map_err(io::Error::other)?;
    let server = Server {
        init: seal(init_program)?,
        confinement: Confinement::new().map_err(io::Error::other)?,
        view: View::read(),
        roots: Roots::default(),
    };
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
        let outcome = server.create(&buffer[..received.length], received.fds);
        let (reply, fds) = match outcome {
            Ok(created) => created,
            Err(failed) => (Reply::Failed { message: failed.error.to_string() }, failed.pidfd.into_iter().collect()),
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
    error: SetUpError,
    pidfd: Option<OwnedFd>,
}

impl<E: Into<SetUpError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), pidfd: None }
    }
}

/// What all containers are made with.
struct Server {
    init: OwnedFd,
    confinement: Confinement,
    view: View,
    roots: Roots,
}

impl Server {
    fn create(&self, body: &[u8], fds: Vec<OwnedFd>) -> std::result::Result<(Reply, Vec<OwnedFd>), Failed> {
        let Create { request, given } = serde_json::from_slice(body).map_err(SetUpError::Message)?;
        let mut given: BTreeMap<Given, OwnedFd> = given.into_iter().zip(fds).collect();
        let (Some(control), Some(cgroup)) = (given.remove(&Given::Control), given.remove(&Given::Cgroup)) else {
            return Err(SetUpError::Descriptors("the daemon").into());
        };
        let layer = given.remove(&Given::Layer);
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed("create a socket pair"))?;

        let cloned = kernel::clone_container(cgroup.as_fd(), request.users.id_base);
        match cloned.map_err(|source| SetUpError::Shortage { step: "clone the container", source })? {
            Cloned::Child => {
                drop((ours, layer));
                let error = match self.child(&request, &control, theirs.as_fd()) {
                    Ok(never) => match never {},
                    Err(error) => error,
                };
                // If this cannot be said, the end of the socket says that something went wrong.
                let _ = say(theirs.as_fd(), &ChildReply::Failed(error.to_string()), &[]);
                std::process::exit(1)
            }
            Cloned::Parent { pid, pidfd } => {
                drop((theirs, control));
                match self.parent(&request, layer, pid, ours.as_fd()) {
                    Ok((compromise, from_child)) => {
                        let (mut parts, mut fds) = (vec![Part::Pidfd], vec![pidfd]);
                        for (part, fd) in from_child {
                            parts.push(part);
                            fds.push(fd);
                        }
                        Ok((Reply::Created { parts, pid, compromise }, fds))
                    }
                    Err(error) => {
                        // The child may be waiting for us, or half set up: it must not outlive the failure.
                        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                        Err(Failed { error, pidfd: Some(pidfd) })
                    }
                }
            }
        }
    }

    /// The spawner's side: gives the child its ids and what only root of the host can make, then waits for its exec.
    fn parent(
        &self,
        request: &CreateRequest,
        layer: Option<OwnedFd>,
        pid: i32,
        child: BorrowedFd<'_>,
    ) -> Result<(Compromise, Vec<(Part, OwnedFd)>)> {
        let id_base = request.users.id_base;
        let map = format!("0 {id_base} {IDS_PER_CONTAINER}");
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), &map).map_err(failed(format!("write {file} ({map})")))?;
        }
        // From here, with CAP_SYS_RESOURCE over the host: then a command may raise it, and never lower it below this.
        fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ.to_string())
            .map_err(failed("set oom_score_adj"))?;
        let (root, compromise) = self.roots.make(request, pid, layer)?;
        let mut made = vec![(ChildPart::Root, root), (ChildPart::Devices, devices(id_base)?)];
        for (path, read_only) in request.volumes() {
            made.push((ChildPart::Volume, self.roots.volume(path, read_only, pid)?));
        }
        for directory in &request.cgroups {
            made.push((ChildPart::Tasks, open_tasks(directory)?));
        }
        let go = Go { parts: made.iter().map(|(part, _)| *part).collect() };
        let body = serde_json::to_vec(&go)?;
        let fds: Vec<_> = made.iter().map(|(_, fd)| fd.as_fd()).collect();
        kernel::send(child, &[&body], &fds).map_err(failed("start the child"))?;
        drop(made);

        let mut buffer = [0; 4096];
        let (ready, fds) = receive_reply(child, &mut buffer)?;
        let parts = match ready {
            Some(ChildReply::Ready(parts)) => parts,
            Some(ChildReply::Failed(message)) => return Err(SetUpError::Child(message)),
            None => return Err(SetUpError::Ended("the container's first process")),
        };
        // Closed by the exec, or by a death that the daemon will see; anything said now is a failed exec.
        match receive_reply(child, &mut buffer)?.0 {
            None => Ok((compromise, parts.into_iter().zip(fds).collect())),
            Some(ChildReply::Failed(message)) => Err(SetUpError::Child(message)),
            Some(ChildReply::Ready(_)) => Err(SetUpError::ReadyTwice),
        }
    }

    /// The container's side, up to the exec of `thaw-init`.
    fn child(
        &self,
        request: &CreateRequest,
        control: &OwnedFd,
        parent: BorrowedFd<'_>,
    ) -> Result<std::convert::Infallible> {
        let (made, tasks) = receive_parts(parent)?;
        enter_cgroups(&tasks)?;
        // While this process still has the daemon's ids: root of the container may not search private directories.
        let mount_point = filesystem::open_mount_point(&request.mount_point)?;
        self.confinement.become_root()?;
        let mut own = vec![(Part::Proxy, self.confinement.listen(request.proxy_port)?)];
        let (parts, locks) = filesystem::set_up(request, &self.view, made, mount_point)?;
        own.extend(parts);
        rustix::system::sethostname(request.host_name.as_bytes()).map_err(failed("set the host name"))?;
        let (parts, fds): (Vec<_>, Vec<_>) = own.iter().map(|(part, fd)| (*part, fd.as_fd())).unzip();
        say(parent, &ChildReply::Ready(parts), &fds)?;
        self.confinement.execute(request, [control, &locks], self.init.as_fd())
    }
}

/// What the spawner has made for this child, and the files by which it enters v1 cgroups.
fn receive_parts(parent: BorrowedFd<'_>) -> Result<(Made, Vec<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let received = receive(parent, &mut buffer)?;
    if received.length == 0 {
        return Err(SetUpError::Ended("the spawner"));
    }
    let Go { parts } = serde_json::from_slice(&buffer[..received.length]).map_err(failed("understand the spawner"))?;
    let (mut root, mut devices, mut volumes, mut tasks) = (None, None, Vec::new(), Vec::new());
    for (part, fd) in parts.into_iter().zip(received.fds) {
        match part {
            ChildPart::Root => root = Some(fd),
            ChildPart::Devices => devices = Some(fd),
            ChildPart::Volume => volumes.push(fd),
            ChildPart::Tasks => tasks.push(fd),
        }
    }
    match (root, devices) {
        (Some(root), Some(devices)) => Ok((Made { root, devices, volumes }, tasks)),
        _ => Err(SetUpError::Descriptors("the spawner")),
    }
}

fn say(parent: BorrowedFd<'_>, reply: &ChildReply, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let body = serde_json::to_vec(reply)?;
    kernel::send(parent, &[&body], fds).map_err(failed("answer the spawner"))
}

/// Receives the child's next reply; `None` at the end of the socket.
fn receive_reply(child: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(Option<ChildReply>, Vec<OwnedFd>)> {
    let received = receive(child, buffer)?;
    if received.length == 0 {
        return Ok((None, Vec::new()));
    }
    let reply = serde_json::from_slice(&buffer[..received.length]);
    reply.map(|reply| (Some(reply), received.fds)).map_err(failed("understand the child"))
}

/// The file by which a thread enters a v1 cgroup.
fn open_tasks(directory: &Path) -> Result<OwnedFd> {
    let path = directory.join("tasks");
    rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed(format!("open {}", path.display())))
}

/// Enters v1 cgroups. A lone thread that moves itself (0) spares the kernel the lock against forks and exits, and with
/// it an RCU grace period of 7 to 10 ms in which every write to a cgroup file of the host waits, thawing included
/// (`cgroup_procs_write_start` in kernel/cgroup/cgroup.c, since Linux 5.5).
fn enter_cgroups(tasks: &[OwnedFd]) -> Result<()> {
    for file in tasks {
        rustix::io::write(file, b"0").map_err(failed("enter a cgroup"))?;
    }
    Ok(())
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<kernel::Received> {
    loop {
        match kernel::receive(socket, buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.map_err(failed("hear from the child")),
        }
    }
}
