//! Destinations that containers may reach: host patterns, static names and exceptions for private networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::address;
use super::refusal::Refusal;
use super::target::{Host, parse_port};

/// The destinations that one provider's containers may reach. The default allows nothing.
///
/// # Patterns
///
/// A pattern is `HOST:PORT`. PORT is a number from 1 to 65535, or `*` for any. HOST is one of
///
/// | written | means |
/// |---|---|
/// | `api.openai.com` | that name |
/// | `*.chatgpt.com` | every name below it, at any depth, but not `chatgpt.com` itself |
/// | `*` | every name |
/// | `192.0.2.7`, `[2001:db8::7]` | that address, when the request names the address itself |
///
/// An empty list allows nothing. Patterns for names never match a request that names an address. A pattern alone
/// never opens a private address: see [`Policy::new`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The patterns as they were given.
    allowed: Vec<String>,
    patterns: Vec<Pattern>,
    resolve: BTreeMap<String, Vec<IpAddr>>,
    allow_private: Vec<IpNet>,
}

/// What [`Policy::decide`] found for a host and a port.
#[derive(Debug)]
pub enum Decision {
    /// Allowed, at these configured addresses and no others; they need no further check.
    Static {
        /// The normalised name.
        name: String,
        /// Its addresses, never empty.
        addresses: Vec<IpAddr>,
    },
    /// Allowed by address; the address must still pass [`Policy::check_address`].
    Address(IpAddr),
    /// Allowed by this normalised name; each address that it resolves to must still pass [`Policy::check_address`].
    Name(String),
    /// Not allowed.
    Refused(Refusal),
}

/// Why a policy is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An entry of the allow-list cannot be read.
    #[error("egress pattern {pattern:?}: {reason}; write it like \"api.example.com:443\" or \"*.example.com:443\"")]
    Pattern {
        /// The entry.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A static name cannot be read.
    #[error("static egress name {name:?}: {reason}; write a host name without port and at least one address")]
    StaticName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An exception for a private network can never apply.
    #[error("egress.allow_private network {net}: IPv4 destinations are compared as IPv4; write the IPv4 network")]
    MappedNetwork {
        /// The network.
        net: IpNet,
    },
}

impl Policy {
    /// Builds a policy from an allow-list (see [`Policy`]), static names and exceptions for private networks.
    ///
    /// `resolve` gives names that only the proxy resolves, to exactly these addresses, which may be private: an
    /// operator's test upstream or a gateway. A static name must still be in the allow-list.
    /// `allow_private` lists networks that an allowed name or address may lie in although they are not public.
    ///
    /// # Errors
    /// The first entry that cannot be read or can never apply.
    pub fn new(
        patterns: &[impl AsRef<str>],
        resolve: BTreeMap<String, Vec<IpAddr>>,
        allow_private: Vec<IpNet>,
    ) -> Result<Self, PolicyError> {
        let allowed = patterns.iter().map(|text| text.as_ref().to_owned()).collect();
        let patterns = patterns.iter().map(|text| Pattern::parse(text.as_ref())).collect::<Result<_, _>>()?;
        let mut names = BTreeMap::new();
        for (name, addresses) in resolve {
            let bad = |reason| PolicyError::StaticName { name: name.clone(), reason };
            let normal = match Host::parse(&name).map_err(bad)? {
                Host::Name(normal) => normal,
                Host::Ip(_) => return Err(bad("an address needs no static name")),
            };
            if addresses.is_empty() {
                return Err(bad("it has no address"));
            }
            let addresses = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
            if names.insert(normal, addresses).is_some() {
                return Err(bad("it is given twice"));
            }
        }
        let mapped = |net: &&IpNet| matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
        if let Some(&net) = allow_private.iter().find(mapped) {
            return Err(PolicyError::MappedNetwork { net });
        }
        Ok(Self { allowed, patterns, resolve: names, allow_private })
    }

    /// The patterns as they were given; an empty list if they are longer than `most` bytes together.
    pub fn allowed(&self, most: usize) -> Vec<String> {
        let length: usize = self.allowed.iter().map(|text| text.len() + 8).sum();
        if length <= most { self.allowed.clone() } else { Vec::new() }
    }

    /// Decides about a host as written in a request (IPv6 addresses in brackets) and a port. Resolves nothing.
    pub fn decide(&self, host: &str, port: u16) -> Decision {
        let host = match Host::parse(host) {
            Ok(host) => host,
            Err(reason) => return Decision::Refused(Refusal::Malformed(reason)),
        };
        if !self.patterns.iter().any(|pattern| pattern.matches(&host, port)) {
            return Decision::Refused(Refusal::NotAllowed { host: host.to_string(), port });
        }
        match host {
            Host::Ip(ip) => Decision::Address(ip),
            Host::Name(name) => match self.resolve.get(&name) {
                Some(addresses) => Decision::Static { name, addresses: addresses.clone() },
                None => Decision::Name(name),
            },
        }
    }

    /// Checks an address that an allowed host resolved to, right before connecting to that same address.
    ///
    /// # Errors
    /// The kind of address, when it is not public and not in `allow_private`; among them the host's own addresses,
    /// which the routing table knows.
    pub fn check_address(&self, ip: IpAddr) -> Result<(), &'static str> {
        let ip = ip.to_canonical();
        if self.allow_private.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        match address::special_purpose(ip) {
            Some(class) => Err(class),
            None if address::is_own(ip) => Err("this host's own"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    host: HostPattern,
    /// `None` is any port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    AnyName,
    Name(String),
    /// The domain with a leading dot, so that `evilchatgpt.com` does not match `*.chatgpt.com`.
    Below(String),
    Ip(IpAddr),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PolicyError> {
        let bad = |reason| PolicyError::Pattern { pattern: text.to_owned(), reason };
        if text.contains("://") || text.contains('/') {
            return Err(bad("it is a URL or has a path"));
        }
        // Within an IPv6 address in brackets, the last colon is part of the address, not the port's.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => return Err(bad("the port is missing")),
        };
        let port = if port == "*" { None } else { Some(parse_port(port).map_err(bad)?) };
        let host = if host == "*" {
            HostPattern::AnyName
        } else if let Some(domain) = host.strip_prefix("*.") {
            match Host::parse(domain).map_err(bad)? {
                Host::Name(name) => HostPattern::Below(format!(".{name}")),
                Host::Ip(_) => return Err(bad("addresses have no wildcard")),
            }
        } else if host.contains('*') {
            return Err(bad("a wildcard is a whole first label"));
        } else {
            match Host::parse(host).map_err(bad)? {
                Host::Name(name) => HostPattern::Name(name),
                Host::Ip(ip) => HostPattern::Ip(ip),
            }
        };
        Ok(Self { host, port })
    }

    fn matches(&self, host: &Host, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
            && match (&self.host, host) {
                (HostPattern::AnyName, Host::Name(_)) => true,
                (HostPattern::Name(own), Host::Name(name)) => own == name,
                (HostPattern::Below(suffix), Host::Name(name)) => {
                    name.len() > suffix.len() && name.ends_with(suffix.as_str())
                }
                (HostPattern::Ip(own), Host::Ip(ip)) => own == ip,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(patterns: &[&str]) -> Policy {
        Policy::new(patterns, BTreeMap::new(), vec![]).unwrap()
    }

    fn allowed(policy: &Policy, host: &str, port: u16) -> bool {
        !matches!(policy.decide(host, port), Decision::Refused(_))
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        assert!(!allowed(&Policy::default(), "example.com", 443));
        assert!(!allowed(&policy(&[]), "1.1.1.1", 443));
    }

    #[test]
    fn patterns_match_what_they_say() {
        let table: &[(&str, &str, u16, bool)] = &[
            ("api.openai.com:443", "api.openai.com", 443, true),
            ("api.openai.com:443", "API.OPENAI.COM.", 443, true),
            ("API.openai.com.:443", "api.openai.com", 443, true),
            ("api.openai.com:443", "api.openai.com", 80, false),
            ("api.openai.com:443", "xapi.openai.com", 443, false),
            ("api.openai.com:443", "a.api.openai.com", 443, false),
            ("api.openai.com:443", "api.openai.com.evil.example", 443, false),
            ("*.chatgpt.com:443", "a.chatgpt.com", 443, true),
            ("*.chatgpt.com:443", "a.b.chatgpt.com", 443, true),
            ("*.chatgpt.com:443", "chatgpt.com", 443, false),
            ("*.chatgpt.com:443", "evilchatgpt.com", 443, false),
            ("*.chatgpt.com:443", ".chatgpt.com", 443, false),
            ("host.example:*", "host.example", 1, true),
            ("host.example:*", "host.example", 65535, true),
            ("*:443", "anything.example", 443, true),
            ("*:443", "anything.example", 80, false),
            ("*:*", "1.1.1.1", 443, false),
            ("*:*", "[2606:4700::1]", 443, false),
            ("*:*", "16843009", 443, false),
            ("1.1.1.1:443", "1.1.1.1", 443, true),
            ("1.1.1.1:443", "[::ffff:1.1.1.1]", 443, true),
            ("1.1.1.1:443", "1.1.1.2", 443, false),
            ("[2606:4700::1]:443", "[2606:4700:0::1]", 443, true),
        ];
        for (pattern, host, port, expected) in table {
            assert_eq!(allowed(&policy(&[pattern]), host, *port), *expected, "{pattern} against {host}:{port}");
        }
    }

    #[test]
    fn malformed_patterns_say_what_is_wrong() {
        let table = [
            ("api.openai.com", "port is missing"),
            ("[2606:4700::1]", "port is missing"),
            ("https://api.openai.com:443", "URL"),
            ("api.openai.com:443/v1", "path"),
            ("api.openai.com:https", "1 to 65535"),
            ("api.openai.com:0", "1 to 65535"),
            ("api.openai.com:", "1 to 65535"),
            ("api.*.com:443", "whole first label"),
            ("*openai.com:443", "whole first label"),
            ("*.10.0.0.1:443", "no wildcard"),
            ("*.:443", "empty"),
            (":443", "empty"),
            ("bücher.example:443", "ASCII"),
            ("2606:4700::1:443", "IPv6 address must stand in brackets"),
            ("127.1:80", "full IPv4"),
            (" a.example:443", "letters"),
        ];
        for (pattern, reason) in table {
            let error = Policy::new(&[pattern], BTreeMap::new(), vec![]).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&format!("{pattern:?}")), "{pattern}: {error}");
        }
    }

    #[test]
    fn static_names_replace_resolution_but_not_the_allow_list() {
        let resolve = || BTreeMap::from([("Upstream.TEST".to_owned(), vec!["::ffff:127.0.0.1".parse().unwrap()])]);
        let policy = Policy::new(&["upstream.test:80"], resolve(), vec![]).unwrap();
        let Decision::Static { addresses, .. } = policy.decide("upstream.test", 80) else { panic!("not static") };
        assert_eq!(addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(!allowed(&policy, "upstream.test", 81));
        assert!(!allowed(&Policy::new(&["other.test:80"], resolve(), vec![]).unwrap(), "upstream.test", 80));
    }

    #[test]
    fn malformed_static_names_and_networks_are_refused() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let none: &[&str] = &[];
        for resolve in [
            BTreeMap::from([("a b".to_owned(), vec![ip])]),
            BTreeMap::from([("127.0.0.1".to_owned(), vec![ip])]),
            BTreeMap::from([("a.test:80".to_owned(), vec![ip])]),
            BTreeMap::from([("a.test".to_owned(), vec![])]),
            BTreeMap::from([("a.test".to_owned(), vec![ip]), ("A.test".to_owned(), vec![ip])]),
        ] {
            let error = Policy::new(none, resolve.clone(), vec![]).unwrap_err();
            assert!(matches!(error, PolicyError::StaticName { .. }), "{resolve:?}: {error}");
        }
        let mapped = "::ffff:10.0.0.0/104".parse().unwrap();
        assert_eq!(Policy::new(none, BTreeMap::new(), vec![mapped]), Err(PolicyError::MappedNetwork { net: mapped }));
    }

    #[test]
    fn private_addresses_need_an_exception_that_covers_them() {
        let mut policy = policy(&["*:*"]);
        for ip in ["127.0.0.1", "169.254.169.254", "10.1.2.3", "fd00::1", "64:ff9b::a01:203"] {
            assert!(policy.check_address(ip.parse().unwrap()).is_err(), "{ip}");
        }
        policy.allow_private = vec!["10.1.0.0/16".parse().unwrap()];
        assert_eq!(policy.check_address("10.1.2.3".parse().unwrap()), Ok(()));
        assert_eq!(policy.check_address("::ffff:10.1.2.3".parse().unwrap()), Ok(()));
        assert_eq!(policy.check_address("10.2.0.1".parse().unwrap()), Err("private"));
        // Behind a NAT64 gateway the same digits are another network.
        assert_eq!(policy.check_address("64:ff9b::a01:203".parse().unwrap()), Err("private"));
    }
}
