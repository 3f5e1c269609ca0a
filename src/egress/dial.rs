//! Connects to an allowed host, and checks the address before connecting.
//!
//! The name is resolved once and the connection goes to the very address that was checked. With two look-ups, the DNS
//! answer could change between check and use (DNS rebinding).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::budget::Budget;
use super::lookup;
use super::policy::{Decision, Policy};
use super::refusal::Refusal;
use super::target::Host;
use super::threads;

/// Most addresses of one name that are tried: more than any provider publishes for one region. Capped because the
/// answer comes from outside.
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
    pub(super) async fn dial(&self, host: &str, port: u16, budget: &Budget) -> Result<TcpStream, Refusal> {
        let decision = match self.policy.decide(host, port) {
            Decision::Refused(refusal) => return Err(refusal),
            allowed => allowed,
        };
        // This limit protects the host: the local port of a closed connection stays in use for a minute (TIME_WAIT).
        budget.connect().await;
        let deadline = Instant::now() + self.timeout;
        let (host, addresses) = match decision {
            Decision::Refused(refusal) => return Err(refusal),
            Decision::Static { name, addresses } => (name, addresses),
            Decision::Address(ip) => {
                let host = Host::Ip(ip).to_string();
                let addresses = self.public(&host, port, vec![ip])?;
                (host, addresses)
            }
            Decision::Name(name) => {
                let found = match timeout_at(deadline, self.resolve(name.clone())).await {
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

    /// Keeps the addresses that may be connected to; an error if none is left.
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
    async fn resolve(&self, name: String) -> io::Result<Vec<IpAddr>> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        threads::run(move || {
            let _permit = permit;
            lookup::addresses(&name, MAX_ADDRESSES)
        })
        .await
    }
}

/// Silence of one address after which the next is tried beside it (RFC 8305, section 8: 250 ms).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first address that answers. Addresses are tried in the order of the resolver (RFC 6724): the next
/// one as soon as one has failed or was silent for [`ATTEMPT_DELAY`]. A silent attempt continues beside the next. So a
/// dead address costs only that delay.
async fn connect(host: String, port: u16, addresses: &[IpAddr], deadline: Instant) -> Result<TcpStream, Refusal> {
    let mut waiting = addresses.iter().map(|&ip| SocketAddr::new(ip, port));
    let mut attempts = FuturesUnordered::new();
    let mut last = None;
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        attempts.extend(next.map(TcpStream::connect));
        if attempts.is_empty() {
            break;
        }
        let until = if is_last { deadline } else { deadline.min(Instant::now() + ATTEMPT_DELAY) };
        match timeout_at(until, attempts.next()).await {
            Ok(Some(Ok(stream))) => {
                // Tokens are small and must not wait for each other; failure only costs latency.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Some(Err(source))) => last = Some(source),
            Ok(None) => {}
            Err(_) if Instant::now() >= deadline => return Err(Refusal::Timeout { host, port }),
            Err(_) => {}
        }
    }
    Err(match last {
        Some(source) => Refusal::Connect { host, port, source },
        None => Refusal::Timeout { host, port },
    })
}
