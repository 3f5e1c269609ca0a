//! `[egress]`: the proxy, and what containers may ask of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::identity::IdentitySettings;

/// `[egress.limits]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Connections of one container that are served at once.
    pub connections: usize,
    /// Connections of one container that wait for one of those slots.
    pub waiting: usize,
    /// Seconds for which a connection waits for a slot before it is answered 503.
    pub place_timeout_seconds: u64,
    /// Bytes of a request's line and headers.
    pub header_bytes: usize,
    /// Seconds for a request's line and headers to arrive; also the longest idle time of a connection between two
    /// requests.
    pub header_timeout_seconds: u64,
    /// Seconds for resolving a name and connecting.
    pub connect_timeout_seconds: u64,
    /// Seconds without a byte in either direction before a tunnel or request is closed.
    pub idle_timeout_seconds: u64,
    /// Name look-ups of one container at once.
    pub lookups: usize,
    /// Requests of one container per second, refused ones included; 0 is no limit.
    pub requests_per_second: u32,
    /// Percent of one CPU that the daemon spends on one container's connections; 0 is no limit.
    pub cpu_percent: u32,
    /// Rate in each direction while a container serves an execution, Mbit/s; 0 is no limit.
    pub run_mbit_per_second: u32,
    /// Rate in each direction before that, while a CLI is being prestarted, Mbit/s; 0 is no limit.
    pub idle_mbit_per_second: u32,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            connections: 64,
            waiting: 256,
            place_timeout_seconds: 10,
            header_bytes: 32 * 1024,
            header_timeout_seconds: 30,
            connect_timeout_seconds: 10,
            idle_timeout_seconds: 15 * 60,
            lookups: 4,
            requests_per_second: 50,
            cpu_percent: 20,
            run_mbit_per_second: 10,
            idle_mbit_per_second: 5,
        }
    }
}

/// `[egress.total]`: what all containers together may ask of the proxies.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TotalSettings {
    /// Connections to upstreams per second; 0 is no limit.
    pub connects_per_second: u32,
    /// Percent of one CPU that the daemon spends on all connections; 0 is no limit.
    pub cpu_percent: u32,
}

impl Default for TotalSettings {
    fn default() -> Self {
        // A local port stays in use for a minute after its connection: 400 per second use 24,000 of Linux's 28,232
        // ports.
        Self { connects_per_second: 400, cpu_percent: 100 }
    }
}

impl LimitSettings {
    /// Checks that all values are in range.
    ///
    /// # Errors
    /// Key and problem of the first value that is not.
    pub fn check(&self) -> Result<(), (String, String)> {
        const DAY: u64 = 24 * 3600;
        for (key, value, least, most) in [
            ("connections", self.connections as u64, 1, 65_536),
            ("waiting", self.waiting as u64, 1, 65_536),
            ("place_timeout_seconds", self.place_timeout_seconds, 1, DAY),
            // hyper needs 8 KiB to read a head at all.
            ("header_bytes", self.header_bytes as u64, 8 * 1024, 1 << 20),
            ("header_timeout_seconds", self.header_timeout_seconds, 1, DAY),
            ("connect_timeout_seconds", self.connect_timeout_seconds, 1, DAY),
            ("idle_timeout_seconds", self.idle_timeout_seconds, 1, DAY),
            ("lookups", self.lookups as u64, 1, 512),
        ] {
            if !(least..=most).contains(&value) {
                return Err((format!("egress.limits.{key}"), format!("must be from {least} to {most}")));
            }
        }
        Ok(())
    }
}

/// `egress.default`: how those go out who have no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultRoute<'a> {
    /// From this host, as it comes.
    Direct,
    /// Not at all.
    None,
    /// With this identity.
    Identity(&'a str),
}

impl Egress {
    /// What `default` means.
    pub fn default_route(&self) -> DefaultRoute<'_> {
        match self.default.as_str() {
            "direct" => DefaultRoute::Direct,
            "none" => DefaultRoute::None,
            name => DefaultRoute::Identity(name),
        }
    }

    /// Checks identities and `default`.
    ///
    /// # Errors
    /// Key and problem of the first value that is wrong.
    pub fn check(&self) -> Result<(), (String, String)> {
        self.limits.check()?;
        for (key, value, most) in
            [("probe_seconds", self.probe_seconds, 24 * 3600), ("down_after", u64::from(self.down_after), 1000)]
        {
            if value > most || (key == "down_after" && value == 0) {
                return Err((format!("egress.{key}"), format!("must be at most {most}, and `down_after` at least 1")));
            }
        }
        for (name, identity) in &self.identity {
            identity.check(name).map_err(|(key, problem)| (format!("egress.identity.{name}{key}"), problem))?;
        }
        match self.default_route() {
            DefaultRoute::Identity(name) if !self.identity.contains_key(name) => {
                let problem =
                    format!("is \"direct\", \"none\" or a section `[egress.identity.NAME]`; there is no {name:?}");
                Err(("egress.default".to_owned(), problem))
            }
            _ => Ok(()),
        }
    }
}

/// `[egress]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Loopback port inside each container on which the proxy listens.
    pub port: u16,
    /// Names that only the proxy resolves, such as a test upstream.
    pub resolve: BTreeMap<String, Vec<IpAddr>>,
    /// Private, loopback or link-local networks that containers may reach all the same.
    pub allow_private: Vec<IpNet>,
    /// Limits of one container.
    pub limits: LimitSettings,
    /// Limits of all containers together.
    pub total: TotalSettings,
    /// How those go out who have no identity: `direct`, `none`, or the name of an identity.
    pub default: String,
    /// Seconds between two looks at whether an identity can be reached; 0 is never.
    pub probe_seconds: u64,
    /// Failures in a row after which an identity counts as down.
    pub down_after: u32,
    /// Addresses with which users go out.
    pub identity: BTreeMap<String, IdentitySettings>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            port: 3128,
            resolve: BTreeMap::new(),
            allow_private: Vec::new(),
            limits: LimitSettings::default(),
            total: TotalSettings::default(),
            default: "direct".to_owned(),
            probe_seconds: 30,
            down_after: 3,
            identity: BTreeMap::new(),
        }
    }
}
