//! Owns the egress proxy: an HTTP forward proxy that the daemon serves on a socket inside each container. It is the
//! only network path out of a container.
//!
//! A container's network namespace has nothing but `lo`. The room `container` opens a listening TCP socket in that
//! namespace and passes it to [`Proxy::serve`]. Upstream connections are made from the daemon's own namespace, so there
//! is no bridge, address or firewall rule on the host, and containers cannot reach each other by construction.
//!
//! ```text
//! CLI ── CONNECT api.openai.com:443 ──► 127.0.0.1:3128 (container's lo) ═ accepted by the daemon
//!                                             │
//!               target   read host and port from the request line, refuse what is ambiguous
//!               policy   host pattern and port in the allow-list?
//!               dial     resolve once, refuse special-purpose addresses, connect to the address just checked
//!               tunnel / forward   copy bytes both ways, count them, end when idle
//! ```
//!
//! Deliberately absent: no TLS interception, no response cache, no connection reuse between requests (a pooled
//! connection is keyed by name and would outlive the check of its address), no name resolution by the container.
//!
//! What users configure is described in `docs/egress.md`.

mod accept;
mod address;
mod budget;
mod dial;
mod forward;
mod identity;
mod identity_metrics;
mod lookup;
mod meter;
mod metrics;
mod policy;
mod proxy;
mod rate;
mod refusal;
mod routes;
mod shared;
mod slot;
mod target;
mod threads;
mod upstream;

use std::time::Duration;

use thaw_client::config::LimitSettings;

pub use address::special_purpose;
pub use budget::Total;
pub use identity::{Health, Identity, IdentityParts, Lease, Way};
pub use identity_metrics::IdentityMetrics;
pub use meter::{Meter, Usage};
pub use metrics::EgressMetrics;
pub use policy::{Decision, Policy, PolicyError};
pub use proxy::Proxy;
pub use refusal::Refusal;
pub use routes::{AllocateError, Routes};
pub use shared::Outside;
pub use upstream::{Login, ProxyServer};

/// Bounds on what one container can make the daemon hold. All are per container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once; further ones wait. Default 64: codex, claude and gemini held fewer than ten in our
    /// traces, and npm opens as many as there are packages.
    pub connections: usize,
    /// Connections that wait for a slot; further ones wait in the kernel's backlog. Default 256.
    pub waiting: usize,
    /// Longest wait for a slot, after which the answer is 503. Default 10 s, as long as connecting may take.
    pub place_timeout: Duration,
    /// Bytes of a request's line and headers; more is answered with 431. Default 32 KiB, twice what Node.js sends
    /// or accepts.
    pub header_bytes: usize,
    /// Time for a request's line and headers to arrive; also the longest idle time of a kept-alive connection between
    /// two requests. Default 30 s.
    pub header_timeout: Duration,
    /// Time for name resolution and all connection attempts together. Default 10 s.
    pub connect_timeout: Duration,
    /// Time without one byte in either direction after which a tunnel or request is closed. Default 15 min, longer than
    /// a model thinks silently.
    pub idle_timeout: Duration,
    /// Name look-ups at once; more wait. Default 4: each look-up holds a thread until the resolver gives up, even if
    /// its request was answered long before.
    pub lookups: usize,
    /// Requests per second, refused ones included; further ones wait. After a pause, five seconds' worth pass at once.
    /// 0 means no limit. Default 50: each request costs a port of the host for a minute.
    pub requests_per_second: u32,
    /// CPU time that the daemon spends for the container, percent of one CPU; beyond that its connections wait. 0 means
    /// no limit. Default 20, ten times what full tunnels need.
    pub cpu_percent: u32,
    /// Rate in each direction while the container serves an execution, Mbit/s; 0 means no limit. Default 10 (product
    /// requirement).
    pub run_mbit_per_second: u32,
    /// Rate in each direction before that, while a CLI is being prestarted, Mbit/s. Default 5 (product requirement).
    pub idle_mbit_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&LimitSettings::default())
    }
}

impl From<&LimitSettings> for Limits {
    fn from(settings: &LimitSettings) -> Self {
        Self {
            connections: settings.connections,
            waiting: settings.waiting,
            place_timeout: Duration::from_secs(settings.place_timeout_seconds),
            header_bytes: settings.header_bytes,
            header_timeout: Duration::from_secs(settings.header_timeout_seconds),
            connect_timeout: Duration::from_secs(settings.connect_timeout_seconds),
            idle_timeout: Duration::from_secs(settings.idle_timeout_seconds),
            lookups: settings.lookups,
            requests_per_second: settings.requests_per_second,
            cpu_percent: settings.cpu_percent,
            run_mbit_per_second: settings.run_mbit_per_second,
            idle_mbit_per_second: settings.idle_mbit_per_second,
        }
    }
}

/// Why a proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The caller is not inside a tokio runtime with I/O enabled.
    #[error("the egress proxy must be started from inside a tokio runtime")]
    NoRuntime,
    /// The listening socket could not be handed to the runtime.
    #[error("cannot use the container's listening socket: {0}")]
    Listener(#[source] std::io::Error),
}
