//! The states of a sandbox, and what may happen in each.
//!
//! ```text
//! creating ── begin ──► active ── freeze ──► frozen
//!     │                   │ ▲                  │ │
//!     │                   │ └───── wake ───────┘ │
//!     └─────── end ───────┴─────── end ──────────┴──► gone
//! ```
//!
//! Pure: nothing here waits, logs or notifies. Whoever takes an accepted step also does what follows from it.

use thaw_client::types::SandboxState as State;

/// A step of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has its container.
    Begin,
    /// Its processes were frozen.
    Freeze,
    /// They run again.
    Wake,
    /// Its container is gone.
    End,
}

/// A step that is not allowed in this state, which is a bug.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {} cannot {step:?}", state.name())]
pub struct Rejected {
    step: Step,
    state: State,
}

/// The state after `step`.
///
/// # Errors
/// [`Rejected`].
pub fn after(state: State, step: Step) -> Result<State, Rejected> {
    match (state, step) {
        (State::Creating, Step::Begin) | (State::Frozen, Step::Wake) => Ok(State::Active),
        (State::Active, Step::Freeze) => Ok(State::Frozen),
        (State::Creating | State::Active | State::Frozen, Step::End) => Ok(State::Gone),
        _ => Err(Rejected { step, state }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_state_accepts() {
        let steps = [Step::Begin, Step::Freeze, Step::Wake, Step::End];
        // What each step leads to; "-" for one that is rejected. Columns as in `steps`.
        let table = ["active - - gone", "- frozen - gone", "- - active gone", "- - - -"];
        for (state, row) in State::ALL.into_iter().zip(table) {
            for (step, expected) in steps.into_iter().zip(row.split(' ')) {
                assert_eq!(after(state, step).map_or("-", State::name), expected, "{}: {step:?}", state.name());
            }
        }
        let error = after(State::Gone, Step::Wake).unwrap_err().to_string();
        assert_eq!(error, "a sandbox that is gone cannot Wake");
    }
}
