//! `[egress.identity.NAME]`: the addresses with which users go out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[egress.identity.NAME]`: an address with which users go out. Exactly one of `upstream` and `bind`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySettings {
    /// Proxy that the connections go through: `http://HOST:PORT` or `https://HOST:PORT` (HTTP CONNECT), or
    /// `socks5://HOST:PORT` (names are resolved there).
    pub upstream: Option<String>,
    /// User name at the proxy.
    pub username: Option<String>,
    /// File with the password at the proxy, root's and closed to others.
    pub password_file: Option<PathBuf>,
    /// File with the authorities that vouch for an `https` proxy, PEM, instead of Mozilla's.
    pub ca_file: Option<PathBuf>,
    /// Address of this host that the connections come from.
    pub bind: Option<IpAddr>,
    /// Address that others see, for people to read.
    pub address: Option<IpAddr>,
    /// Words of the operator's own.
    pub labels: BTreeMap<String, String>,
    /// Users who may have it at the same time; absent means any number.
    pub max_users: Option<usize>,
}

/// Longest name of an identity, and most of its labels.
const MAX_IDENTITY_NAME: usize = 64;
const MAX_IDENTITY_LABELS: usize = 16;

impl IdentitySettings {
    /// Checks the section called `name`.
    ///
    /// # Errors
    /// The rest of the key, with a dot before it, and what is wrong there.
    pub(super) fn check(&self, name: &str) -> Result<(), (&'static str, String)> {
        let is_name = (1..=MAX_IDENTITY_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_name || matches!(name, "direct" | "none") {
            let problem = "is no name: 1 to 64 characters of a-z, 0-9 and -, and neither \"direct\" nor \"none\"";
            return Err(("", problem.to_owned()));
        }
        match (&self.upstream, self.bind) {
            (Some(_), None) | (None, Some(_)) => {}
            _ => return Err(("", "needs exactly one of `upstream` and `bind`".to_owned())),
        }
        let proxy = self.upstream.as_deref().map(ProxyUrl::parse).transpose();
        let proxy = proxy.map_err(|problem| (".upstream", problem.to_owned()))?;
        if proxy.is_none() && (self.username.is_some() || self.password_file.is_some()) {
            return Err((".username", "goes with `upstream` only: a source address has no password".to_owned()));
        }
        if self.username.is_some() != self.password_file.is_some() {
            return Err((".username", "and `password_file` go together".to_owned()));
        }
        if self.username.as_ref().is_some_and(|user| user.is_empty() || user.len() > 255 || user.contains(':')) {
            return Err((".username", "has 1 to 255 characters and no colon (RFC 7617, RFC 1929)".to_owned()));
        }
        if self.ca_file.is_some() && proxy.is_none_or(|proxy| proxy.kind != ProxyKind::Https) {
            return Err((".ca_file", "goes with an `https://` upstream only".to_owned()));
        }
        if self.max_users == Some(0) {
            return Err((".max_users", "must be at least 1; leave it out for any number".to_owned()));
        }
        if self.labels.len() > MAX_IDENTITY_LABELS
            || self.labels.iter().any(|(key, value)| key.is_empty() || key.len() > 64 || value.len() > 256)
        {
            return Err((".labels", "are at most 16, with names of 1 to 64 bytes and values of up to 256".to_owned()));
        }
        Ok(())
    }
}

/// Which protocol a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP CONNECT.
    Http,
    /// HTTP CONNECT within TLS.
    Https,
    /// SOCKS version 5 (RFC 1928).
    Socks5,
}

impl ProxyKind {
    /// Its scheme in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        }
    }
}

/// Where a proxy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    /// Its protocol.
    pub kind: ProxyKind,
    /// Its name or address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl ProxyUrl {
    /// Reads `SCHEME://HOST:PORT`.
    ///
    /// # Errors
    /// What is wrong with it. The text is not repeated: it may have a password in it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "is http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT";
        let url = reqwest::Url::parse(text).map_err(|_| FORM)?;
        let kind = match url.scheme() {
            "http" => ProxyKind::Http,
            "https" => ProxyKind::Https,
            "socks5" | "socks5h" => ProxyKind::Socks5,
            _ => return Err(FORM),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has no user name and password in it: give `username` and `password_file`");
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(FORM);
        }
        // The scheme's own port counts: `Url` leaves it out.
        let default = match kind {
            ProxyKind::Socks5 => 1080,
            ProxyKind::Http => 80,
            ProxyKind::Https => 443,
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(FORM)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { kind, host, port: url.port().unwrap_or(default) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let settings: IdentitySettings = toml::from_str(text).unwrap();
        settings.check("one").map_or_else(|(key, problem)| format!("{key} {problem}"), |()| String::new())
    }

    #[test]
    fn sections_that_are_sound_are_taken() {
        for text in [
            "upstream = \"http://proxy.example:3128\"",
            "upstream = \"https://proxy.example\"\nca_file = \"/etc/ca.pem\"",
            "upstream = \"socks5://[::1]:1080\"\nusername = \"u\"\npassword_file = \"/etc/p\"",
            "bind = \"192.0.2.7\"\naddress = \"198.51.100.7\"\nmax_users = 1\nlabels = { team = \"red\" }",
        ] {
            assert_eq!(problem(text), "", "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_no_password_with_it() {
        for (text, word) in [
            ("", "exactly one of"),
            ("upstream = \"http://a:1\"\nbind = \"192.0.2.7\"", "exactly one of"),
            ("upstream = \"http://u:secret@a:1\"", "password_file"),
            ("upstream = \"ftp://a:1\"", ".upstream is http://"),
            ("upstream = \"a:1\"", ".upstream is http://"),
            ("upstream = \"http://a:1/path\"", ".upstream is http://"),
            ("upstream = \"http://a:1\"\nusername = \"u\"", "go together"),
            ("bind = \"192.0.2.7\"\nusername = \"u\"\npassword_file = \"/p\"", "has no password"),
            ("upstream = \"http://a:1\"\nca_file = \"/p\"", "https://"),
            ("bind = \"192.0.2.7\"\nmax_users = 0", "at least 1"),
        ] {
            let problem = problem(text);
            assert!(problem.contains(word) && !problem.contains("secret"), "{text}: {problem}");
        }
        let name = IdentitySettings { bind: "192.0.2.7".parse().ok(), ..IdentitySettings::default() }.check("direct");
        assert!(name.unwrap_err().1.contains("no name"));
    }

    #[test]
    fn a_proxy_is_where_its_url_says() {
        let url = |text| ProxyUrl::parse(text).map(|url| (url.kind, url.host, url.port)).unwrap();
        assert_eq!(url("http://a.example"), (ProxyKind::Http, "a.example".to_owned(), 80));
        assert_eq!(url("https://a.example/"), (ProxyKind::Https, "a.example".to_owned(), 443));
        assert_eq!(url("socks5h://[2001:db8::7]"), (ProxyKind::Socks5, "2001:db8::7".to_owned(), 1080));
    }
}
