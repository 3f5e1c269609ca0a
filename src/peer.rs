//! Connections of clients, and whether somebody is still at the other end.
//!
//! A client may close its sending half behind the request and wait for the answer: socat, `nc -N` and busybox's wget
//! do. So the end of what it sends says nothing about whether it still listens, and hyper's servers are told so with
//! `half_close(true)`. hyper then looks at the connection no more until it has written something, but an execution must
//! learn soon that its client is gone. [`gone`] tells the two apart:
//!
//! | the client | Unix socket | TCP |
//! |---|---|---|
//! | closed its sending half | `POLLRDHUP` | `POLLRDHUP` |
//! | is gone (closed, died) | `POLLHUP`, at once | `POLLRDHUP`: the same FIN |
//! | is gone with unread bytes, or was reset | `POLLHUP`, at once | `POLLHUP`, at once |
//!
//! Over TCP only an answer to a packet of ours tells: a reset for the first byte of the response, or for a keep-alive
//! probe. A closed socket still acknowledges probes for `net.ipv4.tcp_fin_timeout` (60 s), so that a client that closed
//! is noticed after about a minute if nothing is sent to it.

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

/// Time between two looks at a half-closed connection. An event would need a second descriptor for each.
const LOOK: Duration = Duration::from_millis(250);

/// Silence before, and time between, keep-alive probes on a half-closed TCP connection.
const PROBE: Duration = Duration::from_secs(5);

/// A socket of tokio's that can be used through a shared reference.
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
    /// Makes the kernel find out by itself that a silent peer is gone.
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
                // Without it only the notice comes later, with the first byte that is written.
                let _ = probe(self.as_fd());
            }
        }
    };
}

// The kernel tells the end of a Unix socket's peer by itself.
socket!(UnixStream, |_| Ok(()));
socket!(TcpStream, |fd| {
    sockopt::set_tcp_keepidle(fd, PROBE)?;
    sockopt::set_tcp_keepintvl(fd, PROBE)?;
    sockopt::set_socket_keepalive(fd, true)
});

/// One owner's share of a connection, to read and to write; another share can be given to [`gone`].
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

/// Returns when nobody is at the other end any more; see the table above. A half-closed connection is none of those.
pub async fn gone(socket: &impl Socket) {
    // Of all readiness, this interest is fulfilled by the end of the peer's sending only, and not by data.
    if socket.ready(Interest::PRIORITY).await.is_err() {
        // The runtime is ending, and with it the connection.
        return;
    }
    socket.probe();
    while !is_hung_up(socket.as_fd()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    // Both are reported without being asked for (poll(2)).
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A descriptor of ours can always be polled; if not, whoever uses it will find out.
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
