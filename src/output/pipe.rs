//! Pipes that commands write to.

use std::io;
use std::os::fd::OwnedFd;

/// Capacity of a pipe, bytes, at most. A large pipe means fewer wake-ups; unused capacity costs no memory.
pub const PIPE_BYTES: usize = 256 * 1024;

/// Makes a pipe of about `capacity` bytes; its read end stays with the daemon and does not block.
pub fn output_pipe(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    // Refused beyond the limits of pipe(7); the default capacity works as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, capacity.min(PIPE_BYTES));
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader.into(), writer.into()))
}
