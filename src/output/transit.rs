//! A second pipe, for a command that writes faster than its output is moved into a file.
//!
//! A pipe is locked while it is copied from: whoever writes to it meanwhile waits, and burns a processor while doing so.
//! Pages that go from one pipe to another are not copied, so that this lock is held for microseconds; from the second
//! pipe nobody waits for anything.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::SpliceFlags;

use super::pipe::PIPE_BYTES;
use super::spool::Spool;
use super::stream::Stream;
use crate::failpoints;
use crate::keeper::{Keeper, Key};

/// Where the keeper is told of such pipes: what is in one is on no file yet when the daemon is killed.
#[derive(Debug, Clone)]
pub struct Shelter {
    keeper: Option<Arc<Keeper>>,
    key: String,
}

impl Shelter {
    /// For a stream of an execution.
    pub fn new(keeper: Option<Arc<Keeper>>, execution: &str, stream: Stream) -> Self {
        Self { keeper, key: transit_key(execution, stream).to_string() }
    }
}

/// Whose the second pipe of a stream is, for the keeper.
pub fn transit_key(execution: &str, stream: Stream) -> Key {
    Key::Transit(execution.to_owned(), stream.name().to_owned())
}

/// The second pipe. Dropped, when it is empty, the keeper forgets it.
#[derive(Debug)]
pub struct Transit {
    reader: Arc<OwnedFd>,
    writer: OwnedFd,
    shelter: Shelter,
}

impl Transit {
    /// An empty one.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(shelter: &Shelter) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // As large as what comes out of the first one at once; refused beyond the limits of pipe(7).
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
        let reader = Arc::new(OwnedFd::from(reader));
        if let Some(keeper) = &shelter.keeper {
            keeper.put(&shelter.key, String::new(), vec![Arc::clone(&reader)]);
        }
        Ok(Self { reader, writer: writer.into(), shelter: shelter.clone() })
    }

    /// Moves what is in `pipe` to the end of `spool`, at most `most` bytes. Returns how many; 0 is the end of the pipe.
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

/// Moves everything that is in a second pipe to the end of `spool`.
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
