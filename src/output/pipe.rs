//! The pipes that commands write to.

use std::io;
use std::os::fd::OwnedFd;

/// Capacity asked for at most, bytes: fewer wake-ups while much is written. What is not written costs nothing.
pub const PIPE_BYTES: usize = 256 * 1024;

/// A pipe whose read end is ours and does not block, of about `capacity` bytes.
pub fn output_pipe(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    // Refused beyond the limits of pipe(7), where the default does as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, capacity.min(PIPE_BYTES));
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader.into(), writer.into()))
}
