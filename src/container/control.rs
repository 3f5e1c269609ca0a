//! Control socket of a container: the daemon's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::Interest;

use super::command::{Encoded, Stdio};
use thaw_os::kernel::{self, Watched};
use thaw_wire::{MAX_DATAGRAM, Report, Signal};

/// Size of the daemon's send buffer, bytes: the kernel charges overhead on top of the largest datagram.
const SEND_BUFFER: usize = 2 * MAX_DATAGRAM;

/// Size of `thaw-init`'s send buffer, bytes: room for more reports than [`super::processes::MAX_LEFT`], each charged
/// with less than 1 KiB. With a full buffer `thaw-init` would block, and no command in the container could start or
/// end.
const REPORT_BUFFER: usize = 1 << 20;

/// The daemon's end of the socket.
#[derive(Debug)]
pub struct Control {
    socket: Watched,
}

impl Control {
    /// A connected pair: the daemon's end, and the end for `thaw-init`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        for (socket, bytes) in [(&ours, SEND_BUFFER), (&theirs, REPORT_BUFFER)] {
            if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
                // Without CAP_NET_ADMIN in the host's namespace, net.core.wmem_max is the limit: large prompts may be
                // refused.
                rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes)?;
            }
        }
        let socket = Watched::new(ours, Interest::READABLE | Interest::WRITABLE)?;
        Ok((Self { socket }, theirs))
    }

    /// Takes the end that an earlier daemon had.
    ///
    /// # Errors
    /// It cannot be polled.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Watched::new(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Submits a command; works while the container is frozen.
    ///
    /// # Errors
    /// The container is gone (EPIPE), or the command is too large.
    pub fn spawn(&self, tag: u32, command: &Encoded, host_name: &str, stdio: &Stdio<'_>) -> io::Result<()> {
        send_spawn(self.socket.fd(), tag, command, host_name, stdio)
    }

    /// As [`Self::spawn`], but waits while the socket is full.
    ///
    /// # Errors
    /// The container is gone (EPIPE).
    pub async fn spawn_in_turn(
        &self,
        tag: u32,
        command: &Encoded,
        host_name: &str,
        stdio: &Stdio<'_>,
    ) -> io::Result<()> {
        self.socket.run(Interest::WRITABLE, |socket| send_spawn(socket, tag, command, host_name, stdio)).await
    }

    /// Sends a signal to a command's process group.
    ///
    /// # Errors
    /// The container is gone.
    pub fn signal(&self, tag: u32, signal: i32) -> io::Result<()> {
        let message = Signal { tag, signal: signal as u32 };
        kernel::send(self.socket.fd(), &[&message.encode()], &[])
    }

    /// Receives the next report; `None` if the container is gone.
    ///
    /// # Errors
    /// The datagram is not a report.
    pub async fn report(&self) -> io::Result<Option<Report>> {
        let mut buffer = [0; 64];
        let received = self.socket.run(Interest::READABLE, |socket| kernel::receive(socket, &mut buffer)).await;
        match received {
            Ok(received) if received.length == 0 => Ok(None),
            Ok(received) => decode(&buffer[..received.length]).map(Some),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Resets peeking: from now on each [`peek`] returns the report after the last one peeked at.
    ///
    /// # Errors
    /// There is none.
    pub fn look_from_the_start(&self) -> io::Result<()> {
        kernel::peek_from_the_start(self.socket.fd())
    }

    /// Calls `look`, which uses [`peek`], until it returns a report or an error.
    ///
    /// # Errors
    /// Those of `look`.
    pub async fn look<R>(&self, look: impl FnMut(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R> {
        self.socket.run(Interest::READABLE, look).await
    }

    /// Removes the oldest report from the socket.
    ///
    /// # Errors
    /// The socket is empty.
    pub fn consume(&self) -> io::Result<()> {
        let mut buffer = [0; 64];
        kernel::receive(self.socket.fd(), &mut buffer).map(drop)
    }
}

/// Peeks at the next report; `None` at the end.
///
/// # Errors
/// No report has arrived ([`io::ErrorKind::WouldBlock`]), or the datagram is not a report.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<Option<Report>> {
    let mut buffer = [0; 64];
    loop {
        match kernel::peek(socket, &mut buffer) {
            // `thaw-init` ended without having read everything. Reports that it sent before are still in the socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Ok(0) => return Ok(None),
            Ok(length) => return decode(&buffer[..length]).map(Some),
            Err(error) => return Err(error),
        }
    }
}

fn decode(datagram: &[u8]) -> io::Result<Report> {
    Report::decode(datagram).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a report of thaw-init"))
}

fn send_spawn(
    socket: BorrowedFd<'_>,
    tag: u32,
    command: &Encoded,
    host_name: &str,
    stdio: &Stdio<'_>,
) -> io::Result<()> {
    let header = command.header(tag, stdio);
    kernel::send(socket, &command.parts(&header, host_name), stdio.descriptors())
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
