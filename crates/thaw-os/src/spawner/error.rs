//! Why a container could not be set up.

use std::io;

use super::filter_error::FilterError;
use super::shortage;

/// What a step of a container's creation gives.
pub type Result<T> = std::result::Result<T, SetUpError>;

/// Why a container could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The kernel refuses a step.
    #[error("{step}: {source}")]
    Step {
        /// What was to be done.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refuses a step, and the number of its error stands for a limit of the host.
    #[error("{step}: {}", shortage::told(source))]
    Shortage {
        /// What was to be done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The system call filter cannot be compiled.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A message between the processes that make a container cannot be read or written.
    #[error("a message about the container: {0}")]
    Message(#[from] serde_json::Error),
    /// A message came without a descriptor that belongs to it.
    #[error("{0} sent too few descriptors")]
    Descriptors(&'static str),
    /// The other process is gone.
    #[error("{0} ended before the container was set up")]
    Ended(&'static str),
    /// The container's first process said twice that it was ready.
    #[error("the container's first process was ready twice")]
    ReadyTwice,
    /// A part of the container is not what it has to be.
    #[error("{what} is not {wanted}")]
    Unexpected {
        /// The part.
        what: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// The request names a part that needs another one.
    #[error("{what} needs {missing}")]
    Incomplete {
        /// The part.
        what: String,
        /// What there has to be.
        missing: &'static str,
    },
    /// The container's first process could not do its part.
    #[error("{0}")]
    Child(String),
}

/// The error of a step.
pub fn failed<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> SetUpError {
    move |source| SetUpError::Step { step: step.into(), source: source.into() }
}
