//! Reads the host and port of a request in exactly one way, so that policy and connection cannot disagree.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Longest host name in its textual form without the trailing dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// Longest label of a host name (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A destination host in its one normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Host {
    /// Lower-case ASCII name without trailing dot; never something that a resolver could read as an address.
    Name(String),
    /// An address literal; IPv4-mapped IPv6 is written as IPv4.
    Ip(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URL or a pattern: a name, an IPv4 address or an IPv6 address in brackets.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or("the bracket of an IPv6 address is not closed")?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| "not an IPv6 address")?;
            return Ok(Self::Ip(IpAddr::V6(ip).to_canonical()));
        }
        if !text.is_ascii() {
            return Err("a host name must be ASCII; write an international name in its xn-- form");
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if let Ok(ip) = name.parse::<IpAddr>() {
            return match ip {
                IpAddr::V4(_) => Ok(Self::Ip(ip)),
                IpAddr::V6(_) => Err("an IPv6 address must stand in brackets"),
            };
        }
        if name.is_empty() {
            return Err("the host name is empty");
        }
        if name.len() > MAX_NAME {
            return Err("the host name is longer than 253 characters");
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return Err("each label of a host name has 1 to 63 characters");
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err("a host name consists of letters, digits, hyphens, underscores and dots");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err("a label of a host name neither starts nor ends with a hyphen");
            }
        }
        // getaddrinfo reads 127.1, 2130706433 and 0x7f000001 as addresses. Such a "name" would reach an address after
        // being checked only against the patterns for names.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return Err("a host that ends in a number must be a full IPv4 address");
        }
        Ok(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// Splits `host:port`, `[v6]:port` or a bare host. Does not check the host; a port must be 1 to 65535.
pub(super) fn split_authority(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    // The text is not repeated in the error: what stands before the @ may be a password.
    if authority.contains('@') {
        return Err("user information in a URL is not accepted");
    }
    let end = match authority.strip_prefix('[') {
        Some(_) => authority.find(']').ok_or("the bracket of an IPv6 address is not closed")? + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err("only a port may follow the host"),
        Some("") => None,
        Some(digits) => Some(parse_port(digits)?),
    };
    Ok((host, port))
}

/// Reads a port: digits only, 1 to 65535.
pub(super) fn parse_port(digits: &str) -> Result<u16, &'static str> {
    const BAD: &str = "a port is a number from 1 to 65535";
    // u16::from_str accepts a plus sign.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BAD);
    }
    digits.parse().ok().filter(|&port| port != 0).ok_or(BAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_form() {
        let table = [
            ("API.OpenAI.com", "api.openai.com"),
            ("api.openai.com.", "api.openai.com"),
            ("localhost", "localhost"),
            ("_srv.a-b.example", "_srv.a-b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("[::FFFF:127.0.0.1]", "127.0.0.1"),
            ("1.example", "1.example"),
        ];
        for (text, normal) in table {
            assert_eq!(Host::parse(text).unwrap().to_string(), normal, "{text}");
        }
    }

    #[test]
    fn ambiguous_hosts_are_refused() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63).as_str(); 4].join(".");
        let table = [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "-a.b",
            "a-.b",
            "a b",
            "a%20b",
            "a/b",
            "a@b",
            "bücher.example",
            "a\nb",
            "a\0b",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "127.0.0.0x1",
            "0177.0.0.1",
            "1.2.3.4.5",
            "::1",
            "fe80::1",
            "[::1",
            "[fe80::1%eth0]",
            "[127.0.0.1]",
            "[]",
            "*",
            "*.example",
            &long_label,
            &long_name,
        ];
        for text in table {
            assert!(Host::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn authorities_are_split_without_guessing() {
        assert_eq!(split_authority("a.b:443"), Ok(("a.b", Some(443))));
        assert_eq!(split_authority("a.b"), Ok(("a.b", None)));
        assert_eq!(split_authority("a.b:"), Ok(("a.b", None)));
        assert_eq!(split_authority("[::1]:80"), Ok(("[::1]", Some(80))));
        assert_eq!(split_authority("[::1]"), Ok(("[::1]", None)));
        for text in
            ["a:0", "a:65536", "a:+80", "a: 80", "a:80:80", "a:8O", "u:p@a:80", "@a:80", "[::1]80", "[::1", "::1"]
        {
            assert!(split_authority(text).is_err(), "{text:?} was accepted");
        }
    }
}
