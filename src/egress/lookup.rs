//! Looks up the addresses of a name with the host's resolver.
//!
//! Names are looked up as absolute names. With the search list of the host's resolv.conf, an allowed
//! `internal.wild.test` that does not exist would become `internal.wild.test.corp.test`, which nobody allowed. A final
//! dot makes a name absolute for the resolver. Names in /etc/hosts have no final dot, so this module reads that file
//! first.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};

/// The host's own table.
const HOSTS: &str = "/etc/hosts";

/// At most `most` addresses of `name`, which has no final dot. Blocks until the resolver answers or gives up.
pub(super) fn addresses(name: &str, most: usize) -> io::Result<Vec<IpAddr>> {
    // A missing file counts as an empty one.
    let mut found = in_hosts(&std::fs::read_to_string(HOSTS).unwrap_or_default(), name);
    if found.is_empty() {
        // `to_socket_addrs` needs a port; the value has no effect.
        found = (format!("{name}.").as_str(), 1).to_socket_addrs()?.map(|address| address.ip()).collect();
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in found.into_iter().map(|ip| ip.to_canonical()) {
        if addresses.len() < most && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Addresses of a name in the text of a hosts(5) file.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|word| word.strip_suffix('.').unwrap_or(word).eq_ignore_ascii_case(name)).then_some(ip)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_table_is_read_as_hosts_5_says() {
        let table = "127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # localhost2\n\n# 10.0.0.1 commented\n\
                     10.0.0.2 Upstream.TEST up\n10.0.0.3 up.\nnonsense up\nfe80::1%eth0 up\n10.0.0.4\n";
        let found = |name| in_hosts(table, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(found("upstream.test"), ["10.0.0.2"]);
        assert_eq!(found("up"), ["10.0.0.2", "10.0.0.3"]);
        for nobody in ["commented", "localhost2", "test", "upstream", "10.0.0.2", "#"] {
            assert!(found(nobody).is_empty(), "{nobody}");
        }
    }
}
