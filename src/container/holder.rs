//! Holders of claimed containers. No function leads from a holder back into a pool.
//!
//! - [`Once`]: held by one execution, runs one command, and is destroyed with it.
//! - [`Sandbox`]: lives on, runs many commands, is frozen and thawed.
//! - [`Login`]: runs a CLI that logs in, and is destroyed with it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Uid};

use super::command::{Encoded, Stdio};
use super::processes::Process;
use super::terminal::{Terminal, WindowSize};
use super::{Cli, Container, ContainerError, CredentialFiles, Template};
use thaw_os::cgroup::{Limits, Usage};

/// A claimed container. Dropping it destroys it.
#[derive(Debug)]
pub struct Held<By> {
    container: Container,
    by: PhantomData<By>,
}

/// Kind of a holder.
pub trait Holds {
    /// The holder with this id.
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

/// A login.
#[derive(Debug)]
pub enum ByLogin {}

impl Holds for ByLogin {
    fn named(id: &str) -> Holder {
        Holder::Login(id.to_owned())
    }
}

/// A container held by one execution and destroyed with it.
pub type Once = Held<ByExecution>;

/// A container held by a sandbox, which lives on between commands.
pub type Sandbox = Held<BySandbox>;

/// A container in which a CLI logs in. Without a way back, and without survival: it ends with the daemon.
pub type Login = Held<ByLogin>;

impl<By: Holds> Held<By> {
    pub(super) fn new(container: Container) -> Self {
        Self { container, by: PhantomData }
    }

    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.container.id()
    }

    /// The template that the container was created from.
    pub fn template(&self) -> &Template {
        self.container.template()
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        self.container.teardown.entry().limits()
    }

    /// Usage before the claim.
    pub fn baseline(&self) -> Usage {
        self.container.baseline
    }

    /// Usage since the creation.
    ///
    /// # Errors
    /// The control files cannot be read.
    pub fn usage(&self) -> Result<Usage, ContainerError> {
        self.container.usage()
    }

    /// Writes the files into the credential directory, whether the container is frozen or not.
    ///
    /// # Errors
    /// See [`super::CredentialError`].
    pub fn inject(&self, files: &[(&str, &str)]) -> Result<(), ContainerError> {
        self.container.inject(files)
    }

    /// The credential directory, if the container has one.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn credential_files(&self) -> io::Result<Option<CredentialFiles>> {
        self.container.credentials.as_ref().map(|mount| CredentialFiles::new(mount.as_fd())).transpose()
    }

    /// Makes `pipe` belong to the user of the commands, so that they may open it again as `/dev/stdout` and the like.
    /// The two ends have one owner. So never call this for the pipes of a prestarted CLI: commands that the CLI starts
    /// could then speak in its place.
    ///
    /// # Errors
    /// The system's error.
    pub fn give(&self, pipe: BorrowedFd<'_>) -> Result<(), ContainerError> {
        let Container { id_base, owner, template, .. } = &self.container;
        let (user, group) = (Uid::from_raw(*owner), Gid::from_raw(id_base + template.group));
        rustix::fs::fchown(pipe, Some(user), Some(group)).map_err(|errno| ContainerError::Control(errno.into()))
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.cgroup().thaw()?)
    }

    /// Kills every process in the container. Dropping the container does the rest of the teardown.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn kill(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.kill()?)
    }

    /// Opens a terminal inside, for a command of `user`; returns the daemon's end and the command's.
    ///
    /// # Errors
    /// No terminal is left.
    pub fn terminal(&self, user: u32, size: WindowSize) -> Result<(Terminal, OwnedFd), ContainerError> {
        let Container { terminals, id_base, .. } = &self.container;
        Terminal::open(terminals.as_fd(), *id_base, user, size).map_err(ContainerError::Terminal)
    }
}

impl Once {
    /// Gives it less than its class: limits that are no higher than those of [`Template::run`].
    ///
    /// # Errors
    /// The control files cannot be written.
    pub fn tighten(&mut self, limits: Limits) -> Result<(), ContainerError> {
        let container = &self.container;
        container.hierarchy().apply(container.teardown.cgroup(), &limits)?;
        // Once: an execution has one set of limits.
        let _ = container.teardown.entry().tightened.set(limits);
        container.keep();
        Ok(())
    }

    /// Hands its command over, which starts when the container thaws.
    ///
    /// # Errors
    /// The container is gone.
    pub fn submit(&mut self, command: &Encoded, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        self.container.processes.submit(command, self.container.id(), stdio)
    }

    /// Takes the prestarted CLI out of the container.
    pub fn take_cli(&mut self) -> Option<Cli> {
        self.container.cli.take()
    }
}

impl Login {
    /// Hands its command over, which starts when the container thaws.
    ///
    /// # Errors
    /// The container is gone.
    pub fn submit(&mut self, command: &Encoded, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        self.container.processes.submit(command, self.container.id(), stdio)
    }

    /// Its own `/dev/null`, for a CLI that reads nothing.
    ///
    /// # Errors
    /// The daemon has no descriptor left.
    pub fn null_input(&self) -> Result<OwnedFd, ContainerError> {
        self.container.null_input()
    }
}

impl Sandbox {
    /// Tag of the next command, for the note that lets it survive the daemon.
    pub fn next_tag(&self) -> u32 {
        self.container.next_tag()
    }

    /// Starts a command beside those that run. Waits while the container is frozen and its socket is full.
    ///
    /// # Errors
    /// The container is gone, or too many commands have ended without their owner having taken notice.
    pub async fn start(&self, command: &Encoded, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        let process = self.reserve()?;
        self.begin(&process, command, stdio).await?;
        Ok(process)
    }

    /// The place of a command that is to begin. Its tag is its own already, for the note that lets it survive the daemon.
    ///
    /// # Errors
    /// Too many commands have ended without their owner having taken notice.
    pub fn reserve(&self) -> Result<Process, ContainerError> {
        self.container.processes.reserve()
    }

    /// Starts a command in its place. Waits while the container is frozen and its socket is full.
    ///
    /// # Errors
    /// The container is gone.
    pub async fn begin(&self, process: &Process, command: &Encoded, stdio: &Stdio<'_>) -> Result<(), ContainerError> {
        self.container.processes.submit_in_turn(process, command, self.container.id(), stdio).await
    }

    /// Removes credential files, if they are there.
    ///
    /// # Errors
    /// The user has made something else of one of them.
    pub fn withdraw(&self, names: &[String]) -> Result<(), ContainerError> {
        let Some(mount) = &self.container.credentials else { return Ok(()) };
        Ok(super::credentials::remove(mount.as_fd(), names)?)
    }

    /// Waits until the container has ended by itself: its `thaw-init` is gone, and everything in it. Can be called again.
    pub async fn ended(&self) {
        self.container.processes.over().await;
    }

    /// Whether it has.
    pub fn has_ended(&self) -> bool {
        self.container.processes.is_over()
    }

    /// Input that is empty, for a command that reads nothing.
    ///
    /// # Errors
    /// The daemon has no descriptor left.
    pub fn null_input(&self) -> Result<OwnedFd, ContainerError> {
        self.container.null_input()
    }

    /// Freezes the container with everything in it; returns once the kernel has confirmed the freeze.
    ///
    /// # Errors
    /// The freeze was not confirmed.
    pub async fn freeze(&self) -> Result<(), ContainerError> {
        Ok(self.container.teardown.freeze().await?)
    }

    /// Sends SIGTERM to every process in it but its PID 1.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn terminate(&self) -> Result<(), ContainerError> {
        let init = self.container.teardown.entry().pid();
        Ok(self.container.teardown.cgroup().signal(libc::SIGTERM, init)?)
    }

    /// Whether there are processes in it besides its PID 1.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn has_processes(&self) -> Result<bool, ContainerError> {
        let init = self.container.teardown.entry().pid();
        Ok(self.container.teardown.cgroup().processes()?.into_iter().any(|pid| Some(pid) != init))
    }

    /// Whether the container is frozen.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn is_frozen(&self) -> Result<bool, ContainerError> {
        Ok(self.container.teardown.cgroup().is_frozen()?)
    }
}

/// The holder that a container was claimed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An execution, by its id.
    Execution(String),
    /// A sandbox, by its id.
    Sandbox(String),
    /// A login, by its id.
    Login(String),
}

impl Container {
    /// Claims the container for an execution: sets the run limits and resets counters. The container stays frozen.
    ///
    /// # Errors
    /// The limits cannot be set; the container is then destroyed.
    pub fn claim_once(self, execution: &str, user: &str) -> Result<Once, ContainerError> {
        self.claim(execution, user)
    }

    /// Claims the container for a sandbox and sets the run limits. The container stays frozen.
    ///
    /// # Errors
    /// The limits cannot be set; the container is then destroyed.
    pub fn claim_sandbox(self, sandbox: &str, user: &str) -> Result<Sandbox, ContainerError> {
        self.claim(sandbox, user)
    }

    /// Claims the container for a login and sets the run limits. The container stays frozen.
    ///
    /// # Errors
    /// The limits cannot be set; the container is then destroyed.
    pub fn claim_login(self, login: &str, user: &str) -> Result<Login, ContainerError> {
        self.claim(login, user)
    }

    fn claim<By: Holds>(mut self, id: &str, user: &str) -> Result<Held<By>, ContainerError> {
        // First the mark in the kernel: whatever happens to this process and the keeper, the container never passes for
        // unused.
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
        self.teardown.set_claimed(By::named(id), user, crate::telemetry::unix_ms(), self.baseline);
        self.teardown.serve_execution();
        Ok(Held::new(self))
    }

    /// As [`Self::claim`], for a container that an earlier daemon had claimed.
    pub(super) fn claimed_before<By: Holds>(self, id: &str, user: &str, claimed_at_ms: u64) -> Held<By> {
        self.teardown.set_claimed(By::named(id), user, claimed_at_ms, self.baseline);
        self.teardown.serve_execution();
        Held::new(self)
    }
}
