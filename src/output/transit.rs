//! Transit pipe: a second pipe for a command that writes faster than its output is moved into a file.
//!
//! The kernel locks a pipe while data is copied out of it; a writer waits meanwhile, and spins on a processor. Moving
//! pages from one pipe to another copies nothing, so the lock is held for microseconds only. Nobody writes to the
//! second pipe while it is copied to the file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::SpliceFlags;

use super::pipe::PIPE_BYTES;
use super::spool::Spool;
use super::stream::Stream;
use crate::failpoints;
use crate::keeper::{Keeper, Key};

/// Reports transit pipes to the keeper: their content is in no file yet when the daemon is killed.
#[derive(Debug, Clone)]
pub struct Shelter {
    keeper: Option<Arc<Keeper>>,
    key: Key,
}

impl Shelter {
    /// Shelter for a stream of an execution.
    pub fn new(keeper: Option<Arc<Keeper>>, execution: &str, stream: Stream) -> Self {
        Self { keeper, key: transit_key(execution, stream) }
    }
}

/// Key under which the keeper holds the transit pipe of a stream.
pub fn transit_key(execution: &str, stream: Stream) -> Key {
    Key::Transit(execution.to_owned(), stream.name().to_owned())
}

/// The transit pipe. Drop it when it is empty: the keeper then forgets it.
#[derive(Debug)]
pub struct Transit {
    reader: Arc<OwnedFd>,
    writer: OwnedFd,
    shelter: Shelter,
}

impl Transit {
    /// An empty transit pipe.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(shelter: &Shelter) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // As large as the first pipe; refused beyond the limits of pipe(7).
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
        let reader = Arc::new(OwnedFd::from(reader));
        if let Some(keeper) = &shelter.keeper {
            keeper.put(shelter.key.clone(), String::new(), vec![Arc::clone(&reader)]);
        }
        Ok(Self { reader, writer: writer.into(), shelter: shelter.clone() })
    }

    /// Moves up to `most` bytes from `pipe` to the end of `spool`. Returns how many; 0 is the end of the pipe.
    ///
    /// # Errors
    /// As [`Spool::take`].
    pub fn pass(&self, pipe: BorrowedFd<'_>, spool: &Spool, most: usize) -> io::Result<usize> {
        let moved = rustix::pipe::splice(pipe, None, &self.writer, None, most, SpliceFlags::NONBLOCK)?;
        failpoints::at("run.moved");
        drain_transit(self.reader.as_fd(), spool, most)?;
        Ok(moved)
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        if let Some(keeper) = &self.shelter.keeper {
            keeper.forget(&self.shelter.key);
        }
    }
}

/// Moves everything from a transit pipe to the end of `spool`.
///
/// # Errors
/// As [`Spool::take`].
pub fn drain_transit(reader: BorrowedFd<'_>, spool: &Spool, most: usize) -> io::Result<()> {
    loop {
        match spool.take(reader, most) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            taken => drop(taken?),
        }
    }
}
