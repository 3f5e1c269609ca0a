//! The states of an execution, and what may happen in each.
//!
//! ```text
//!            wait
//!    ┌──────────────► queued
//! pending ◄────────────┘ assignment
//!    └──────────────── submit ─────► submitted ──── announce ────► running
//!
//! each of them ── end ──► exited            running ── wait, assignment, submit ──► once more
//! ```
//!
//! Pure: nothing here waits, logs or notifies. Whoever takes an accepted step also does what follows from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thaw_client::types::{ClaimPath, ExecutionState, Exit};

/// A command that was submitted, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// Id of its container.
    pub container: String,
    /// Tag of the command at `thaw-init`.
    pub tag: u32,
    /// Whether the container was warm or cold.
    pub path: ClaimPath,
    /// Time of submission, by the clock of [`thaw_os::kernel::since_boot`].
    pub since: Duration,
    /// Time at which the execution times out, by the same clock; set for a second command.
    #[serde(default)]
    pub until: Option<Duration>,
    /// Whether it is a CLI that ran already.
    #[serde(default)]
    pub prestarted: bool,
}

/// Where it runs, or ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Id of the container.
    pub container: String,
    /// Whether the container was warm or cold.
    pub path: ClaimPath,
}

/// A step of an execution.
#[derive(Debug, Clone)]
pub enum Step {
    /// The execution waits for a container, at this position in the fair queue.
    Wait(usize),
    /// The execution has a container.
    Assign,
    /// The command is about to be submitted.
    Submit(Submitted),
    /// Its command runs.
    Announce(Assignment),
    /// The execution has ended.
    End(Exit),
    /// The keeper holds the execution.
    Keep,
    /// The keeper no longer holds the execution.
    Release,
}

#[derive(Debug, Clone)]
enum Phase {
    Pending,
    Queued(usize),
    Submitted,
    Running(Assignment),
    Exited(Option<Assignment>, Exit),
}

/// A step that is not allowed in this phase, which is a bug.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an execution that is {phase} cannot {step}")]
pub struct Rejected {
    step: &'static str,
    phase: &'static str,
}

/// State of an execution.
#[derive(Debug, Clone)]
pub struct State {
    phase: Phase,
    /// The current command, or the last one.
    submitted: Option<Submitted>,
    is_kept: bool,
}

impl State {
    /// State of a new execution.
    pub fn new() -> Self {
        Self { phase: Phase::Pending, submitted: None, is_kept: false }
    }

    /// One that the keeper has, of an earlier daemon. It runs, or had ended; `assignment` is where.
    pub fn adopted(submitted: Option<Submitted>, assignment: Option<Assignment>, exit: Option<Exit>) -> Self {
        let of = |command: &Submitted| Assignment { container: command.container.clone(), path: command.path };
        let assignment = assignment.or_else(|| submitted.as_ref().map(of));
        let phase = match (exit, assignment) {
            (Some(exit), assignment) => Phase::Exited(assignment, exit),
            (None, Some(assignment)) => Phase::Running(assignment),
            (None, None) => Phase::Pending,
        };
        Self { phase, submitted, is_kept: true }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// [`Rejected`]; the state is then unchanged.
    pub fn take(&mut self, step: Step) -> Result<(), Rejected> {
        let rejected = Rejected { step: step.name(), phase: self.phase.name() };
        let has_ended = matches!(self.phase, Phase::Exited(..));
        match (&self.phase, step) {
            // Keep and release are independent of the phase.
            (_, Step::Keep) => self.is_kept = true,
            (_, Step::Release) if self.is_kept => self.is_kept = false,
            (_, Step::Release) => return Err(rejected),
            _ if has_ended => return Err(rejected),
            // Also from running: the request is repeated.
            (_, Step::Wait(position)) => self.phase = Phase::Queued(position),
            (Phase::Queued(_), Step::Assign) => self.phase = Phase::Pending,
            // The execution did not have to wait.
            (_, Step::Assign) => {}
            (Phase::Queued(_), Step::Submit(_)) => return Err(rejected),
            // There is nothing yet that could run.
            (Phase::Pending | Phase::Queued(_), Step::Announce(_)) => return Err(rejected),
            (_, Step::Submit(command)) => {
                self.submitted = Some(command);
                // While the second command is submitted, the execution still shows as running.
                if !matches!(self.phase, Phase::Running(_)) {
                    self.phase = Phase::Submitted;
                }
            }
            (_, Step::Announce(assignment)) => self.phase = Phase::Running(assignment),
            (phase, Step::End(exit)) => {
                let assignment = if let Phase::Running(assignment) = phase { Some(assignment.clone()) } else { None };
                self.phase = Phase::Exited(assignment, exit);
            }
        }
        Ok(())
    }

    /// The state that the API shows.
    pub fn shown(&self) -> ExecutionState {
        match self.phase {
            Phase::Pending | Phase::Submitted => ExecutionState::Pending,
            Phase::Queued(_) => ExecutionState::Queued,
            Phase::Running(_) => ExecutionState::Running,
            Phase::Exited(..) => ExecutionState::Exited,
        }
    }

    /// Position in the fair queue, while the execution waits.
    pub fn queue_position(&self) -> Option<usize> {
        if let Phase::Queued(position) = self.phase { Some(position) } else { None }
    }

    /// Container that the execution runs or ran in.
    pub fn assignment(&self) -> Option<&Assignment> {
        match &self.phase {
            Phase::Running(assignment) => Some(assignment),
            Phase::Exited(assignment, _) => assignment.as_ref(),
            Phase::Pending | Phase::Queued(_) | Phase::Submitted => None,
        }
    }

    /// The `exit` event, once the execution has ended.
    pub fn exit(&self) -> Option<&Exit> {
        if let Phase::Exited(_, exit) = &self.phase { Some(exit) } else { None }
    }

    /// The current command, or the last one.
    pub fn submitted(&self) -> Option<&Submitted> {
        self.submitted.as_ref()
    }

    /// Whether the keeper holds the execution.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }
}

impl Step {
    fn name(&self) -> &'static str {
        match self {
            Self::Wait(_) => "wait",
            Self::Assign => "get a container",
            Self::Submit(_) => "hand a command over",
            Self::Announce(_) => "start",
            Self::End(_) => "end",
            Self::Keep => "be kept",
            Self::Release => "be released",
        }
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued(_) => "queued",
            Self::Submitted => "submitted",
            Self::Running(_) => "running",
            Self::Exited(..) => "exited",
        }
    }
}

#[cfg(test)]
mod tests {
    use thaw_client::types::ExitReason;

    use super::*;

    fn assignment(container: &str) -> Assignment {
        Assignment { container: container.to_owned(), path: ClaimPath::Warm }
    }

    fn command(container: &str) -> Submitted {
        let (tag, path, since) = (1, ClaimPath::Warm, Duration::ZERO);
        Submitted { container: container.to_owned(), tag, path, since, until: None, prestarted: false }
    }

    fn exit(code: i32) -> Exit {
        Exit {
            code: Some(code),
            signal: None,
            reason: ExitReason::Exited,
            success: true,
            detail: None,
            duration_ms: 1,
            cpu_ms: 1,
            memory_peak_bytes: 1,
            collected: None,
            request_id: None,
            at: None,
        }
    }

    fn after(steps: &[Step]) -> State {
        let mut state = State::new();
        steps.iter().for_each(|step| state.take(step.clone()).unwrap());
        state
    }

    #[test]
    fn what_each_state_accepts() {
        use Step::{Announce, Assign, End, Keep, Release, Submit, Wait};
        let steps = [Wait(2), Assign, Submit(command("c")), Announce(assignment("c")), End(exit(0)), Keep, Release];
        let states = [
            (vec![], "pending"),
            (vec![Wait(1)], "queued"),
            (vec![Submit(command("c"))], "submitted"),
            (vec![Submit(command("c")), Announce(assignment("c"))], "running"),
            (vec![End(exit(0))], "exited"),
        ];
        // What each step leads to; "-" for one that is rejected. Columns as in `steps`.
        let table = [
            "queued pending submitted - exited pending -",
            "queued pending - - exited queued -",
            "queued submitted submitted running exited submitted -",
            "queued running running running exited running -",
            "- - - - - exited -",
        ];
        for ((before, name), row) in states.iter().zip(table) {
            for (step, expected) in steps.iter().zip(row.split(' ')) {
                let mut state = after(before);
                assert_eq!(state.phase.name(), *name);
                let taken = state.take(step.clone()).map_or("-", |()| state.phase.name());
                assert_eq!(taken, expected, "{name}: {}", step.name());
                if expected == "-" {
                    assert_eq!((state.phase.name(), state.is_kept), (*name, false), "nothing has changed");
                }
            }
        }
    }

    #[test]
    fn it_ends_once_and_says_where_it_ran() {
        let mut state = after(&[Step::Submit(command("c-1")), Step::Announce(assignment("c-1")), Step::End(exit(3))]);
        let again = state.take(Step::End(exit(4))).unwrap_err();
        assert_eq!(again.to_string(), "an execution that is exited cannot end");
        assert_eq!((state.exit().unwrap().code, state.assignment().unwrap().container.as_str()), (Some(3), "c-1"));
        assert_eq!(state.shown(), ExecutionState::Exited);
    }

    #[test]
    fn one_that_is_asked_again_runs_elsewhere() {
        let first = [Step::Submit(command("c-1")), Step::Announce(assignment("c-1"))];
        let mut state = after(&first);
        state.take(Step::Wait(4)).unwrap();
        assert_eq!((state.shown(), state.queue_position()), (ExecutionState::Queued, Some(4)));
        for step in [Step::Assign, Step::Submit(command("c-2")), Step::Announce(assignment("c-2"))] {
            state.take(step).unwrap();
        }
        assert_eq!(state.assignment().unwrap().container, "c-2");
        assert_eq!(state.submitted().unwrap().container, "c-2");
    }

    #[test]
    fn one_of_an_earlier_daemon_runs_or_has_ended() {
        let state = State::adopted(Some(command("c")), None, None);
        assert_eq!((state.shown(), state.is_kept()), (ExecutionState::Running, true));
        let state = State::adopted(None, None, Some(exit(1)));
        assert_eq!((state.shown(), state.assignment()), (ExecutionState::Exited, None));
        let mut state = State::adopted(None, Some(assignment("c-1")), Some(exit(1)));
        assert_eq!(
            (state.shown(), state.assignment()),
            (ExecutionState::Exited, Some(&assignment("c-1"))),
            "where it ran"
        );
        state.take(Step::Release).unwrap();
        assert!(!state.is_kept() && state.take(Step::Release).is_err(), "it is released once");
    }
}
