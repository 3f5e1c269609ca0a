//! Datagrams with descriptors over a Unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Most descriptors in one message.
const MAX_FDS: usize = 32;

/// A received datagram.
#[derive(Debug)]
pub struct Received {
    /// Length of the datagram, bytes; 0 means that the other end is closed.
    pub length: usize,
    /// Descriptors that came with the datagram, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends one datagram made of `parts`, with `fds`.
///
/// # Errors
/// EMSGSIZE when it exceeds the socket's buffer, EPIPE when the other end is closed, [`io::ErrorKind::WouldBlock`]
/// when a non-blocking socket's buffer is full.
pub fn send(socket: BorrowedFd<'_>, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MAX_FDS} descriptors")));
    }
    rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one datagram into `buffer`.
///
/// # Errors
/// A datagram that did not fit, and `EMFILE` for descriptors beyond the limit of open files, besides those of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message did not fit its buffer"));
    }
    // The buffer has room for the most descriptors that are ever sent. So truncation means that the limit of open files
    // is reached (unix(7)).
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE.into());
    }
    Ok(Received { length: message.bytes, fds })
}

/// Copies the next datagram into `buffer` without removing it from the socket; returns its length, 0 at the end. Its
/// descriptors stay with the datagram.
///
/// # Errors
/// Those of recv(2).
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (length, _) = rustix::net::recv(socket, buffer, RecvFlags::PEEK)?;
    Ok(length)
}

/// Resets peeking: from now on each [`peek`] returns the datagram after the last one peeked at, beginning with the
/// oldest. The kernel adjusts the offset for datagrams received with [`receive`]. The offset belongs to the socket, not
/// to this descriptor.
///
/// # Errors
/// The socket does not support the offset.
pub fn peek_from_the_start(socket: BorrowedFd<'_>) -> io::Result<()> {
    let offset: libc::c_int = 0;
    // SAFETY: the option takes one int (socket(7), SO_PEEK_OFF), which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
