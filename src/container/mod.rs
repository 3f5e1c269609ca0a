//! One container: created, rested (frozen), claimed, given credentials and a command, destroyed.
//!
//! ```text
//! create ──► ready ──► rest ──► warm (frozen) ──► wake ──► claimed ──► drop ──► destroyed
//!                └──────────────── cold claim ─────────────────┘
//! ```
//!
//! A [`Container`] has one owner at a time: the pool while it is warm, then the execution that claimed it. Dropping
//! it, in whatever state, destroys it: the reaper ([`reaper`]) kills its cgroup, waits until the kernel says that
//! nobody is left, reaps PID 1, removes the cgroup and gives its ids and its place under the limit back; all but the kill
//! makes way for claims ([`gate`]).

mod cli;
mod containers;
mod control;
mod credentials;
mod gate;
mod pool_memory;
mod reaper;
mod survive;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::egress;
use crate::steps;
use thaw_os::cgroup::{CgroupError, Hierarchy, Limits, Reclaim, Usage};
use thaw_os::spawner::SpawnerError;
use thaw_wire::{Report, op, stage};

pub use cli::{Cli, PIPE_BYTES, Prestarted, output_pipe};
pub use containers::{Containers, Limit, Place, Settings};
use control::Control;
pub use control::{Command, CommandError, Encoded, MAX_ARGUMENT};
pub use credentials::CredentialError;
pub use gate::{ClaimGuard, Creating, Gate, GateSettings};
pub use pool_memory::PoolKey;
use reaper::Remains;
pub use survive::{Orphan, fingerprint};

/// State as shown by the API.
pub use containers::State;

/// What every container of a provider is made from.
#[derive(Debug, Clone)]
pub struct Template {
    /// Provider name.
    pub provider: String,
    /// Unpacked root file system.
    pub rootfs: PathBuf,
    /// Home directory inside, which becomes writable.
    pub home: Option<String>,
    /// User id inside.
    pub user: u32,
    /// Group id inside.
    pub group: u32,
    /// Credential directory below home, and the size of its tmpfs in bytes.
    pub credentials: Option<(String, u64)>,
    /// Limits while pooled.
    pub idle: Limits,
    /// Limits while serving.
    pub run: Limits,
    /// Most processes and threads.
    pub pids: u32,
    /// Where it may connect to.
    pub egress: Arc<egress::Policy>,
    /// What is started in it before it is claimed.
    pub prestarted: Option<Arc<Prestarted>>,
    /// What is taken from it when it has come to rest.
    pub reclaim: Reclaim,
}

/// Why a container could not be created or used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The spawner.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    /// The egress proxy.
    #[error(transparent)]
    Egress(#[from] egress::EgressError),
    /// Credential files.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The control socket.
    #[error("talk to thaw-init: {0}")]
    Control(#[source] io::Error),
    /// `thaw-init` did not say hello.
    #[error("thaw-init was not ready within {0} s")]
    Timeout(u64),
    /// It was not created in time.
    #[error("the container was not created within {0} s (`container.create_timeout_seconds`)")]
    CreateTimeout(u64),
    /// `thaw-init` ended or answered nonsense.
    #[error("thaw-init broke: {0}")]
    Init(String),
    /// The CLI that was to wait in it did not get that far.
    #[error("the CLI could not be prestarted: {0}")]
    Prestart(String),
    /// The command could not be started.
    #[error("{}", start_error(*stage, *errno))]
    Start {
        /// One of [`thaw_wire::stage`].
        stage: u32,
        /// Error number.
        errno: i32,
    },
}

fn start_error(failed: u32, errno: i32) -> String {
    let cause = io::Error::from_raw_os_error(errno);
    match failed {
        stage::EXEC => format!("cannot execute the command: {cause}"),
        stage::CHDIR => format!("cannot enter the working directory: {cause}"),
        stage::CLONE => format!("cannot start a process (is the pids limit too low?): {cause}"),
        _ => format!("cannot start the command (step {failed}): {cause}"),
    }
}

impl ContainerError {
    /// Exit code in the habit of shells and container engines: 127 not found, 126 not executable.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Start { stage: stage::EXEC, errno } if *errno == libc::ENOENT => Some(127),
            // A working directory that the image does not have is the request's mistake too: no other try would do.
            Self::Start { stage: stage::EXEC | stage::CHDIR, .. } => Some(126),
            _ => None,
        }
    }

    /// For metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::Spawner(_) => "spawner",
            Self::Egress(_) => "egress",
            Self::Credentials(_) => "credentials",
            Self::Control(_) => "control",
            Self::Timeout(_) | Self::CreateTimeout(_) => "timeout",
            Self::Init(_) => "init",
            Self::Prestart(_) => "prestart",
            Self::Start { .. } => "start",
        }
    }

    /// Whether the container itself is at fault, so that another one may do.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Control(_) | Self::Init(_) | Self::Credentials(CredentialError::Io { .. }))
    }
}

/// A running or frozen container. Dropping it destroys it.
#[derive(Debug)]
pub struct Container {
    control: Control,
    /// The tmpfs on its credential directory. Kept so that what the command refreshed can be read back and revoked.
    credentials: Option<OwnedFd>,
    /// The socket of its way out, for the next daemon; the proxy has its own.
    listener: Option<OwnedFd>,
    /// What it was made from.
    fingerprint: String,
    /// Host id of the user inside.
    owner: u32,
    template: Arc<Template>,
    next_tag: u32,
    cli: Option<Cli>,
    resting: bool,
    baseline: Usage,
    // Last: dropped after everything that refers to the container.
    remains: Remains,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        self.remains.id()
    }

    /// What it was made from.
    pub fn template(&self) -> &Template {
        &self.template
    }

    fn hierarchy(&self) -> &Arc<Hierarchy> {
        self.remains.hierarchy()
    }

    /// Puts it into the idle class and freezes it; returns once the kernel has confirmed that.
    ///
    /// # Errors
    /// The limits cannot be set, or the freeze was not confirmed.
    pub async fn rest(&mut self) -> Result<(), ContainerError> {
        self.hierarchy().apply(self.remains.cgroup(), &self.template.idle)?;
        self.remains.cgroup().freeze().await?;
        steps::at("rest.frozen");
        self.reclaim().await?;
        // What it used until now is nobody's; frozen, it uses nothing more.
        self.baseline = self.usage()?;
        self.resting = true;
        self.remains.set_state(State::Warm);
        self.keep();
        steps::at("rest.kept");
        Ok(())
    }

    /// What it had used before it belonged to an execution.
    pub fn baseline(&self) -> Usage {
        self.baseline
    }

    /// Whether it is as a warm container has to be: frozen, populated.
    pub fn is_resting(&self) -> bool {
        self.remains.cgroup().is_frozen().unwrap_or(false)
    }

    /// Belongs to an execution from now on: run class, counters start anew. It stays frozen until [`Self::thaw`].
    ///
    /// # Errors
    /// The limits cannot be set.
    pub fn claim(&mut self, execution: &str) -> Result<(), ContainerError> {
        // First, and in the kernel: whatever becomes of this process and of the keeper, it never passes for an unused one.
        self.remains.cgroup().mark_claimed()?;
        steps::at("claim.marked");
        match self.resting {
            true => self.hierarchy().raise(self.remains.cgroup(), &self.template.idle, &self.template.run)?,
            false => {
                self.hierarchy().apply(self.remains.cgroup(), &self.template.run)?;
                self.baseline = self.usage()?;
                self.keep();
            }
        }
        self.hierarchy().reset_peak(self.remains.cgroup());
        self.remains.set_claimed(execution, crate::telemetry::unix_ms(), self.baseline);
        self.remains.serve_execution();
        Ok(())
    }

    /// Writes the files into its credential directory, frozen or not.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn inject(&self, files: &[(&str, &str)]) -> Result<(), ContainerError> {
        let mount = self.credentials.as_ref().ok_or(CredentialError::NoDirectory)?;
        let limit = self.template.credentials.as_ref().map_or(0, |(_, bytes)| *bytes);
        Ok(credentials::fill(mount.as_fd(), files, self.owner, limit)?)
    }

    /// Tag of the next command.
    pub fn next_tag(&self) -> u32 {
        self.next_tag + 1
    }

    /// Tags of commands go on from there: the one that runs is the last that an earlier daemon gave.
    pub fn resume(&mut self, tag: u32) {
        self.next_tag = tag;
    }

    /// Lets it run.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        Ok(self.remains.cgroup().thaw()?)
    }

    /// Makes `pipe` belong to the user of its commands, who may then open it again as `/dev/stdout` and the like. Both
    /// ends have one owner, so this is not done for the pipes of a conversation with a CLI: commands that the CLI starts
    /// would be able to speak in its place.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn give(&self, pipe: BorrowedFd<'_>) -> Result<(), ContainerError> {
        let group = self.owner - self.template.user + self.template.group;
        let (user, group) = (rustix::fs::Uid::from_raw(self.owner), rustix::fs::Gid::from_raw(group));
        rustix::fs::fchown(pipe, Some(user), Some(group)).map_err(|errno| ContainerError::Control(errno.into()))
    }

    /// Hands a command over; a frozen container starts it when it thaws. Returns the command's tag.
    ///
    /// # Errors
    /// The container is gone.
    pub fn submit(&mut self, command: &Encoded, stdio: [BorrowedFd<'_>; 3]) -> Result<u32, ContainerError> {
        self.next_tag += 1;
        self.control.spawn(self.next_tag, command, self.id(), stdio).map_err(ContainerError::Control)?;
        Ok(self.next_tag)
    }

    /// Waits until the submitted command runs.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when it cannot be executed.
    pub async fn started(&self, tag: u32) -> Result<(), ContainerError> {
        match self.peek().await? {
            Some(Report { op: op::STARTED, tag: of, .. }) if of == tag => {
                self.control.consume().map_err(ContainerError::Control)
            }
            Some(Report { op: op::FAILED, tag: of, value, detail }) if of == tag => {
                Err(ContainerError::Start { stage: detail, errno: value })
            }
            Some(other) => Err(ContainerError::Init(format!("unexpected report {}", other.op))),
            None => Err(ContainerError::Init("it ended before the command ran".to_owned())),
        }
    }

    /// Waits until the command ends; its wait status (wait(2)), or `None` when the whole container ended.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when it could not be executed; `thaw-init` answered nonsense.
    pub async fn ended(&self, tag: u32) -> Result<Option<i32>, ContainerError> {
        loop {
            match self.peek().await? {
                Some(Report { op: op::EXITED, tag: of, value, .. }) if of == tag => return Ok(Some(value)),
                // Of an execution that another daemon had begun.
                Some(Report { op: op::FAILED, tag: of, value, detail }) if of == tag => {
                    return Err(ContainerError::Start { stage: detail, errno: value });
                }
                Some(_) => self.control.consume().map_err(ContainerError::Control)?,
                None => return Ok(None),
            }
        }
    }

    /// The next report, which stays where it is: how a command ended is told again to the next daemon, should this one
    /// be killed before it has told anybody.
    async fn peek(&self) -> Result<Option<Report>, ContainerError> {
        self.control.peek().await.map_err(ContainerError::Control)
    }

    /// Sends a signal to the command's process group.
    ///
    /// # Errors
    /// The container is gone.
    pub fn signal(&self, tag: u32, signal: i32) -> Result<(), ContainerError> {
        self.control.signal(tag, signal).map_err(ContainerError::Control)
    }

    /// Kills every process in it. What remains is cleared away when it is dropped.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn kill(&self) -> Result<(), ContainerError> {
        Ok(self.remains.kill()?)
    }

    /// What its cgroup has used since it was created.
    ///
    /// # Errors
    /// The control files cannot be read.
    pub fn usage(&self) -> Result<Usage, ContainerError> {
        Ok(self.hierarchy().usage(self.remains.cgroup())?)
    }
}

/// Waits for a process that is our child to be gone, and reaps it.
async fn reap(pidfd: OwnedFd) -> io::Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let watched = thaw_os::kernel::Watched::new(pidfd, tokio::io::Interest::READABLE)?;
    watched
        .run(tokio::io::Interest::READABLE, |fd| {
            match waitid(WaitId::PidFd(fd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::CHILD) => Ok(()),
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                Err(errno) => Err(errno.into()),
            }
        })
        .await
}
