//! The states of a sandbox, and what may happen in each.
//!
//! ```text
//! creating ── begin ──► active ── freeze ──► frozen
//!     │                  │ ▲ ▲                 │ │
//!     │                  │ │ └───── wake ──────┘ │
//!     │                  │ start                 │
//!     │                  ▼ │                     ▼
//!     │                 stopped ◄──── stop ──────┘
//!     │                  │ ▲
//!     │               break start
//!     │                  ▼ │
//!     │                 broken
//!     └── end ──► gone, from each of them
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
    /// Its container is gone, and its storage kept.
    Stop,
    /// It has a container again, over its storage.
    Start,
    /// Its storage cannot be used.
    Break,
    /// Its container is gone for good.
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
        (State::Active | State::Frozen, Step::Stop) => Ok(State::Stopped),
        (State::Stopped | State::Broken, Step::Start) => Ok(State::Active),
        (State::Stopped | State::Broken, Step::Break) => Ok(State::Broken),
        (State::Gone, Step::End) => Err(Rejected { step, state }),
        (_, Step::End) => Ok(State::Gone),
        _ => Err(Rejected { step, state }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_state_accepts() {
        let steps = [Step::Begin, Step::Freeze, Step::Wake, Step::Stop, Step::Start, Step::Break, Step::End];
        // What each step leads to; "-" for one that is rejected. Columns as in `steps`.
        let table = [
            "active - - - - - gone",
            "- frozen - stopped - - gone",
            "- - active stopped - - gone",
            "- - - - active broken gone",
            "- - - - active broken gone",
            "- - - - - - -",
        ];
        for (state, row) in State::ALL.into_iter().zip(table) {
            for (step, expected) in steps.into_iter().zip(row.split(' ')) {
                assert_eq!(after(state, step).map_or("-", State::name), expected, "{}: {step:?}", state.name());
            }
        }
        let error = after(State::Gone, Step::Wake).unwrap_err().to_string();
        assert_eq!(error, "a sandbox that is gone cannot Wake");
    }
}
