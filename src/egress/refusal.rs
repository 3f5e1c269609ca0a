//! The proxy's answer to a request that it refuses: one type with status, text and metric label.

use std::io;
use std::net::IpAddr;

use hyper::StatusCode;

use super::metrics::Outcome;

/// Why a request was refused. The program in the container gets the display text.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request is not one that a forward proxy can take, or has more than one reading.
    #[error("malformed proxy request: {0}")]
    Malformed(&'static str),
    /// The request is to fetch an https URL. The proxy does not terminate TLS: the client must open a tunnel.
    #[error(
        "an https URL cannot be fetched through this proxy; the client has to open a tunnel with CONNECT {authority}, as \
         curl, git, node and Python do and busybox's wget does not"
    )]
    PlainHttps {
        /// Host and port as a tunnel would name them.
        authority: String,
    },
    /// No pattern of the allow-list matches.
    #[error("egress to {host}:{port} is not allowed for this provider; {}", not_allowed(host, *port))]
    NotAllowed {
        /// Normalised host.
        host: String,
        /// Port.
        port: u16,
    },
    /// The host is allowed, but its address is not.
    #[error(
        "egress to {host}:{port} is refused because its address {ip} is not public ({class} address); {}",
        private(host)
    )]
    Address {
        /// Host as allowed.
        host: String,
        /// Port.
        port: u16,
        /// The address found.
        ip: IpAddr,
        /// The kind of address.
        class: &'static str,
    },
    /// The message body has a transfer coding other than `chunked`.
    #[error("the proxy understands no transfer coding but chunked")]
    TransferCoding,
    /// The container has too many connections open, and none was closed in time.
    #[error(
        "this container already has {connections} connections open through the egress proxy, and none was closed within \
         {waited} s; close some and try again"
    )]
    TooManyConnections {
        /// Limit of connections.
        connections: usize,
        /// Seconds for which the connection waited.
        waited: u64,
    },
    /// The name did not resolve.
    #[error("cannot resolve {host}: {source}")]
    Lookup {
        /// Host.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// No address of the host accepted a connection.
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Error of the last attempt.
        source: io::Error,
    },
    /// Resolution and connection took too long, or a connected upstream was silent for too long.
    #[error("{host}:{port} did not answer in time")]
    Timeout {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// The user's identity cannot be used, or could not connect.
    #[error("cannot connect to {host}:{port} with the egress identity {identity:?}: {reason}")]
    Identity {
        /// Which identity.
        identity: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// What was wrong.
        reason: String,
    },
    /// The user has no way out.
    #[error("cannot connect to {host}:{port}: {reason}")]
    NoRoute {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// Why not.
        reason: String,
    },
    /// The upstream's answer is not HTTP, or it closed the connection without one.
    #[error("{host}:{port} gave no valid HTTP response: {reason}")]
    Upstream {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// What was wrong.
        reason: String,
    },
}

/// Hint for a program that asks for `localhost`: the proxy's loopback is the host's, not the container's.
const DIRECTLY: &str = "this is your own container: connect directly, not through the proxy (set NO_PROXY)";

fn not_allowed(host: &str, port: u16) -> String {
    if is_own(host) { DIRECTLY.to_owned() } else { format!("add \"{host}:{port}\" to `egress` in its manifest") }
}

fn private(host: &str) -> String {
    let allow = "add its network to `egress.allow_private` in thawd.toml";
    match is_own(host) {
        true => format!("{DIRECTLY}; to allow the host's own, {allow}"),
        false => format!("to allow it, {allow}"),
    }
}

/// Whether `host` names the machine that the program runs on, by which it means its own container.
fn is_own(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| ip.to_canonical());
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

impl Refusal {
    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::PlainHttps { .. } => StatusCode::BAD_REQUEST,
            Self::NotAllowed { .. } | Self::Address { .. } | Self::NoRoute { .. } => StatusCode::FORBIDDEN,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::TooManyConnections { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Lookup { .. } | Self::Connect { .. } | Self::Upstream { .. } | Self::Identity { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The reason phrase of the status line. Some clients (GNU wget and busybox's) show nothing else.
    pub(super) fn phrase(&self) -> &'static [u8] {
        match self {
            Self::Malformed(_) => b"Malformed proxy request",
            Self::PlainHttps { .. } => b"https needs a tunnel (CONNECT): use curl, not busybox wget",
            Self::NotAllowed { .. } => b"Host is not in the egress list",
            Self::Address { .. } => b"Address is not public",
            Self::TransferCoding => b"Transfer coding is not chunked",
            Self::TooManyConnections { .. } => b"Too many connections of this container",
            Self::Lookup { .. } => b"Name cannot be resolved",
            Self::Connect { .. } => b"Cannot connect",
            Self::Upstream { .. } => b"No valid HTTP response",
            Self::Timeout { .. } => b"No answer in time",
            Self::Identity { .. } => b"Egress identity cannot connect",
            Self::NoRoute { .. } => b"User has no egress identity",
        }
    }

    /// Host and port, as far as the request could be read.
    pub fn destination(&self) -> Option<(&str, Option<u16>)> {
        match self {
            Self::Malformed(_) | Self::PlainHttps { .. } | Self::TransferCoding | Self::TooManyConnections { .. } => {
                None
            }
            Self::Lookup { host, .. } => Some((host, None)),
            Self::NotAllowed { host, port }
            | Self::Address { host, port, .. }
            | Self::Connect { host, port, .. }
            | Self::Timeout { host, port }
            | Self::Identity { host, port, .. }
            | Self::NoRoute { host, port, .. }
            | Self::Upstream { host, port, .. } => Some((host, Some(*port))),
        }
    }

    /// Value of the metric's label `decision`.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) | Self::PlainHttps { .. } | Self::TransferCoding => Outcome::Malformed,
            Self::NotAllowed { .. } => Outcome::NotAllowed,
            Self::NoRoute { .. } => Outcome::NoRoute,
            Self::Address { .. } => Outcome::PrivateAddress,
            Self::TooManyConnections { .. } => Outcome::Limited,
            Self::Lookup { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Upstream { .. }
            | Self::Identity { .. } => Outcome::Failed,
        }
    }
}
