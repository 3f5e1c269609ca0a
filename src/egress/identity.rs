//! An identity: an address with which users go out, how it fares, and who has it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::upstream::ProxyServer;
use crate::telemetry::unix_ms;

/// How connections of an identity leave this host.
#[derive(Debug)]
pub enum Way {
    /// From this address of the host.
    Bind(IpAddr),
    /// Through this proxy.
    Proxy(ProxyServer),
}

/// What an identity is made from.
#[derive(Debug)]
pub struct IdentityParts {
    /// Its name.
    pub name: String,
    /// How its connections leave.
    pub way: Way,
    /// Address that others see, if the operator says so.
    pub address: Option<IpAddr>,
    /// Words of the operator's own.
    pub labels: BTreeMap<String, String>,
    /// Users who may have it at the same time.
    pub max_users: Option<usize>,
    /// Failures in a row after which it counts as down.
    pub down_after: u32,
}

/// An address with which users go out.
#[derive(Debug)]
pub struct Identity {
    parts: IdentityParts,
    health: Mutex<Health>,
    /// How many leases each user has: one in the table, and those that open connections hold.
    users: Mutex<BTreeMap<String, usize>>,
}

/// How an identity fares.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Whether it failed too often in a row.
    pub is_down: bool,
    /// Since when it is what it is, Unix milliseconds.
    pub since_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// What the last failure was.
    pub problem: Option<String>,
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that failed because of the identity.
    pub failed: u64,
}

impl Identity {
    /// One that nobody has yet, and that counts as up.
    pub fn new(parts: IdentityParts) -> Self {
        let health = Health { since_ms: unix_ms(), ..Health::default() };
        Self { parts, health: Mutex::new(health), users: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// What it was made from.
    pub fn parts(&self) -> &IdentityParts {
        &self.parts
    }

    /// How its connections leave.
    pub(super) fn way(&self) -> &Way {
        &self.parts.way
    }

    // The state is plain data, valid also after a panic elsewhere.
    fn state(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holders(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it fares.
    pub fn health(&self) -> Health {
        self.state().clone()
    }

    /// Number of users who have it, those included who gave it back and have a connection open.
    pub fn users(&self) -> usize {
        self.holders().len()
    }

    /// A connection was opened with it, or it was found to be reachable.
    pub(super) fn succeeded(&self, is_probe: bool) {
        let mut health = self.state();
        health.failures = 0;
        health.opened += u64::from(!is_probe);
        if health.is_down {
            (health.is_down, health.since_ms, health.problem) = (false, unix_ms(), None);
            tracing::info!(target: "egress", identity = self.name(), "egress identity is up again");
        }
    }

    /// It could not be used, for a reason of its own.
    pub(super) fn failed(&self, problem: &str, is_probe: bool) {
        let mut health = self.state();
        health.failures = health.failures.saturating_add(1);
        health.failed += u64::from(!is_probe);
        health.problem = Some(problem.to_owned());
        if !health.is_down && health.failures >= self.parts.down_after {
            (health.is_down, health.since_ms) = (true, unix_ms());
            tracing::warn!(target: "egress", identity = self.name(), problem, "egress identity is down");
        }
    }

    /// Gives it to `user`. `None` if as many users have it as may.
    pub(super) fn lease(self: &Arc<Self>, user: &str) -> Option<Lease> {
        let mut holders = self.holders();
        let is_full = self.parts.max_users.is_some_and(|most| holders.len() >= most);
        if is_full && !holders.contains_key(user) {
            return None;
        }
        *holders.entry(user.to_owned()).or_default() += 1;
        drop(holders);
        Some(Lease { identity: Arc::clone(self), user: user.to_owned() })
    }

    /// As [`Self::lease`], to a user who had it before: however many have it.
    pub(super) fn lease_again(self: &Arc<Self>, user: &str) -> Lease {
        *self.holders().entry(user.to_owned()).or_default() += 1;
        Lease { identity: Arc::clone(self), user: user.to_owned() }
    }

    /// Looks whether it can be reached.
    pub(super) async fn probe(&self, patience: Duration) {
        let looked = match &self.parts.way {
            Way::Bind(address) => bound(*address).map(drop).map_err(|error| error.to_string()),
            Way::Proxy(proxy) => {
                let place = (proxy.url().host.as_str(), proxy.url().port);
                match timeout(patience, TcpStream::connect(place)).await {
                    Ok(Ok(stream)) => match timeout(patience, proxy.greet(stream)).await {
                        Ok(greeted) => greeted.map(drop).map_err(|error| error.to_string()),
                        Err(_) => Err("it did not answer in time".to_owned()),
                    },
                    Ok(Err(error)) => Err(format!("cannot connect to it: {error}")),
                    Err(_) => Err("it did not answer in time".to_owned()),
                }
            }
        };
        match looked {
            Ok(()) => self.succeeded(true),
            Err(problem) => self.failed(&problem, true),
        }
    }
}

/// A socket that connects from this address.
pub(super) fn bound(address: IpAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(address, 0))?;
    Ok(socket)
}

/// That a user has an identity. Each open connection holds one as well.
#[derive(Debug)]
pub struct Lease {
    identity: Arc<Identity>,
    user: String,
}

impl Lease {
    /// Which identity.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut holders = self.identity.holders();
        if let Some(count) = holders.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                holders.remove(&self.user);
            }
        }
    }
}
