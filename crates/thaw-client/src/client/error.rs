//! Errors between a client and the daemon, with a text that says what to do.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::types::Problem;

/// Failure of a request to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket could not be connected to.
    #[error("cannot connect to {}: {source}; {}", socket.display(), advice(source))]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection broke, or stayed silent for too long.
    #[error("the connection to the daemon broke: {0}")]
    Broken(String),
    /// The daemon refused the request.
    #[error(
        "{} ({}{}){}", .0.detail, .0.code, .0.request_id.as_ref().map(|id| format!(", request {id}")).unwrap_or_default(),
        if .0.retryable { "; try again later" } else { "" }
    )]
    Problem(Box<Problem>),
    /// The daemon's answer is not understood by this client.
    #[error("{0}")]
    Protocol(String),
    /// The text cannot be an id of an execution.
    #[error("{0:?} is no execution id: ids consist of a-z, 0-9 and '-'; `thawctl ps --all` lists them")]
    BadId(String),
}

impl ClientError {
    /// Whether the same request can succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken(_) => true,
            Self::Problem(problem) => problem.retryable,
            Self::Protocol(_) | Self::BadId(_) => false,
        }
    }

    pub(super) fn from_reqwest(error: reqwest::Error, socket: &Path) -> Self {
        if error.is_connect() {
            let source = io_cause(&error).unwrap_or_else(|| io::Error::other(innermost(&error)));
            return Self::Connect { socket: socket.to_path_buf(), source };
        }
        if error.is_builder() {
            return Self::Protocol(format!("cannot make the request: {}", innermost(&error)));
        }
        Self::Broken(if error.is_timeout() { "it did not answer in time".to_owned() } else { innermost(&error) })
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or add your user to the group thawd and log in again",
        io::ErrorKind::NotFound => "is thawd running? Start it, or name its socket with --socket or THAWD_SOCKET",
        io::ErrorKind::ConnectionRefused => "nothing listens there any more: is thawd running? Start it again",
        _ => "is thawd running, and is this its socket?",
    }
}

/// The innermost cause. The outer layers of a reqwest error only repeat the URL, which says nothing on a Unix socket.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn io_cause(error: &(dyn Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.raw_os_error().map_or_else(|| io.kind().into(), io::Error::from_raw_os_error));
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_says_what_to_do() {
        let text = |kind: io::ErrorKind| ClientError::Connect { socket: "/s".into(), source: kind.into() }.to_string();
        assert!(text(io::ErrorKind::PermissionDenied).contains("group thawd"));
        assert!(text(io::ErrorKind::NotFound).contains("is thawd running?"));
        assert!(text(io::ErrorKind::ConnectionRefused).starts_with("cannot connect to /s: "));
    }
}
