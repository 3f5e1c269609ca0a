//! The daemon's handle to the spawner process. One task owns the process, serves queued requests, and replaces a
//! spawner that died or hangs.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};

use super::parts::CreateRequest;
use super::protocol::{Compromise, Create, Given, MAX_MESSAGE, Part, Reply};
use crate::kernel::{self, Watched};

/// Extra time beyond the requester's before the spawner counts as hung.
const SLACK: Duration = Duration::from_secs(1);

/// Most creations that wait for the spawner.
const QUEUE: usize = 1024;

/// Longest creation, unless `container.create_timeout_seconds` is shorter. A creation takes milliseconds. A spawner
/// that needs longer hangs, and delays every request in the queue.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Delays after which the daemon looks for containers that a dead spawner left half made. Each ends when it notices
/// that the spawner is gone.
const ORPHANS: [Duration; 4] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10)];

/// A container whose `thaw-init` has been executed.
#[derive(Debug)]
pub struct Spawned {
    /// Process id of its PID 1, on the host.
    pub pid: i32,
    /// pidfd of its PID 1.
    pub pidfd: OwnedFd,
    /// Listening socket inside its network namespace.
    pub proxy: TcpListener,
    /// The container's devpts.
    pub terminals: OwnedFd,
    /// Its own `/dev/null`, opened for reading.
    pub null: OwnedFd,
    /// The directory that credentials are mounted on.
    pub credential_dir: Option<OwnedFd>,
    /// The directory at `/workspace`.
    pub workspace: Option<OwnedFd>,
    /// What its root lacks.
    pub compromise: Compromise,
}

/// What goes with a request.
#[derive(Debug)]
pub struct Descriptors {
    /// The container's end of its control socket.
    pub control: OwnedFd,
    /// Its cgroup directory (v2).
    pub cgroup: OwnedFd,
    /// The directory that the writable layer of its root lies in, with `upper` and `work`.
    pub layer: Option<OwnedFd>,
}

impl Descriptors {
    fn named(self) -> Vec<(Given, OwnedFd)> {
        let layer = self.layer.map(|layer| (Given::Layer, layer));
        [(Given::Control, self.control), (Given::Cgroup, self.cgroup)].into_iter().chain(layer).collect()
    }
}

/// Why no container was created.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// A step failed. The process, if any, was killed and must be reaped.
    #[error("the container could not be set up: {message}")]
    Failed {
        /// The step, and why it failed.
        message: String,
        /// The process to reap.
        pidfd: Option<OwnedFd>,
    },
    /// The spawner process failed; the next request starts a new one.
    #[error("the spawner process failed: {0}")]
    Process(#[source] io::Error),
    /// The daemon is shutting down.
    #[error("the spawner has been stopped")]
    Stopped,
}

struct Job {
    create: Create,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Result<Spawned, SpawnerError>>,
}

/// Handle to the spawner; cheap to clone. The process ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
}

impl Spawner {
    /// Starts the owner task. `program` is this program, `init` the `thaw-init` binary. A creation that takes longer
    /// than `patience` has no requester any more. `failures` counts processes that were replaced.
    pub fn start(program: PathBuf, init: PathBuf, patience: Duration, failures: Counter) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(own(program, init, (patience + SLACK).min(TIMEOUT), queue, failures));
        Self { jobs }
    }

    /// Creates a container.
    ///
    /// # Errors
    /// See [`SpawnerError`]; nothing but a process to reap is left behind.
    pub async fn create(&self, request: CreateRequest, descriptors: Descriptors) -> Result<Spawned, SpawnerError> {
        let (reply, answer) = oneshot::channel();
        let (given, fds) = descriptors.named().into_iter().unzip();
        let job = Job { create: Create { request, given }, fds, reply };
        self.jobs.send(job).await.map_err(|_| SpawnerError::Stopped)?;
        answer.await.map_err(|_| SpawnerError::Stopped)?
    }
}

struct Process {
    /// `None` once this is being dropped.
    child: Option<Child>,
    socket: Watched,
}

impl Process {
    fn start(program: &PathBuf, init: &PathBuf) -> io::Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(program)
            .arg("spawner")
            .arg("--init")
            .arg(init)
            .env_clear()
            .current_dir("/")
            // A group of its own: Ctrl-C in the daemon's terminal is not for the spawner, and the group identifies its
            // orphans.
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok(Self { child: Some(child), socket: Watched::new(ours, Interest::READABLE | Interest::WRITABLE)? })
    }

    fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Process group, which identifies the spawner's orphans.
    fn group(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    async fn create(&self, create: &Create, fds: &[OwnedFd]) -> io::Result<Result<Spawned, SpawnerError>> {
        let body = serde_json::to_vec(create).map_err(io::Error::other)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.socket.run(Interest::WRITABLE, |socket| kernel::send(socket, &[&body], &fds)).await?;
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = self.socket.run(Interest::READABLE, |socket| kernel::receive(socket, &mut buffer)).await?;
        if received.length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fds = received.fds.into_iter();
        match serde_json::from_slice(&buffer[..received.length]).map_err(io::Error::other)? {
            Reply::Failed { message } => Ok(Err(SpawnerError::Failed { message, pidfd: fds.next() })),
            Reply::Created { parts, pid, compromise } => {
                let mut named: BTreeMap<_, _> = parts.into_iter().zip(fds).collect();
                let mut take = |part| named.remove(&part);
                let (Some(pidfd), Some(proxy), Some(terminals), Some(null)) =
                    (take(Part::Pidfd), take(Part::Proxy), take(Part::Terminals), take(Part::Null))
                else {
                    return Err(io::Error::other("the spawner sent too few descriptors"));
                };
                let proxy = TcpListener::from(proxy);
                let (credential_dir, workspace) = (take(Part::Credentials), take(Part::Workspace));
                Ok(Ok(Spawned { pid, pidfd, proxy, terminals, null, credential_dir, workspace, compromise }))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The spawner ends by itself when its socket closes, unless it hangs. Dropping does not wait for that.
        if let Some(child) = self.child.take() {
            kernel::kill_and_reap(child);
        }
    }
}

/// Reaps containers that a dead spawner had cloned but not reported. They are children of this process, but nobody has
/// their pidfd. Other containers of the group may be reaped here too; their owners accept ECHILD.
async fn reap_orphans(group: u32) {
    let group = i32::try_from(group).ok().and_then(rustix::process::Pid::from_raw);
    for pause in ORPHANS {
        tokio::time::sleep(pause).await;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        while let Ok(Some(_)) = waitid(WaitId::Pgid(group), options) {}
    }
}

/// Kills and reaps a container whose requester has gone.
async fn reap_unwanted(pidfd: OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let reaped = async {
        Watched::new(pidfd, Interest::READABLE)?
            .run(Interest::READABLE, |fd| {
                match waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                    Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                    Ok(Some(_)) | Err(rustix::io::Errno::CHILD) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            })
            .await
    };
    if let Err::<(), io::Error>(error) = reaped.await {
        tracing::error!(%error, "could not reap a container that nobody waits for");
    }
}

/// Returns when the idle spawner closes its socket, which happens only when it dies. Never returns without a spawner.
async fn ended(process: Option<&Process>) {
    match process {
        Some(process) => {
            let mut buffer = [0; 1];
            // An idle spawner sends nothing. Whatever arrives, the process is no longer usable.
            let _ = process.socket.run(Interest::READABLE, |socket| kernel::receive(socket, &mut buffer)).await;
        }
        None => std::future::pending().await,
    }
}

async fn own(program: PathBuf, init: PathBuf, patience: Duration, mut queue: mpsc::Receiver<Job>, failures: Counter) {
    let mut process: Option<Process> = None;
    loop {
        let job = tokio::select! {
            job = queue.recv() => match job {
                Some(job) => job,
                None => return,
            },
            () = ended(process.as_ref()) => {
                tracing::warn!("the spawner process ended; the next creation starts another");
                failures.inc();
                process = None;
                continue;
            }
        };
        // The requester gave up while others were served: nobody would take the container.
        if job.reply.is_closed() {
            continue;
        }
        // A spawner that has just died is replaced before the request is sent.
        let current = match process.take_if(Process::is_alive) {
            Some(current) => Ok(current),
            None => {
                process = None;
                Process::start(&program, &init)
            }
        };
        let outcome = match current {
            Err(error) => Err(SpawnerError::Process(error)),
            Ok(current) => match tokio::time::timeout(patience, current.create(&job.create, &job.fds)).await {
                Ok(Ok(outcome)) => {
                    process = Some(current);
                    outcome
                }
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => error,
                        _ => io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", patience.as_secs())),
                    };
                    tracing::error!(%error, "the spawner process failed and will be replaced");
                    failures.inc();
                    let group = current.group();
                    drop(current);
                    tokio::spawn(reap_orphans(group));
                    Err(SpawnerError::Process(error))
                }
            },
        };
        // The requester gave up and closed the container's control socket: the container ends, and is reaped here.
        if let Err(Ok(Spawned { pidfd, .. }) | Err(SpawnerError::Failed { pidfd: Some(pidfd), .. })) =
            job.reply.send(outcome)
        {
            tokio::spawn(reap_unwanted(pidfd));
        }
    }
}
