//! What the proxy answers when it does not do what was asked: one type with status, text and metric label.

use std::io;
use std::net::IpAddr;

use hyper::StatusCode;

use super::metrics::Outcome;

/// Why a request did not go out. The display text is what the container's program is told.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request is not one that a forward proxy can take, or has more than one reading.
    #[error("malformed proxy request: {0}")]
    Malformed(&'static str),
    /// No pattern of the allow-list matches.
    #[error(
        "egress to {host}:{port} is not allowed for this provider; add \"{host}:{port}\" to `egress` in its manifest"
    )]
    NotAllowed {
        /// Normalised host.
        host: String,
        /// Port.
        port: u16,
    },
    /// The host is allowed, but not the address that it has.
    #[error(
        "egress to {host}:{port} is refused because its address {ip} is not public ({class} address); to allow it, add \
         its network to `egress.allow_private` in thawd.toml"
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
    /// The container has too many connections open.
    #[error("this container already has {0} connections open through the egress proxy; close some and try again")]
    TooManyConnections(usize),
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
        /// What the last attempt ended with.
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

impl Refusal {
    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::NotAllowed { .. } | Self::Address { .. } => StatusCode::FORBIDDEN,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::TooManyConnections(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Lookup { .. } | Self::Connect { .. } | Self::Upstream { .. } => StatusCode::BAD_GATEWAY,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Host and port, as far as they were understood.
    pub fn destination(&self) -> Option<(&str, Option<u16>)> {
        match self {
            Self::Malformed(_) | Self::TransferCoding | Self::TooManyConnections(_) => None,
            Self::Lookup { host, .. } => Some((host, None)),
            Self::NotAllowed { host, port }
            | Self::Address { host, port, .. }
            | Self::Connect { host, port, .. }
            | Self::Timeout { host, port }
            | Self::Upstream { host, port, .. } => Some((host, Some(*port))),
        }
    }

    /// How the request is counted.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) | Self::TransferCoding => Outcome::Malformed,
            Self::NotAllowed { .. } => Outcome::NotAllowed,
            Self::Address { .. } => Outcome::PrivateAddress,
            Self::TooManyConnections(_) => Outcome::Limited,
            Self::Lookup { .. } | Self::Connect { .. } | Self::Timeout { .. } | Self::Upstream { .. } => {
                Outcome::Failed
            }
        }
    }
}
