//! Client connections: reading and writing through a shared reference, and finding out whether the client is gone.
//!
//! A client may close its sending half after the request and still wait for the answer: socat, `nc -N` and busybox's
//! wget do. So the end of the client's data does not mean that the client is gone; `half_close(true)` tells hyper's
//! servers so. But then hyper does not look at the connection again until it has written something, while an execution
//! must learn soon that its client is gone. [`gone`] distinguishes the two:
//!
//! | the client | Unix socket | TCP |
//! |---|---|---|
//! | closed its sending half | `POLLRDHUP` | `POLLRDHUP` |
//! | is gone (closed, died) | `POLLHUP`, at once | `POLLRDHUP`: the same FIN |
//! | is gone with unread bytes, or was reset | `POLLHUP`, at once | `POLLHUP`, at once |
//!
//! Over TCP, only an answer to a packet from this side tells: a reset for the first byte of the response, or for a
//! keep-alive probe. A closed socket still acknowledges probes for `net.ipv4.tcp_fin_timeout` (60 s). So if nothing is
//! sent to a client that closed, the daemon notices after about a minute.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

/// Time between two checks of a half-closed connection. Waiting for an event instead would need a second descriptor for
/// each connection.
const LOOK: Duration = Duration::from_millis(250);

/// Idle time before the first keep-alive probe on a half-closed TCP connection, and between two probes.
const PROBE: Duration = Duration::from_secs(5);

/// A tokio socket that can be used through a shared reference.
pub trait Socket: AsFd + Send + Sync {
    /// See [`UnixStream::poll_read_ready`].
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// See [`UnixStream::poll_write_ready`].
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// See [`UnixStream::try_read`].
    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// See [`UnixStream::try_write`].
    fn try_write(&self, buf: &[u8]) -> io::Result<usize>;
    /// See [`UnixStream::try_write_vectored`].
    fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize>;
    /// See [`UnixStream::ready`].
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send;
    /// Makes the kernel detect by keep-alive probes that a silent peer is gone.
    fn probe(&self);
}

macro_rules! socket {
    ($stream:ty, $probe:expr) => {
        impl Socket for $stream {
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }
            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }
            fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.try_read(buf)
            }
            fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
                self.try_write(buf)
            }
            fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(bufs)
            }
            fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send {
                self.ready(interest)
            }
            fn probe(&self) {
                let probe: fn(BorrowedFd<'_>) -> rustix::io::Result<()> = $probe;
                // If probes cannot be switched on, the client's end is noticed later, at the next byte written.
                let _ = probe(self.as_fd());
            }
        }
    };
}

// The kernel reports the end of a Unix socket's peer without probes.
socket!(UnixStream, |_| Ok(()));
socket!(TcpStream, |fd| {
    sockopt::set_tcp_keepidle(fd, PROBE)?;
    sockopt::set_tcp_keepintvl(fd, PROBE)?;
    sockopt::set_socket_keepalive(fd, true)
});

/// One owner's share of a connection, for reading and writing; another share can be given to [`gone`].
#[derive(Debug)]
pub struct Shared<S>(pub Arc<S>);

impl<S: Socket> Shared<S> {
    fn write(&self, cx: &mut Context<'_>, mut write: impl FnMut(&S) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl<S: Socket> AsyncRead for Shared<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S: Socket> AsyncWrite for Shared<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |socket| socket.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |socket| socket.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.as_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

/// Returns when the peer is gone; see the table above. A half-closed connection is not gone.
pub async fn gone(socket: &impl Socket) {
    // This interest becomes ready only by the end of the peer's data, not by data.
    if socket.ready(Interest::PRIORITY).await.is_err() {
        // The runtime is ending, and closes the connection.
        return;
    }
    socket.probe();
    while !is_hung_up(socket.as_fd()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    // poll(2) reports both without being asked.
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Polling an open descriptor cannot fail; if it does, the next read or write shows the error.
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(600);
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_unix_client_that_closes_its_sending_half_is_there_until_it_closes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(ours);
        theirs.write_all(b"request").await.unwrap();
        assert!(timeout(MOMENT, gone(&*ours)).await.is_err(), "data");
        theirs.shutdown().await.unwrap();
        assert!(timeout(MOMENT, gone(&*ours)).await.is_err(), "half-closed");
        let mut connection = Shared(Arc::clone(&ours));
        let mut request = String::new();
        connection.read_to_string(&mut request).await.unwrap();
        connection.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        theirs.read_exact(&mut answer).await.unwrap();
        assert_eq!((request.as_str(), &answer), ("request", b"answer"));
        drop(theirs);
        timeout(PATIENCE, gone(&*ours)).await.expect("it is gone");
    }

    #[tokio::test]
    async fn a_tcp_client_that_closes_its_sending_half_is_there_until_it_answers_with_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = Arc::new(listener.accept().await.unwrap().0);
        theirs.shutdown().await.unwrap();
        assert!(timeout(MOMENT, gone(&*ours)).await.is_err(), "half-closed");
        drop(theirs);
        // The first byte is answered with a reset.
        Shared(Arc::clone(&ours)).write_all(b"x").await.unwrap();
        timeout(PATIENCE, gone(&*ours)).await.expect("it is gone");
    }
}
