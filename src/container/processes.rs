//! Commands of one container. The control task reads the reports of `thaw-init` and routes each by its tag to a
//! [`Process`] handle.
//!
//! ```text
//! submitted ──► running ──► exited
//!     └──► failed                         each of them ──► gone, if the container ends first
//! ```
//!
//! The report of a command's end stays in the control socket until the owner drops the command's handle. A daemon that
//! is killed before that finds the report again. Later reports are peeked at past it (`SO_PEEK_OFF`, socket(7));
//! reports are removed from the socket in order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::ContainerError;
use super::command::{Encoded, Stdio};
use super::control::{self, Control};
use thaw_wire::{Report, op};

/// Most commands of one container, plus reports that are still in its socket. Beyond this a new command is refused, so
/// that `thaw-init` never blocks on a full socket.
pub const MAX_LEFT: usize = 1024;

/// Number of tags that one daemon can use in a container. The next daemon begins after them. So a late report about a
/// command of the earlier daemon is never taken for a report about a new command.
pub(super) const TAGS: u32 = 1 << 20;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// Wait status (wait(2)).
    pub status: i32,
    /// CPU time of the command and of those of its children that it waited for.
    pub cpu: Duration,
    /// Largest resident memory of a single one of them, bytes.
    pub max_rss_bytes: u64,
}

/// Phase of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Submitted,
    Running,
    Failed {
        stage: u32,
        errno: i32,
    },
    Exited(Exited),
    /// The container ended before this command did.
    Gone,
    /// `thaw-init` sent a report with this unexpected opcode, or something that is not a report.
    Broken(Option<u8>),
}

impl Phase {
    fn is_last(&self) -> bool {
        !matches!(self, Self::Submitted | Self::Running)
    }
}

/// The commands of a container. Dropping this ends the control task.
#[derive(Debug)]
pub(super) struct Processes {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    control: Control,
    state: Mutex<State>,
    /// Set when no more reports will come: the container has ended.
    over: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    commands: BTreeMap<u32, watch::Sender<Phase>>,
    /// Reports that were peeked at and are still in the socket, oldest first.
    left: VecDeque<Left>,
    first_tag: u32,
    next_tag: u32,
    /// Why no more reports will come; `None` while they can.
    over: Option<Phase>,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    tag: u32,
    /// Whether the report is no longer needed.
    released: bool,
}

impl State {
    /// Routes a report to its command. Returns whether the report is no longer needed.
    fn route(&mut self, report: &Report) -> io::Result<bool> {
        let Report { op, tag, value, detail, cpu_us, max_rss_kib } = *report;
        let phase = match op {
            op::STARTED => Phase::Running,
            op::FAILED => Phase::Failed { stage: detail, errno: value },
            op::EXITED => Phase::Exited(Exited {
                status: value,
                cpu: Duration::from_micros(cpu_us),
                max_rss_bytes: u64::from(max_rss_kib) * 1024,
            }),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, Unexpected(op))),
        };
        let Some(command) = self.commands.get(&tag) else { return Ok(true) };
        command.send_if_modified(|is| {
            let further = !is.is_last() && *is != phase;
            if further {
                *is = phase;
            }
            further
        });
        Ok(phase == Phase::Running)
    }

    /// Ends all commands: no more reports will come.
    fn end(&mut self, phase: Phase) {
        self.over = Some(phase);
        for command in self.commands.values() {
            command.send_if_modified(|is| {
                let open = !is.is_last();
                if open {
                    *is = phase;
                }
                open
            });
        }
    }
}

/// A report that is not allowed here.
#[derive(Debug, thiserror::Error)]
#[error("unexpected report {0}")]
struct Unexpected(u8);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control task.
    async fn read(self: Arc<Self>) {
        loop {
            // Peeking at a report and recording it must be one step for the code that removes reports.
            let looked = self.control.look(|socket| {
                let mut state = self.lock();
                let Some(report) = control::peek(socket)? else { return Ok(false) };
                // A report that is not understood blocks those behind it; but after it none is read.
                let released = state.route(&report)?;
                state.left.push_back(Left { tag: report.tag, released });
                self.consume_released(&mut state);
                Ok(true)
            });
            let phase = match looked.await {
                Ok(true) => continue,
                Ok(false) => Phase::Gone,
                Err(error) => {
                    let unexpected = error.get_ref().and_then(|error| error.downcast_ref::<Unexpected>());
                    Phase::Broken(unexpected.map(|report| report.0))
                }
            };
            self.lock().end(phase);
            self.over.send_replace(true);
            return;
        }
    }

    /// Removes the oldest reports from the socket, as far as they are no longer needed.
    fn consume_released(&self, state: &mut State) {
        while state.left.front().is_some_and(|left| left.released) {
            if let Err(error) = self.control.consume() {
                tracing::error!(%error, "could not take a report of thaw-init away");
                return;
            }
            state.left.pop_front();
        }
    }

    fn register(self: &Arc<Self>, state: &mut State, tag: u32) -> Process {
        let (sender, phase) = watch::channel(state.over.unwrap_or(Phase::Submitted));
        state.commands.insert(tag, sender);
        Process { tag, shared: Arc::clone(self), phase }
    }

    /// Registers a command under the next tag.
    fn next(self: &Arc<Self>) -> Result<Process, ContainerError> {
        let mut state = self.lock();
        // Each command has at most three reports at a time; those of running commands come on top.
        if state.left.len() + state.commands.len() >= MAX_LEFT {
            return Err(ContainerError::Untold(MAX_LEFT));
        }
        let tag = state.next_tag;
        state.next_tag = state.next_tag.wrapping_add(1);
        Ok(self.register(&mut state, tag))
    }
}

impl Processes {
    /// Commands of a new container, whose `thaw-init` has sent its hello.
    ///
    /// # Errors
    /// The socket cannot be peeked at.
    pub fn new(control: Control) -> io::Result<Self> {
        Ok(Self::start(control, 1, &[])?.0)
    }

    /// Commands of a container that an earlier daemon had. `running` are the tags of commands that still run; new tags
    /// begin with `first_tag`.
    ///
    /// # Errors
    /// The socket cannot be peeked at.
    pub fn adopt(control: Control, first_tag: u32, running: &[u32]) -> io::Result<(Self, Vec<Process>)> {
        Self::start(control, first_tag, running)
    }

    fn start(control: Control, first_tag: u32, running: &[u32]) -> io::Result<(Self, Vec<Process>)> {
        control.look_from_the_start()?;
        let state =
            State { commands: BTreeMap::new(), left: VecDeque::new(), first_tag, next_tag: first_tag, over: None };
        let shared = Arc::new(Shared { control, state: Mutex::new(state), over: watch::Sender::new(false) });
        let resumed = {
            let mut state = shared.lock();
            running.iter().map(|tag| shared.register(&mut state, *tag)).collect()
        };
        let task = tokio::spawn(Arc::clone(&shared).read()).abort_handle();
        Ok((Self { shared, task }, resumed))
    }

    /// Waits until the container has ended: no more reports will come. Can be called again.
    pub async fn over(&self) {
        // The sender exists for as long as `self`.
        let _ = self.shared.over.subscribe().wait_for(|over| *over).await;
    }

    /// Whether it has.
    pub fn is_over(&self) -> bool {
        *self.shared.over.borrow()
    }

    /// First tag of this daemon.
    pub fn first_tag(&self) -> u32 {
        self.shared.lock().first_tag
    }

    /// Tag of the next command.
    pub fn next_tag(&self) -> u32 {
        self.shared.lock().next_tag
    }

    /// Submits a command. While the container is frozen, the command waits in the socket.
    ///
    /// # Errors
    /// The container is gone, or its socket is full.
    pub fn submit(&self, command: &Encoded, host_name: &str, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        let process = self.shared.next()?;
        self.shared.control.spawn(process.tag, command, host_name, stdio).map_err(ContainerError::Control)?;
        Ok(process)
    }

    /// The place of a command that is to be submitted: from now on its tag is its own.
    ///
    /// # Errors
    /// Too many commands have ended without their owner having taken notice.
    pub fn reserve(&self) -> Result<Process, ContainerError> {
        self.shared.next()
    }

    /// As [`Self::submit`], for a place that was reserved; waits while the socket is full.
    ///
    /// # Errors
    /// The container is gone.
    pub async fn submit_in_turn(
        &self,
        process: &Process,
        command: &Encoded,
        host_name: &str,
        stdio: &Stdio<'_>,
    ) -> Result<(), ContainerError> {
        let sent = self.shared.control.spawn_in_turn(process.tag, command, host_name, stdio).await;
        sent.map_err(ContainerError::Control)
    }
}

impl AsFd for Processes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.control.as_fd()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.task.abort();
        // Handles may outlive the container, but no more reports are read.
        self.shared.lock().end(Phase::Gone);
    }
}

/// One command in a container. Dropping this releases the report of the command's end; the command itself goes on.
#[derive(Debug)]
pub struct Process {
    tag: u32,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

impl Process {
    /// Tag of the command between daemon and `thaw-init`.
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// Waits until the command runs. Can be called again.
    ///
    /// # Errors
    /// [`ContainerError::Start`] if the command cannot be executed; or the container ended or broke before.
    pub async fn started(&self) -> Result<(), ContainerError> {
        match self.when(|phase| *phase != Phase::Submitted).await {
            Phase::Failed { stage, errno } => Err(ContainerError::Start { stage, errno }),
            Phase::Gone => Err(ContainerError::InitEnded("before the command ran")),
            Phase::Broken(report) => Err(ContainerError::InitSaid(report)),
            Phase::Submitted | Phase::Running | Phase::Exited(_) => Ok(()),
        }
    }

    /// Waits until the command ends; `None` if the container ended first. Can be called again.
    ///
    /// # Errors
    /// [`ContainerError::Start`] if the command could not be executed; or the container broke.
    pub async fn ended(&self) -> Result<Option<Exited>, ContainerError> {
        match self.when(Phase::is_last).await {
            Phase::Exited(exited) => Ok(Some(exited)),
            Phase::Failed { stage, errno } => Err(ContainerError::Start { stage, errno }),
            Phase::Broken(report) => Err(ContainerError::InitSaid(report)),
            Phase::Gone | Phase::Submitted | Phase::Running => Ok(None),
        }
    }

    async fn when(&self, wanted: impl FnMut(&Phase) -> bool) -> Phase {
        let mut phase = self.phase.clone();
        // The sender exists for as long as this handle.
        let found = phase.wait_for(wanted).await.map(|phase| *phase);
        found.unwrap_or(Phase::Gone)
    }

    /// Sends a signal to the command's process group, unless the command has ended.
    ///
    /// # Errors
    /// The container is gone.
    pub fn signal(&self, signal: i32) -> Result<(), ContainerError> {
        self.shared.control.signal(self.tag, signal).map_err(ContainerError::Control)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.commands.remove(&self.tag);
        for left in state.left.iter_mut().filter(|left| left.tag == self.tag) {
            left.released = true;
        }
        self.shared.consume_released(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use thaw_os::kernel;
    use thaw_wire::REPORT_LEN;

    fn report(op: u8, tag: u32, value: i32) -> Report {
        Report { op, tag, value, detail: 0, cpu_us: 5, max_rss_kib: 7 }
    }

    fn say(init: &OwnedFd, report: Report) {
        kernel::send(init.as_fd(), &[&report.encode()], &[]).unwrap();
    }

    /// How many reports are in the socket.
    fn waiting(processes: &Processes) -> usize {
        let copy = processes.as_fd().try_clone_to_owned().unwrap();
        let mut bytes = 0;
        kernel::peek_from_the_start(copy.as_fd()).unwrap();
        while let Ok(Some(_)) = control::peek(copy.as_fd()) {
            bytes += REPORT_LEN;
        }
        bytes / REPORT_LEN
    }

    fn start(tags: &[u32]) -> (Processes, OwnedFd, Vec<Process>) {
        let (control, init) = Control::pair().unwrap();
        let (processes, running) = Processes::adopt(control, 100, tags).unwrap();
        (processes, init, running)
    }

    async fn status(process: &Process) -> i32 {
        process.ended().await.unwrap().unwrap().status
    }

    #[tokio::test]
    async fn reports_find_their_commands_in_any_order() {
        let (_processes, init, running) = start(&[1, 2, 3]);
        for tag in [1, 2, 3] {
            say(&init, report(op::STARTED, tag, 0));
        }
        for (tag, status) in [(2, 20), (3, 30), (1, 10)] {
            say(&init, report(op::EXITED, tag, status));
        }
        for (process, expected) in running.iter().zip([10, 20, 30]) {
            process.started().await.unwrap();
            assert_eq!(status(process).await, expected);
            let exited = process.ended().await.unwrap().unwrap();
            assert_eq!((exited.cpu, exited.max_rss_bytes), (Duration::from_micros(5), 7 * 1024), "asked again");
        }
    }

    #[tokio::test]
    async fn what_was_not_told_is_there_for_the_next_one() {
        let (processes, init, mut running) = start(&[1, 2, 3]);
        for tag in [1, 2, 3] {
            say(&init, report(op::STARTED, tag, 0));
            say(&init, report(op::EXITED, tag, tag as i32));
        }
        for process in &running {
            assert_eq!(status(process).await, process.tag as i32);
        }
        // The second was released of; the first, which lies before it, was not.
        drop(running.remove(1));
        let kept = processes.as_fd().try_clone_to_owned().unwrap();
        std::mem::forget(running);
        processes.task.abort();
        let (_next, resumed) = Processes::adopt(Control::adopt(kept).unwrap(), TAGS, &[1, 3]).unwrap();
        assert_eq!((status(&resumed[0]).await, status(&resumed[1]).await), (1, 3));
    }

    #[tokio::test]
    async fn what_was_told_is_taken_away() {
        let (processes, init, running) = start(&[1, 2]);
        for tag in [1, 2] {
            say(&init, report(op::STARTED, tag, 0));
            say(&init, report(op::EXITED, tag, 0));
            // Of a command that nobody has.
            say(&init, report(op::EXITED, 50 + tag, 0));
        }
        for process in &running {
            status(process).await;
        }
        drop(running);
        let mut tries = 0;
        while !processes.shared.lock().left.is_empty() {
            tries += 1;
            assert!(tries < 1000);
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting(&processes), 0);
    }

    #[tokio::test]
    async fn a_container_that_ends_says_what_it_had_said_before() {
        let (processes, init, running) = start(&[1, 2]);
        say(&init, report(op::STARTED, 1, 0));
        say(&init, report(op::EXITED, 1, 9));
        // Ended without having read everything, which the kernel says first (ECONNRESET).
        running[0].signal(15).unwrap();
        drop(init);
        assert_eq!(status(&running[0]).await, 9);
        assert_eq!(running[1].ended().await.unwrap(), None);
        assert!(matches!(running[1].started().await, Err(ContainerError::InitEnded(_))));
        // Also one that comes too late.
        let late = processes.shared.next().unwrap();
        assert!(matches!(late.started().await, Err(ContainerError::InitEnded(_))));
    }

    #[tokio::test]
    async fn nonsense_is_said_to_be_nonsense() {
        let (_processes, init, running) = start(&[1]);
        say(&init, report(op::HELLO, 1, 0));
        assert!(matches!(running[0].started().await, Err(ContainerError::InitSaid(Some(op::HELLO)))));
        let (_processes, init, running) = start(&[1]);
        kernel::send(init.as_fd(), &[b"hello?"], &[]).unwrap();
        assert!(matches!(running[0].ended().await, Err(ContainerError::InitSaid(None))));
    }

    #[tokio::test]
    async fn no_more_commands_than_there_is_room_for_their_ends() {
        let (processes, _init, _) = start(&[]);
        let held: Vec<_> = (0..MAX_LEFT).map(|_| processes.shared.next().unwrap()).collect();
        assert!(matches!(processes.shared.next(), Err(ContainerError::Untold(MAX_LEFT))));
        drop(held);
        processes.shared.next().unwrap();
    }
}
