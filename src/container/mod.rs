//! One container and its processes: created, rested (frozen), claimed, given credentials and commands, destroyed.
//!
//! ```text
//! create ──► ready ──► rest ──► warm (frozen) ──► claim ──► Once     ──► one command ──► drop ──► destroyed
//!                └───────────── cold claim ─────────┴────► Sandbox  ──► many commands ──► drop ──► destroyed
//! ```
//!
//! A [`Container`] has one owner at a time: the pool while it is warm, then whoever claimed it, an execution ([`Once`]) or
//! a sandbox ([`Sandbox`]). One that was claimed never goes back. Each of its commands is a [`Process`]. Dropping
//! it, in whatever state, destroys it: the reaper ([`reaper`]) kills its cgroup, waits until the kernel says that
//! nobody is left, reaps PID 1, removes the cgroup and gives its ids and its place under the limit back; all but the kill
//! makes way for claims ([`refill_throttle`]).

mod cli;
mod command;
mod containers;
mod control;
mod credentials;
mod fingerprint;
mod holder;
mod lease;
mod pool_memory;
mod processes;
mod reaper;
mod refill_throttle;
mod registry;
mod survive;
mod terminal;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::egress;
use crate::failpoints;
use thaw_os::cgroup::{CgroupError, Hierarchy, Limits, Reclaim, Usage};
use thaw_os::spawner::SpawnerError;
use thaw_wire::stage;

pub use cli::{Cli, Prestarted};
pub use command::{Command, CommandError, Encoded, MAX_ARGUMENT, Stdio};
pub use containers::{Containers, Settings};
pub use credentials::{CredentialError, CredentialFiles, Stamp};
pub use fingerprint::{fingerprint, made_by};
pub use holder::{Held, Holder, Once, Sandbox};
pub use lease::{Lease, Limit};
pub use pool_memory::PoolKey;
use processes::Processes;
pub use processes::{Exited, MAX_LEFT, Process};
use reaper::Teardown;
pub use refill_throttle::{ClaimGuard, Creating, Hold, RefillThrottle, RefillThrottleSettings};
pub use survive::Orphan;
pub use terminal::{Terminal, WindowSize};

pub use thaw_wire::{INIT_ID, MAX_GROUPS, Rlimit};

/// State as shown by the API.
pub use registry::State;

/// What every container of a provider is made from.
#[derive(Debug, Clone)]
pub struct Template {
    /// Provider name.
    pub provider: String,
    /// Unpacked root file system.
    pub rootfs: PathBuf,
    /// Keeps that in the store as long as containers can be made from it.
    pub hold: Option<thaw_image::Hold>,
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
    /// `thaw-init` ended, and the container with it.
    #[error("thaw-init ended {0}")]
    InitEnded(&'static str),
    /// `thaw-init` said something that has no meaning there: a report with this opcode, or no report at all.
    #[error("thaw-init cannot be understood (report {0:?})")]
    InitSaid(Option<u8>),
    /// What an earlier daemon left is not what is needed today.
    #[error("it cannot be taken over: {0}")]
    Unfit(&'static str),
    /// A task of the daemon ended before its work was done.
    #[error("a task of the daemon ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// No terminal.
    #[error("make a terminal: {0}")]
    Terminal(#[source] io::Error),
    /// Too many commands.
    #[error("{0} commands of the container run, or have ended without anybody having been told")]
    Untold(usize),
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
        stage::REQUEST if errno == libc::EAGAIN => {
            format!("cannot start the command: {} run in this container already", thaw_wire::MAX_PROCESSES)
        }
        stage::TERMINAL => format!("cannot make the terminal the command's own: {cause}"),
        stage::RLIMIT => format!("cannot set a resource limit of the command: {cause}"),
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
            Self::InitEnded(_) | Self::InitSaid(_) => "init",
            Self::Unfit(_) => "unfit",
            Self::Task(_) => "task",
            Self::Terminal(_) => "terminal",
            Self::Untold(_) => "commands",
            Self::Prestart(_) => "prestart",
            Self::Start { .. } => "start",
        }
    }

    /// Whether the container itself is at fault, so that another one may do.
    pub fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Control(_) | Self::InitEnded(_) | Self::InitSaid(_) | Self::Credentials(CredentialError::Io { .. })
        )
    }
}

/// A running or frozen container. Dropping it destroys it.
#[derive(Debug)]
pub struct Container {
    processes: Processes,
    /// The tmpfs on its credential directory. Kept so that what the command refreshed can be read back and revoked.
    credentials: Option<OwnedFd>,
    /// The socket of its way out, for the next daemon; the proxy has its own.
    listener: Option<OwnedFd>,
    /// Its devpts, in which terminals are made.
    terminals: OwnedFd,
    /// What it was made from.
    fingerprint: String,
    /// First of its host ids.
    id_base: u32,
    /// Host id of the user inside.
    owner: u32,
    template: Arc<Template>,
    cli: Option<Cli>,
    resting: bool,
    baseline: Usage,
    // Last: dropped after everything that refers to the container.
    teardown: Teardown,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        self.teardown.id()
    }

    /// What it was made from.
    pub fn template(&self) -> &Template {
        &self.template
    }

    fn hierarchy(&self) -> &Arc<Hierarchy> {
        self.teardown.hierarchy()
    }

    /// Puts it into the idle class and freezes it; returns once the kernel has confirmed that.
    ///
    /// # Errors
    /// The limits cannot be set, or the freeze was not confirmed.
    pub async fn park(&mut self) -> Result<(), ContainerError> {
        self.hierarchy().apply(self.teardown.cgroup(), &self.template.idle)?;
        self.teardown.cgroup().freeze().await?;
        failpoints::at("park.frozen");
        self.reclaim().await?;
        // What it used until now is nobody's; frozen, it uses nothing more.
        self.baseline = self.usage()?;
        self.resting = true;
        self.teardown.set_state(State::Warm);
        self.keep();
        failpoints::at("park.kept");
        Ok(())
    }

    /// Whether it is as a warm container has to be: frozen, populated.
    pub fn is_parked(&self) -> bool {
        self.teardown.cgroup().is_frozen().unwrap_or(false)
    }

    /// Writes the files into its credential directory, frozen or not.
    ///
    /// # Errors
    /// See [`CredentialError`].
    fn inject(&self, files: &[(&str, &str)]) -> Result<(), ContainerError> {
        let mount = self.credentials.as_ref().ok_or(CredentialError::NoDirectory)?;
        let limit = self.template.credentials.as_ref().map_or(0, |(_, bytes)| *bytes);
        Ok(credentials::fill(mount.as_fd(), files, self.owner, limit)?)
    }

    /// Tag of the next command.
    pub fn next_tag(&self) -> u32 {
        self.processes.next_tag()
    }

    /// What its cgroup has used since it was created.
    ///
    /// # Errors
    /// The control files cannot be read.
    fn usage(&self) -> Result<Usage, ContainerError> {
        Ok(self.hierarchy().usage(self.teardown.cgroup())?)
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
