//! The pipe that a command reads.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::net::unix::pipe;

/// Capacity of the pipe for standard input, bytes: at least the default (pipe(7)), at most the default limit of a
/// request.
const STDIN_PIPE: usize = 64 * 1024;
const MAX_STDIN_PIPE: usize = 16 << 20;

/// A pipe with what the command reads. The pipe holds all of it, so that the command gets it whatever becomes of the
/// daemon; if the kernel allows none so large, the writer comes with what is in it already.
pub(super) fn input(text: &[u8]) -> io::Result<(OwnedFd, Option<(pipe::Sender, usize)>)> {
    let (reader, writer) = io::pipe()?;
    // Refused beyond the limits of pipe(7).
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, text.len().clamp(STDIN_PIPE, MAX_STDIN_PIPE));
    rustix::io::ioctl_fionbio(&writer, true)?;
    let mut sent = 0;
    while sent < text.len() {
        match rustix::io::write(&writer, &text[sent..]) {
            Ok(written) => sent += written,
            Err(Errno::AGAIN) => {
                return Ok((reader.into(), Some((pipe::Sender::from_owned_fd(writer.into())?, sent))));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((reader.into(), None))
}
