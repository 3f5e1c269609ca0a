//! Who has a container that was claimed. There is no way from here back into a pool.
//!
//! - [`Once`]: one execution, which runs one command in it. It is destroyed with it.
//! - [`Sandbox`]: lives on, runs many commands, rests and wakes.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Uid};

use super::command::{Encoded, Stdio};
use super::processes::Process;
use super::terminal::{Terminal, WindowSize};
use super::{Cli, Container, ContainerError, CredentialFiles, Template};
use thaw_os::cgroup::Usage;

/// A claimed container. Dropping it destroys it.
#[derive(Debug)]
pub struct Held<By> {
    container: Container,
    by: PhantomData<By>,
}

/// Says who holds a container.
pub trait Holds {
    /// The one with this id.
    fn named(id: &str) -> Holder;
}

/// An execution.
#[derive(Debug)]
pub enum ByExecution {}

impl Holds for ByExecution {
    fn named(id: &str) -> Holder {
        Holder::Execution(id.to_owned())
    }
}

/// A sandbox.
#[derive(Debug)]
pub enum BySandbox {}

impl Holds for BySandbox {
    fn named(id: &str) -> Holder {
        Holder::Sandbox(id.to_owned())
    }
}

/// A container that one execution has, and nobody after it.
pub type Once = Held<ByExecution>;

/// A container that lives on between commands.
pub type Sandbox = Held<BySandbox>;

impl<By: Holds> Held<By> {
    pub(super) fn new(container: Container) -> Self {
        Self { container, by: PhantomData }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.container.id()
    }

    /// What it was made from.
    pub fn template(&self) -> &Template {
        self.container.template()
    }

    /// What it had used before it was claimed.
    pub fn baseline(&self) -> Usage {
        self.container.baseline
    }

    /// What it has used since it was created.
    ///
    /// # Errors
    /// The control files cannot be read.
    pub fn usage(&self) -> Result<Usage, ContainerError> {
        self.container.usage()
    }

    /// Writes the files into its credential directory, frozen or not.
    ///
    /// # Errors
    /// See [`super::CredentialError`].
    pub fn inject(&self, files: &[(&str, &str)]) -> Result<(), ContainerError> {
        self.container.inject(files)
    }

    /// Its credential directory, if it has one.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn credential_files(&self) -> io::Result<Option<CredentialFiles>> {
        self.container.credentials.as_ref().map(|mount| CredentialFiles::new(mount.as_fd())).transpose()
    }

    /// Makes `pipe` belong to the user of its commands, who may then open it again as `/dev/stdout` and the like. Both
    /// ends have one owner, so this is not done for the pipes of a conversation with a CLI: commands that the CLI starts
    /// would be able to speak in its place.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn give(&self, pipe: BorrowedFd<'_>) -> Result<(), ContainerError> {
        let Container { id_base, owner, template, .. } = &self.container;
        let (user, group) = (Uid::from_raw(*owner), Gid::from_raw(id_base + template.group));
        rustix::fs::fchown(pipe, Some(user), Some(group)).map_err(|errno| ContainerError::Control(errno.into()))
    }

    /// Lets it run.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.cgroup().thaw()?)
    }

    /// Kills every process in it. What remains is cleared away when it is dropped.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn kill(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.kill()?)
    }

    /// A new terminal inside, for a command of `user`: the daemon's end and the command's.
    ///
    /// # Errors
    /// There are no more terminals.
    pub fn terminal(&self, user: u32, size: WindowSize) -> Result<(Terminal, OwnedFd), ContainerError> {
        let Container { terminals, id_base, .. } = &self.container;
        Terminal::open(terminals.as_fd(), *id_base, user, size).map_err(ContainerError::Terminal)
    }
}

impl Once {
    /// Hands its command over, which starts when the container thaws.
    ///
    /// # Errors
    /// The container is gone.
    pub fn submit(&mut self, command: &Encoded, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        self.container.processes.submit(command, self.container.id(), stdio)
    }

    /// The CLI that waits in it.
    pub fn take_cli(&mut self) -> Option<Cli> {
        self.container.cli.take()
    }
}

impl Sandbox {
    /// Tag of the next command that is started, for the note that lets it survive.
    pub fn next_tag(&self) -> u32 {
        self.container.next_tag()
    }

    /// Starts a command beside those that run. It waits for as long as the container is frozen and its socket is full.
    ///
    /// # Errors
    /// The container is gone, or too many ends have not been told.
    pub async fn start(&self, command: &Encoded, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        self.container.processes.submit_in_turn(command, self.container.id(), stdio).await
    }

    /// Freezes it with everything that runs in it; returns once the kernel has confirmed that.
    ///
    /// # Errors
    /// The freeze was not confirmed.
    pub async fn freeze(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.cgroup().freeze().await?)
    }

    /// Whether it is frozen.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn is_frozen(&self) -> Result<bool, ContainerError> {
        Ok(self.container.teardown.cgroup().is_frozen()?)
    }
}

/// Whom a container was claimed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An execution, by its id.
    Execution(String),
    /// A sandbox, by its id.
    Sandbox(String),
}

impl Container {
    /// Gives it to an execution: run class, counters start anew. It stays frozen until it is thawed.
    ///
    /// # Errors
    /// The limits cannot be set; it is destroyed then.
    pub fn claim_once(self, execution: &str) -> Result<Once, ContainerError> {
        self.claim(execution)
    }

    /// Makes a sandbox of it, in the run class. It stays frozen until it is thawed.
    ///
    /// # Errors
    /// The limits cannot be set; it is destroyed then.
    pub fn claim_sandbox(self, sandbox: &str) -> Result<Sandbox, ContainerError> {
        self.claim(sandbox)
    }

    fn claim<By: Holds>(mut self, id: &str) -> Result<Held<By>, ContainerError> {
        // First, and in the kernel: whatever becomes of this process and of the keeper, it never passes for an unused one.
        self.teardown.cgroup().mark_claimed()?;
        crate::failpoints::at("claim.marked");
        match self.resting {
            true => self.hierarchy().raise(self.teardown.cgroup(), &self.template.idle, &self.template.run)?,
            false => {
                self.hierarchy().apply(self.teardown.cgroup(), &self.template.run)?;
                self.baseline = self.usage()?;
                self.keep();
            }
        }
        self.hierarchy().reset_peak(self.teardown.cgroup());
        self.teardown.set_claimed(By::named(id), crate::telemetry::unix_ms(), self.baseline);
        self.teardown.serve_execution();
        Ok(Held::new(self))
    }

    /// As [`Self::claim`], of one that an earlier daemon had claimed.
    pub(super) fn claimed_before<By: Holds>(self, id: &str, claimed_at_ms: u64) -> Held<By> {
        self.teardown.set_claimed(By::named(id), claimed_at_ms, self.baseline);
        self.teardown.serve_execution();
        Held::new(self)
    }
}
