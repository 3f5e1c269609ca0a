//! Connections from outside into a container's own loopback, which no address of the host leads to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::holder::{Held, Holds};
use thaw_os::kernel;

/// Time for a connection on a loopback, which is there at once or refused.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The network namespace of a claimed container. It can be used as long as the container lives.
#[derive(Debug)]
pub struct Reach(OwnedFd);

impl<By: Holds> Held<By> {
    /// Its network namespace.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn reach(&self) -> io::Result<Reach> {
        self.container().teardown.pidfd().try_clone_to_owned().map(Reach)
    }
}

impl Reach {
    /// Connects to a port of the loopback inside, on IPv4 or else on IPv6.
    ///
    /// # Errors
    /// Nobody listens there, or the container is gone.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let stream =
            self.inside(move |pidfd| kernel::connect_in_namespace(pidfd.as_fd(), port, CONNECT_TIMEOUT)).await?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// TCP ports on which something listens inside.
    ///
    /// # Errors
    /// The container is gone.
    pub async fn listening(&self) -> io::Result<Vec<u16>> {
        self.inside(|pidfd| kernel::listening_in_namespace(pidfd.as_fd())).await
    }

    /// Runs on a thread of its own rather than one of the pool: the thread changes its network namespace.
    async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce(OwnedFd) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let pidfd = self.0.try_clone()?;
        let (done, result) = oneshot::channel();
        std::thread::Builder::new().name("reach".to_owned()).spawn(move || {
            // Whoever asked may be gone.
            let _ = done.send(work(pidfd));
        })?;
        result.await.map_err(|_| io::Error::other("the thread ended early"))?
    }
}
