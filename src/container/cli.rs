//! Prestarted CLIs: a CLI that starts in a container before the claim, and waits there for its prompt.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::{Container, ContainerError, Encoded, Process, Stdio};
use crate::failpoints;
use crate::output::{PIPE_BYTES, output_pipe};
use crate::provider::prestart::{Action, Driver, Plan};

/// Largest piece read from a pipe at once, bytes: a pipe's default capacity (pipe(7)).
const CHUNK: usize = 64 * 1024;

/// Most that the conversation with a CLI that waits may take when it is written down, bytes: it has to fit a message to
/// the keeper. It is small unless the CLI has stopped in the middle of a long line.
const MAX_DIALOGUE_BYTES: usize = 32 * 1024;

/// What is started ahead of time in the containers of a pool.
#[derive(Debug)]
pub struct Prestarted {
    /// Protocol of the CLI, and what it can take at a claim.
    pub plan: Arc<Plan>,
    /// Arguments and environment, which hold no secret.
    pub command: Encoded,
}

/// A CLI that waits for its prompt, with its pipes.
#[derive(Debug)]
pub struct Cli {
    /// The process.
    pub process: Process,
    /// Driver of the CLI's protocol.
    pub driver: Driver,
    /// Write end of its standard input.
    pub stdin: pipe::Sender,
    /// Read end of its standard output; everything before the claim has been read.
    pub stdout: pipe::Receiver,
    /// Read end of its standard error.
    pub stderr: pipe::Receiver,
}

impl Cli {
    /// One that an earlier daemon had; the pipes are its standard input, output and error.
    pub(super) fn adopt(process: Process, driver: Driver, pipes: [OwnedFd; 3]) -> io::Result<Self> {
        let [stdin, stdout, stderr] = pipes;
        Ok(Self {
            process,
            driver,
            stdin: pipe::Sender::from_owned_fd(stdin)?,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        })
    }
}

/// A pipe whose write end is ours.
fn input_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), pipe::Sender::from_owned_fd(writer.into())?))
}

impl Container {
    /// Starts the template's CLI with the limits of the run class; waits until it is ready and quiet.
    ///
    /// # Errors
    /// [`ContainerError::Prestart`] if the CLI does not become ready; those of [`Process::started`] if it cannot be
    /// executed.
    pub async fn prestart(&mut self, prestarted: &Prestarted) -> Result<(), ContainerError> {
        self.hierarchy().apply(self.teardown.cgroup(), &self.template.run)?;
        let failed = ContainerError::Control;
        let (stdin_reader, stdin) = input_pipe().map_err(failed)?;
        let (stdout, stdout_writer) = output_pipe(PIPE_BYTES).map_err(failed)?;
        let (stderr, stderr_writer) = output_pipe(PIPE_BYTES).map_err(failed)?;
        let stdio = Stdio::Three([stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
        let process = self.processes.submit(&prestarted.command, self.id(), &stdio)?;
        drop((stdin_reader, stdout_writer, stderr_writer));
        let limit = prestarted.plan.ready_timeout;
        let late = || ContainerError::Prestart(format!("it was not ready within {} s", limit.as_secs()));
        tokio::time::timeout(limit, process.started()).await.map_err(|_| late())??;
        let driver = Driver::new(Arc::clone(&prestarted.plan));
        let listen = |output| pipe::Receiver::from_owned_fd(output).map_err(failed);
        let mut cli = Cli { process, driver, stdin, stdout: listen(stdout)?, stderr: listen(stderr)? };
        match tokio::time::timeout(limit, wait_ready(&mut cli, prestarted.plan.quiet)).await {
            Ok(result) => result?,
            Err(_) => return Err(late()),
        }
        let dialogue = serde_json::to_vec(cli.driver.dialogue()).expect("strings and numbers always serialize");
        if dialogue.len() > MAX_DIALOGUE_BYTES {
            let problem = "it waits in the middle of a line, too long a one for the next daemon to go on from";
            return Err(ContainerError::Prestart(problem.to_owned()));
        }
        self.cli = Some(cli);
        failpoints::at("create.prestarted");
        Ok(())
    }

    /// The CLI that waits in it.
    pub fn cli(&self) -> Option<&Cli> {
        self.cli.as_ref()
    }
}

async fn wait_ready(cli: &mut Cli, quiet: Duration) -> Result<(), ContainerError> {
    let broken = |reason: String| ContainerError::Prestart(reason);
    let input = cli.driver.start();
    cli.stdin.write_all(&input).await.map_err(ContainerError::Control)?;
    let (mut out, mut err) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let ready = cli.driver.is_ready();
        let length = tokio::select! {
            read = cli.stdout.read(&mut out) => read.map_err(ContainerError::Control)?,
            read = cli.stderr.read(&mut err) => {
                // Standard error before the claim belongs to no execution, and is discarded.
                if read.map_err(ContainerError::Control)? == 0 {
                    return Err(broken("it closed its standard error".to_owned()));
                }
                continue;
            }
            ended = cli.process.ended() => {
                return Err(broken(format!("it ended with wait status {:?}", ended?)));
            }
            () = tokio::time::sleep(quiet), if ready => return Ok(()),
        };
        if length == 0 {
            return Err(broken("it closed its standard output".to_owned()));
        }
        for action in cli.driver.on_stdout(&out[..length]) {
            match action {
                Action::Write(input) => cli.stdin.write_all(&input).await.map_err(ContainerError::Control)?,
                Action::Failed(reason) => return Err(broken(reason)),
                Action::Ready | Action::Delta(_) | Action::Done(_) => {}
            }
        }
    }
}
