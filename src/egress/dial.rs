//! From an allowed host to a connected socket, with the address judged in between.
//!
//! The name is resolved once and the connection goes to the very address that was checked: asking twice would let a
//! DNS answer change between check and use (DNS rebinding).

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::policy::{Decision, Policy};
use super::refusal::Refusal;
use super::target::Host;

/// Addresses of one name that are tried. More than any provider publishes for one region; a cap because the answer
/// comes from outside.
const MAX_ADDRESSES: usize = 8;

/// Connects on behalf of one container.
#[derive(Debug)]
pub(super) struct Dialer {
    policy: Arc<Policy>,
    lookups: Arc<Semaphore>,
    timeout: Duration,
}

impl Dialer {
    /// `lookups` bounds simultaneous resolutions, `timeout` resolution and all attempts together.
    pub(super) fn new(policy: Arc<Policy>, lookups: usize, timeout: Duration) -> Self {
        Self { policy, lookups: Arc::new(Semaphore::new(lookups)), timeout }
    }

    /// Connects to `host` as written in a request (IPv6 in brackets), if the policy allows it.
    pub(super) async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        let deadline = Instant::now() + self.timeout;
        let (host, addresses) = match self.policy.decide(host, port) {
            Decision::Refused(refusal) => return Err(refusal),
            Decision::Static { name, addresses } => (name, addresses),
            Decision::Address(ip) => {
                let host = Host::Ip(ip).to_string();
                let addresses = self.public(&host, port, vec![ip])?;
                (host, addresses)
            }
            Decision::Name(name) => {
                let found = match timeout_at(deadline, self.resolve(name.clone(), port)).await {
                    Err(_) => return Err(Refusal::Timeout { host: name, port }),
                    Ok(Err(source)) => return Err(Refusal::Lookup { host: name, source }),
                    Ok(Ok(found)) => found,
                };
                let addresses = self.public(&name, port, found)?;
                (name, addresses)
            }
        };
        connect(host, port, &addresses, deadline).await
    }

    /// Keeps the addresses that may be connected to; an error when none is left.
    fn public(&self, host: &str, port: u16, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refusal> {
        let mut refused = None;
        addresses.retain(|&ip| match self.policy.check_address(ip) {
            Ok(()) => true,
            Err(class) => {
                refused = Some((ip.to_canonical(), class));
                false
            }
        });
        match refused {
            Some((ip, class)) if addresses.is_empty() => {
                Err(Refusal::Address { host: host.to_owned(), port, ip, class })
            }
            _ => Ok(addresses),
        }
    }

    /// Asks the system's resolver. The permit stays with the blocking thread, which cannot be cancelled.
    async fn resolve(&self, name: String, port: u16) -> io::Result<Vec<IpAddr>> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for ip in (name.as_str(), port).to_socket_addrs()?.map(|address| address.ip().to_canonical()) {
                if addresses.len() < MAX_ADDRESSES && !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
            }
            Ok(addresses)
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// Tries the addresses in turn. Each may use an equal share of the time left, so that one dead address does not
/// starve the next.
async fn connect(host: String, port: u16, addresses: &[IpAddr], deadline: Instant) -> Result<TcpStream, Refusal> {
    let mut last = None;
    for (index, &ip) in addresses.iter().enumerate() {
        let now = Instant::now();
        // At most MAX_ADDRESSES or a configured handful.
        let left = (addresses.len() - index) as u32;
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(share, TcpStream::connect(SocketAddr::new(ip, port))).await {
            Ok(Ok(stream)) => {
                // Tokens are small and must not wait for each other; failure only costs latency.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(source)) => last = Some(source),
            Err(_) => {}
        }
    }
    Err(match last {
        Some(source) => Refusal::Connect { host, port, source },
        None => Refusal::Timeout { host, port },
    })
}
