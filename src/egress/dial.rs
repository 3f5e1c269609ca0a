//! Connects to an allowed host, and checks the address before connecting.
//!
//! The name is resolved once and the connection goes to the very address that was checked. With two look-ups, the DNS
//! answer could change between check and use (DNS rebinding). Where a proxy resolves the name, there is no address to check;
//! addresses in requests, and those of static names, are checked all the same.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use tokio_util::either::Either;

use super::budget::Budget;
use super::identity::{Identity, Lease, Way, bound};
use super::lookup;
use super::policy::{Decision, Policy};
use super::refusal::Refusal;
use super::routes::Route;
use super::target::Host;
use super::threads;
use super::upstream::{Boxed, ProxyError, ProxyServer, unreachable};

/// Most addresses of one name that are tried: more than any provider publishes for one region. Capped because the
/// answer comes from outside.
const MAX_ADDRESSES: usize = 8;

/// What a connection is for: a proxy takes plain requests as they are, and opens a tunnel for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Tunnel,
    Request,
}

/// A connection to an allowed host, or to the proxy that takes requests for it.
pub(super) struct Dialed {
    pub(super) stream: Either<TcpStream, Boxed>,
    /// Through which identity, and the user's lease of it, to be held for as long as the connection is open.
    pub(super) through: Option<(Arc<Identity>, Option<Arc<Lease>>)>,
    /// Whether the other end is a proxy that wants the whole URL.
    pub(super) wants_url: bool,
}

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

    /// Connects to `host` as written in a request (IPv6 in brackets), if the policy allows it, by the way that `route` says.
    pub(super) async fn dial(
        &self,
        (host, port): (&str, u16),
        purpose: Purpose,
        route: Route,
        budget: &Budget,
    ) -> Result<Dialed, Refusal> {
        let decision = match self.policy.decide(host, port) {
            Decision::Refused(refusal) => return Err(refusal),
            allowed => allowed,
        };
        // This limit protects the host: the local port of a closed connection stays in use for a minute (TIME_WAIT).
        budget.connect().await;
        let deadline = Instant::now() + self.timeout;
        let (identity, lease) = match route {
            Route::Direct => {
                let (host, addresses) = self.addresses(decision, port, deadline).await?;
                let stream = Either::Left(connect(host, port, &addresses, None, deadline).await?);
                return Ok(Dialed { stream, through: None, wants_url: false });
            }
            Route::Refused(reason) => return Err(Refusal::NoRoute { host: host.to_owned(), port, reason }),
            Route::Identity(identity, lease) => (identity, lease),
        };
        let failed = |reason: String| Refusal::Identity {
            identity: identity.name().to_owned(),
            host: host.to_owned(),
            port,
            reason,
        };
        let (stream, wants_url) = match identity.way() {
            Way::Bind(address) => {
                // The address may have left this host: then nothing goes out, rather than from another one.
                bound(*address).map_err(|error| {
                    identity.failed(&error.to_string(), false);
                    failed(format!("this host cannot use its address {address}: {error}"))
                })?;
                let (host, mut addresses) = self.addresses(decision, port, deadline).await?;
                addresses.retain(|found| found.is_ipv4() == address.is_ipv4());
                if addresses.is_empty() {
                    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                    return Err(failed(format!("the host has no {family} address, which is what the identity has")));
                }
                (Either::Left(connect(host, port, &addresses, Some(*address), deadline).await?), false)
            }
            Way::Proxy(proxy) => {
                // A static name means nothing to the proxy: it gets the address, for a tunnel, and the server the name.
                let is_static = matches!(decision, Decision::Static { .. });
                let wants_url = purpose == Purpose::Request && proxy.forwards() && !is_static;
                let target = self.target(decision, port)?;
                let opened = timeout_at(deadline, through(proxy, &target, port, wants_url)).await;
                let opened = opened.unwrap_or_else(|_| Err(ProxyError::Proxy("it did not answer in time".to_owned())));
                let stream = opened.map_err(|error| match error {
                    ProxyError::Destination(reason) => {
                        // The proxy can be reached, but no connection was opened.
                        identity.succeeded(true);
                        failed(reason)
                    }
                    about_it @ (ProxyError::Proxy(_) | ProxyError::Login) => {
                        let problem = about_it.to_string();
                        identity.failed(&problem, false);
                        failed(format!("its proxy: {problem}"))
                    }
                })?;
                (Either::Right(stream), wants_url)
            }
        };
        identity.succeeded(false);
        Ok(Dialed { stream, through: Some((identity, lease)), wants_url })
    }

    /// What a proxy is asked to connect to: it resolves names itself, but those to which the configuration gives an address.
    fn target(&self, decision: Decision, port: u16) -> Result<String, Refusal> {
        match decision {
            Decision::Refused(refusal) => Err(refusal),
            Decision::Name(name) => Ok(name),
            Decision::Static { name, addresses } => Ok(addresses.first().map_or(name, |ip| Host::Ip(*ip).to_string())),
            Decision::Address(ip) => {
                let host = Host::Ip(ip).to_string();
                self.public(&host, port, vec![ip])?;
                Ok(host)
            }
        }
    }

    /// The addresses that may be connected to, resolved if necessary.
    async fn addresses(
        &self,
        decision: Decision,
        port: u16,
        deadline: Instant,
    ) -> Result<(String, Vec<IpAddr>), Refusal> {
        let found = match decision {
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
        Ok(found)
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
///
/// With `from`, connections come from that address of this host.
async fn connect(
    host: String,
    port: u16,
    addresses: &[IpAddr],
    from: Option<IpAddr>,
    deadline: Instant,
) -> Result<TcpStream, Refusal> {
    let mut waiting = addresses.iter().map(|&ip| SocketAddr::new(ip, port));
    let mut attempts = FuturesUnordered::new();
    let mut last = None;
    loop {
        let next = waiting.next();
        let is_last = next.is_none();
        attempts.extend(next.map(|address| attempt(address, from)));
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

async fn attempt(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    match from {
        None => TcpStream::connect(to).await,
        Some(from) => bound(from)?.connect(to).await,
    }
}

/// Connects to the proxy, and through it to `target` unless it only has to be spoken with.
async fn through(proxy: &ProxyServer, target: &str, port: u16, only_greet: bool) -> Result<Boxed, ProxyError> {
    let stream = TcpStream::connect((proxy.url().host.as_str(), proxy.url().port)).await;
    let stream = stream.map_err(|error| unreachable(&error))?;
    let _ = stream.set_nodelay(true);
    match only_greet {
        true => proxy.greet(stream).await,
        false => proxy.tunnel(stream, target, port).await,
    }
}
