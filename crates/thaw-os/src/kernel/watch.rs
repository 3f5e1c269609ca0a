//! Waits for readiness of descriptors that tokio has no type for: seqpacket sockets, pidfds, `cgroup.events`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor registered with the runtime.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Registers `fd`, which must be non-blocking.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an OwnedFd stays open and keeps its number while it is owned; this type never hands it out mutably.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        registered.map(Self).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Runs `operation` until it returns something other than [`io::ErrorKind::WouldBlock`]; waits for readiness
    /// between tries.
    ///
    /// # Errors
    /// Those of `operation`.
    pub async fn run<R>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.async_io(interest, |fd| operation(fd.as_fd())).await
    }

    /// The descriptor, for calls that do not wait.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
