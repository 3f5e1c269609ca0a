//! What a daemon goes on with of an execution that an earlier one began.

use std::os::fd::OwnedFd;

use super::place::Place;
use super::state::Submitted;
use crate::container::Process;

/// What is needed to go on with a command.
pub(super) struct Resumable {
    pub(super) container: Place,
    pub(super) process: Process,
    pub(super) command: Submitted,
    /// Standard output and standard error.
    pub(super) output: [OwnedFd; 2],
    /// Of a CLI that was prestarted: its standard input, and what is said to it.
    pub(super) conversation: Option<[OwnedFd; 2]>,
}
