//! Owns one container and its processes: created, parked (frozen), claimed, given credentials and commands, destroyed.
//!
//! ```text
//! create ──► ready ──► park ──► warm (frozen) ──► claim ──► Once     ──► one command ──► drop ──► destroyed
//!                └───────────── cold claim ─────────┴────► Sandbox  ──► many commands ──► drop ──► destroyed
//! ```
//!
//! A [`Container`] has one owner at a time: the pool while it is warm; then its holder, an execution ([`Once`]), a
//! sandbox ([`Sandbox`]) or a login ([`Login`]). A claimed container never goes back. Each of its commands is a [`Process`]. Dropping a
//! container, in whatever state, destroys it: the reaper ([`reaper`]) kills its cgroup, waits until the kernel confirms
//! that the cgroup is empty, reaps PID 1, removes the cgroup, and gives back the ids and the lease. All of that but the
//! kill makes way for claims ([`refill_throttle`]).
//!
//! Called by `pool`, which creates and parks, by `execution`, and for sandboxes. Deliberately absent: a way from a
//! holder back into a pool, and paths inside a container that are opened by name from the host.

mod cli;
mod command;
mod containers;
mod control;
mod credentials;
mod files;
mod fingerprint;
mod holder;
mod isolation;
mod lease;
mod pool_memory;
mod processes;
mod reach;
mod reaper;
mod refill_throttle;
mod registry;
mod survive;
mod terminal;
mod workspace;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::egress;
use crate::failpoints;
use thaw_os::cgroup::{CgroupError, Hierarchy, Limits, Reclaim, Usage};
use thaw_os::spawner::{Root, SpawnerError};
use thaw_os::workspace::PutError;
use thaw_wire::stage;

pub use cli::{Cli, Prestarted};
pub use command::{Command, CommandError, Encoded, MAX_ARGUMENT, Stdio};
pub use containers::{Containers, Settings};
pub use credentials::{CredentialError, CredentialFiles, Stamp};
pub use fingerprint::{fingerprint, made_by};
pub use holder::{Held, Holder, Login, Once, Sandbox};
pub use isolation::{Doing, Isolation, Native};
pub use lease::{Lease, Limit};
pub use pool_memory::PoolKey;
use processes::Processes;
pub use processes::{Exited, MAX_LEFT, Process};
pub use reach::Reach;
use reaper::Teardown;
pub use refill_throttle::{ClaimGuard, Creating, Hold, RefillThrottle, RefillThrottleSettings};
pub use survive::Orphan;
pub use terminal::{Terminal, WindowSize};
pub use workspace::{NO_WORKSPACE, WORKSPACE};

pub use thaw_os::files::{
    Condition, FileError, FileKind, FileLimits, Files, Info as FileInfo, NewFile, Place, Why as FileProblem,
};
pub use thaw_wire::{INIT_ID, MAX_GROUPS, Rlimit};

/// State of a container, as the API shows it.
pub use registry::State;

/// What all containers of one pool are created from.
#[derive(Debug, Clone)]
pub struct Template {
    /// Provider name.
    pub provider: String,
    /// Root file system; see [`image_root`].
    pub root: Root,
    /// The directory that changes go to, if the root is writable: of one container only.
    pub layer: Option<Arc<OwnedFd>>,
    /// Keeps its image in the store as long as containers can be made from it.
    pub hold: Option<thaw_image::Hold>,
    /// Home directory inside, which is writable.
    pub home: Option<String>,
    /// User id inside.
    pub user: u32,
    /// Group id inside.
    pub group: u32,
    /// Credential directory below home, and the size of its tmpfs in bytes.
    pub credentials: Option<(String, u64)>,
    /// Whether it has a directory of its own at `/workspace`.
    pub workspace: bool,
    /// Limits while pooled.
    pub idle: Limits,
    /// Limits from the claim on.
    pub run: Limits,
    /// Most processes and threads at the same time.
    pub pids: u32,
    /// Destinations that the container may connect to.
    pub egress: Arc<egress::Policy>,
    /// The CLI that is started before the claim, if any.
    pub prestarted: Option<Arc<Prestarted>>,
    /// Memory that is reclaimed when the container is parked.
    pub reclaim: Reclaim,
}

/// An image of the store, by its digest: the root of its containers, and what keeps it there.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// The root, read-only.
    pub root: Root,
    /// Keeps it in the store.
    pub hold: thaw_image::Hold,
}

/// The read-only root of containers of `image`.
///
/// # Errors
/// The image is gone.
pub fn image_root(image: &thaw_image::Image) -> Result<Root, thaw_image::StoreError> {
    let (rootfs, empty, name) = (image.rootfs.clone(), image.empty.clone(), image.mount_name()?);
    Ok(Root { image: rootfs, empty, name, writable: false })
}

/// Why a container could not be created or used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A control group could not be read or changed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The spawner could not create the container.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    /// The egress proxy could not be started.
    #[error(transparent)]
    Egress(#[from] egress::EgressError),
    /// The credential files could not be passed.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Files for `/workspace`.
    #[error(transparent)]
    Put(#[from] PutError),
    /// Files were to be put into it or collected, and there is no place for them.
    #[error("there is no place for files: {NO_WORKSPACE}")]
    NoWorkspace,
    /// The control socket.
    #[error("talk to thaw-init: {0}")]
    Control(#[source] io::Error),
    /// `thaw-init` did not send its hello in time.
    #[error("thaw-init was not ready within {0} s")]
    Timeout(u64),
    /// The container was not created in time.
    #[error("the container was not created within {0} s (`container.create_timeout_seconds`)")]
    CreateTimeout(u64),
    /// `thaw-init` ended, and the container with it.
    #[error("thaw-init ended {0}")]
    InitEnded(&'static str),
    /// `thaw-init` sent something unexpected: a report with this opcode, or no report at all.
    #[error("thaw-init cannot be understood (report {0:?})")]
    InitSaid(Option<u8>),
    /// A container of an earlier daemon does not fit what is needed today.
    #[error("it cannot be taken over: {0}")]
    Unfit(&'static str),
    /// A task of the daemon ended early.
    #[error("a task of the daemon ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A terminal could not be made.
    #[error("make a terminal: {0}")]
    Terminal(#[source] io::Error),
    /// Too many commands run, or have ended without their owner having taken notice.
    #[error("{0} commands of the container run, or have ended without anybody having been told")]
    Untold(usize),
    /// The CLI did not become ready.
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
    /// Exit code by the convention of shells and container engines: 127 for not found, 126 for not executable.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Start { stage: stage::EXEC, errno } if *errno == libc::ENOENT => Some(127),
            // A working directory that the image lacks is the request's mistake too: trying again would not help.
            Self::Start { stage: stage::EXEC | stage::CHDIR, .. } => Some(126),
            _ => None,
        }
    }

    /// Value of the metric's label `reason`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::Spawner(_) => "spawner",
            Self::Egress(_) => "egress",
            Self::Credentials(_) => "credentials",
            Self::Put(_) | Self::NoWorkspace => "workspace",
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

    /// Whether the fault lies in this container, so that another one may work.
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
    /// The tmpfs on the credential directory. Kept, so that files which the command renewed can be read back.
    credentials: Option<OwnedFd>,
    /// The directory at `/workspace`.
    workspace: Option<OwnedFd>,
    /// The socket of its way out, for the next daemon; the proxy has its own.
    listener: Option<OwnedFd>,
    /// The container's devpts, in which terminals are made.
    terminals: OwnedFd,
    /// The container's own `/dev/null`; `None` for one that a daemon made which did not keep it.
    null: Option<OwnedFd>,
    /// Fingerprint of what the container was created from; see [`fingerprint()`].
    fingerprint: String,
    /// First host id of the container.
    id_base: u32,
    /// Host id of the user inside.
    owner: u32,
    template: Arc<Template>,
    cli: Option<Cli>,
    resting: bool,
    baseline: Usage,
    // Last field: dropped after everything that refers to the container.
    teardown: Teardown,
}

impl Container {
    /// The container's id.
    pub fn id(&self) -> &str {
        self.teardown.id()
    }

    /// The template that the container was created from.
    pub fn template(&self) -> &Template {
        &self.template
    }

    fn hierarchy(&self) -> &Arc<Hierarchy> {
        self.teardown.hierarchy()
    }

    /// Parks the container: sets the idle limits and freezes it; returns once the kernel has confirmed the freeze.
    ///
    /// # Errors
    /// The limits cannot be set, or the freeze was not confirmed.
    pub async fn park(&mut self) -> Result<(), ContainerError> {
        self.hierarchy().apply(self.teardown.cgroup(), &self.template.idle)?;
        self.teardown.freeze().await?;
        failpoints::at("park.frozen");
        self.reclaim().await?;
        // Usage so far belongs to no execution. A frozen container uses nothing more.
        self.baseline = self.usage()?;
        self.resting = true;
        self.teardown.set_state(State::Warm);
        self.keep();
        failpoints::at("park.kept");
        Ok(())
    }

    /// Whether the container is parked: frozen and populated.
    pub fn is_parked(&self) -> bool {
        self.teardown.cgroup().is_frozen().unwrap_or(false)
    }

    /// Writes the files into the credential directory, whether the container is frozen or not.
    ///
    /// # Errors
    /// See [`CredentialError`].
    fn inject(&self, files: &[(&str, &str)]) -> Result<(), ContainerError> {
        let mount = self.credentials.as_ref().ok_or(CredentialError::NoDirectory)?;
        let limit = self.template.credentials.as_ref().map_or(0, |(_, bytes)| *bytes);
        Ok(credentials::fill(mount.as_fd(), files, self.owner, limit)?)
    }

    /// Its own `/dev/null`, for a command that reads nothing: that of the host would be a file which the command has in common
    /// with everybody.
    ///
    /// # Errors
    /// The daemon has no descriptor left.
    pub fn null_input(&self) -> Result<OwnedFd, ContainerError> {
        let null = self.null.as_ref().ok_or(ContainerError::Unfit("its /dev/null was not kept"))?;
        null.try_clone().map_err(ContainerError::Control)
    }

    /// Tag of the next command.
    pub fn next_tag(&self) -> u32 {
        self.processes.next_tag()
    }

    /// Usage of the cgroup since its creation.
    ///
    /// # Errors
    /// The control files cannot be read.
    fn usage(&self) -> Result<Usage, ContainerError> {
        Ok(self.hierarchy().usage(self.teardown.cgroup())?)
    }
}

/// Waits until a child process has ended, and reaps it.
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
