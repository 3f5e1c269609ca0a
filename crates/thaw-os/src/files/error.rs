//! What can be wrong with a file.

use std::io;

use rustix::io::Errno;

use crate::workspace::shown;

/// Why something cannot be done with a file.
#[derive(Debug, thiserror::Error)]
#[error("{path:?} {why}")]
pub struct FileError {
    /// Which; on one line.
    pub path: String,
    /// Why.
    pub why: Why,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Nothing has that path.
    #[error("is not there")]
    Missing,
    /// It is something else than a regular file.
    #[error("is {0}, and no file")]
    NotAFile(&'static str),
    /// It, or something above it, is no directory.
    #[error("is no directory, or lies in something that is none")]
    NotADirectory,
    /// There is something already.
    #[error("is there already")]
    Exists,
    /// It is not what the request's condition says.
    #[error("is not as the request says that it is; read it again")]
    Changed,
    /// A process holds a lease on it, or what lies above it changes all the time.
    #[error("is busy: a process in the sandbox holds a lease on it, or keeps moving what it lies in")]
    Busy,
    /// There is something in it.
    #[error("is a directory with something in it")]
    NotEmpty,
    /// It is a file of the kernel's, or a credential.
    #[error("belongs to the kernel or to thawd; use a command to read it, if it may")]
    Hidden,
    /// It lies on another file system.
    #[error("lies on another file system, or is the top of one")]
    Elsewhere,
    /// The container's user may not do that.
    #[error("cannot be used by the sandbox's user: {0}")]
    Denied(io::Error),
    /// There is no room.
    #[error("does not fit into the sandbox: {0}")]
    Full(io::Error),
    /// It is no path, or no archive.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be packed as a whole.
    #[error("cannot be packed: it {0}")]
    Unpackable(String),
    /// It is more than one call may take.
    #[error("{0}")]
    TooLarge(String),
    /// Anything else.
    #[error("cannot be used: {0}")]
    Io(io::Error),
}

impl FileError {
    /// About `path`.
    pub fn new(path: &[u8], why: impl Into<Why>) -> Self {
        Self { path: shown(path), why: why.into() }
    }
}

impl From<Errno> for Why {
    fn from(errno: Errno) -> Self {
        let error = io::Error::from(errno);
        match errno {
            Errno::NOENT => Self::Missing,
            Errno::NOTDIR => Self::NotADirectory,
            Errno::EXIST => Self::Exists,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::ISDIR => Self::NotAFile("a directory"),
            Errno::AGAIN => Self::Busy,
            // A magic link of /proc gives ELOOP too, and so does a circle of links.
            Errno::LOOP => Self::Invalid("leads in a circle, or through a link of the kernel's".to_owned()),
            Errno::NAMETOOLONG => Self::Invalid("has a name that is too long".to_owned()),
            Errno::XDEV | Errno::BUSY => Self::Elsewhere,
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::OVERFLOW => Self::Denied(error),
            Errno::NOSPC | Errno::DQUOT => Self::Full(error),
            _ => Self::Io(error),
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).map_or(Self::Io(error), Self::from)
    }
}

/// Adds which path an error is about.
pub(super) fn at<E: Into<Why>>(path: &[u8]) -> impl FnOnce(E) -> FileError {
    move |error| FileError::new(path, error)
}
