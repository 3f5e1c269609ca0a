//! The commands of one container. Its control task reads what `thaw-init` reports and routes it by tag to [`Process`]
//! handles.
//!
//! ```text
//! submitted ──► running ──► exited
//!     └──► failed                         each of them ──► gone, when the container ended first
//! ```
//!
//! How a command ended stays in the control socket until the owner of its handle has told of it (drops the handle): a
//! daemon that is killed before finds it there again. Reports behind it are looked at over it (`SO_PEEK_OFF`, socket(7))
//! and are taken away in order.

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

/// Most commands of one container whose end has not been told, and reports that wait behind one of them. Another command
/// is refused then, so that `thaw-init` never waits for room in its socket.
pub const MAX_LEFT: usize = 1024;

/// Tags that one daemon gives out in a container. The next daemon begins behind them: what is still said about a command
/// of the earlier one, which nobody waits for, is then never taken for a report about a new one.
pub(super) const TAGS: u32 = 1 << 20;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// Wait status (wait(2)).
    pub status: i32,
    /// CPU time of the command and of those of its children that it has waited for.
    pub cpu: Duration,
    /// Largest resident memory of one of them, bytes.
    pub max_rss_bytes: u64,
}

/// How far a command has come.
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
    /// `thaw-init` cannot be understood; said by a report with this opcode, or by something that is none.
    Broken(Option<u8>),
}

impl Phase {
    fn is_last(&self) -> bool {
        !matches!(self, Self::Submitted | Self::Running)
    }
}

/// The commands of a container, as its owner has them. Dropping it ends the control task.
#[derive(Debug)]
pub(super) struct Processes {
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    control: Control,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    commands: BTreeMap<u32, watch::Sender<Phase>>,
    /// Reports that have been looked at and are still in the socket, oldest first.
    left: VecDeque<Left>,
    first_tag: u32,
    next_tag: u32,
    /// Why there will be no other report.
    over: Option<Phase>,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    tag: u32,
    /// Whether nobody needs it any more.
    told: bool,
}

impl State {
    /// Says how a command fares; whether the report may be taken away.
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

    /// No report follows.
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

/// A report that has no meaning here.
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
            // Looking at a report and noting that it is there are one step for whoever takes reports away.
            let looked = self.control.look(|socket| {
                let mut state = self.lock();
                let Some(report) = control::peek(socket)? else { return Ok(false) };
                // Also one that is not understood lies in the way of those behind it; but none of these is read.
                let told = state.route(&report)?;
                state.left.push_back(Left { tag: report.tag, told });
                self.take_away(&mut state);
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
            return self.lock().end(phase);
        }
    }

    /// Takes the oldest reports away, as far as nobody needs them.
    fn take_away(&self, state: &mut State) {
        while state.left.front().is_some_and(|left| left.told) {
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

    /// A command with the next tag.
    fn next(self: &Arc<Self>) -> Result<Process, ContainerError> {
        let mut state = self.lock();
        // Each command has at most three reports at a time: those of the ones that run come on top.
        if state.left.len() + state.commands.len() >= MAX_LEFT {
            return Err(ContainerError::Untold(MAX_LEFT));
        }
        let tag = state.next_tag;
        state.next_tag = state.next_tag.wrapping_add(1);
        Ok(self.register(&mut state, tag))
    }
}

impl Processes {
    /// Of a new container whose `thaw-init` has said hello.
    ///
    /// # Errors
    /// The socket cannot be looked at.
    pub fn new(control: Control) -> io::Result<Self> {
        Ok(Self::start(control, 1, &[])?.0)
    }

    /// Of one that an earlier daemon had. `running` are the tags of commands that go on; tags begin with `first_tag`.
    ///
    /// # Errors
    /// The socket cannot be looked at.
    pub fn adopt(control: Control, first_tag: u32, running: &[u32]) -> io::Result<(Self, Vec<Process>)> {
        Self::start(control, first_tag, running)
    }

    fn start(control: Control, first_tag: u32, running: &[u32]) -> io::Result<(Self, Vec<Process>)> {
        control.look_from_the_start()?;
        let state =
            State { commands: BTreeMap::new(), left: VecDeque::new(), first_tag, next_tag: first_tag, over: None };
        let shared = Arc::new(Shared { control, state: Mutex::new(state) });
        let resumed = {
            let mut state = shared.lock();
            running.iter().map(|tag| shared.register(&mut state, *tag)).collect()
        };
        let task = tokio::spawn(Arc::clone(&shared).read()).abort_handle();
        Ok((Self { shared, task }, resumed))
    }

    /// First of the tags that this daemon gives.
    pub fn first_tag(&self) -> u32 {
        self.shared.lock().first_tag
    }

    /// Tag of the next command.
    pub fn next_tag(&self) -> u32 {
        self.shared.lock().next_tag
    }

    /// Hands a command over, which waits in the socket while the container is frozen.
    ///
    /// # Errors
    /// The container is gone, or its socket is full.
    pub fn submit(&self, command: &Encoded, host_name: &str, stdio: &Stdio<'_>) -> Result<Process, ContainerError> {
        let process = self.shared.next()?;
        self.shared.control.spawn(process.tag, command, host_name, stdio).map_err(ContainerError::Control)?;
        Ok(process)
    }

    /// The same, waiting while the socket is full.
    ///
    /// # Errors
    /// The container is gone.
    pub async fn submit_in_turn(
        &self,
        command: &Encoded,
        host_name: &str,
        stdio: &Stdio<'_>,
    ) -> Result<Process, ContainerError> {
        let process = self.shared.next()?;
        let sent = self.shared.control.spawn_in_turn(process.tag, command, host_name, stdio).await;
        sent.map_err(ContainerError::Control)?;
        Ok(process)
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
        // Nobody reads what its commands become any more; their handles may outlive the container.
        self.shared.lock().end(Phase::Gone);
    }
}

/// One command in a container. Dropping it says that its end has been told, or that nobody wants to know it; the command
/// itself goes on.
#[derive(Debug)]
pub struct Process {
    tag: u32,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

impl Process {
    /// What it is called between daemon and `thaw-init`.
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// Waits until it runs. Can be asked again.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when it cannot be executed; the container ended or broke before.
    pub async fn started(&self) -> Result<(), ContainerError> {
        match self.when(|phase| *phase != Phase::Submitted).await {
            Phase::Failed { stage, errno } => Err(ContainerError::Start { stage, errno }),
            Phase::Gone => Err(ContainerError::InitEnded("before the command ran")),
            Phase::Broken(report) => Err(ContainerError::InitSaid(report)),
            Phase::Submitted | Phase::Running | Phase::Exited(_) => Ok(()),
        }
    }

    /// Waits until it ends; `None` when the whole container ended first. Can be asked again.
    ///
    /// # Errors
    /// [`ContainerError::Start`] when it could not be executed; the container broke.
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
        // The sender is there for as long as this handle is.
        let found = phase.wait_for(wanted).await.map(|phase| *phase);
        found.unwrap_or(Phase::Gone)
    }

    /// Sends a signal to its process group, if it has not ended.
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
            left.told = true;
        }
        self.shared.take_away(&mut state);
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
        // The second was told of; the first, which lies before it, was not.
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
