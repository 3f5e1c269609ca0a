//! Which addresses are not the public internet.
//!
//! Threat: an allowed name whose DNS answer an attacker controls (or an operator's wildcard) points the daemon, which
//! stands outside the container's namespace, at itself, at the host's network or at a cloud metadata service. So the
//! address is judged after resolution, and what is not known to be public is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// IPv4 blocks that are not globally reachable: the IANA special-purpose registry (RFC 6890 and updates), and the
/// one public address that is known to be a cloud's internal service.
const V4: &[(Ipv4Addr, u32, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "cloud metadata"), // Azure's wire server.
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignment"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// IPv6 blocks with a name worth telling; everything else outside of 2000::/3 is refused as "not global".
const V6: &[(Ipv6Addr, u32, &str)] = &[
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 0), 128, "unspecified"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 1), 128, "loopback"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local NAT64"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "protocol assignment"), // Teredo and ORCHID are inside.
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "private"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "private"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

/// The NAT64 well-known prefix (RFC 6052), with the IPv4 address in the last 32 bits.
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Names the special-purpose block that `ip` belongs to, or `None` when it is a public unicast address.
///
/// IPv4 addresses embedded in IPv6 (mapped, NAT64, 6to4) are judged as the IPv4 address.
pub fn special_purpose(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => V4.iter().find(|(net, len, _)| in_v4(ip, *net, *len)).map(|(.., class)| *class),
        IpAddr::V6(ip) => {
            let segments = ip.segments();
            if let Some((.., class)) = V6.iter().find(|(net, len, _)| in_v6(ip, *net, *len)) {
                Some(class)
            } else if in_v6(ip, NAT64, 96) {
                special_purpose(IpAddr::V4(embedded(segments[6], segments[7])))
            } else if segments[0] == 0x2002 {
                special_purpose(IpAddr::V4(embedded(segments[1], segments[2])))
            } else if segments[0] & 0xe000 != 0x2000 {
                Some("not global")
            } else {
                None
            }
        }
    }
}

/// Whether a connection to `ip` would end on this host: the daemon's traffic to the host's own public address goes
/// over `lo` and so past the host's firewall.
///
/// Connecting a UDP socket only asks the routing table and sends nothing; the kernel picks the destination itself
/// as source when it is local. Without a route the answer is `false`: the connection fails by itself.
pub(super) fn is_own(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let probe = || {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        // Any non-zero port does: nothing is sent.
        socket.connect(SocketAddr::new(ip, 9))?;
        socket.local_addr()
    };
    probe().is_ok_and(|local| local.ip() == ip)
}

fn in_v4(ip: Ipv4Addr, net: Ipv4Addr, len: u32) -> bool {
    (ip.to_bits() ^ net.to_bits()).leading_zeros() >= len
}

fn in_v6(ip: Ipv6Addr, net: Ipv6Addr, len: u32) -> bool {
    (ip.to_bits() ^ net.to_bits()).leading_zeros() >= len
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_named() {
        let table = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.255.255.255", "private"),
            ("100.64.0.1", "carrier-grade NAT"),
            ("100.100.100.200", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("168.63.129.16", "cloud metadata"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "protocol assignment"),
            ("192.168.1.1", "private"),
            ("198.19.255.255", "benchmarking"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.0.0.1", "private"),
            ("::ffff:169.254.169.254", "link-local"),
            ("::7f00:1", "not global"),        // Deprecated IPv4-compatible form of 127.0.0.1.
            ("::ffff:0:7f00:1", "not global"), // Translated (SIIT) form of it.
            ("64:ff9b::7f00:1", "loopback"),   // NAT64.
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("64:ff9b:1::1", "local NAT64"),
            ("100::1", "not global"),
            ("2001::1", "protocol assignment"), // Teredo.
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "loopback"), // 6to4.
            ("2002:c0a8:101::1", "private"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "private"),
            ("ff02::1", "multicast"),
            ("5f00::1", "not global"),
        ];
        for (ip, class) in table {
            assert_eq!(special_purpose(ip.parse().unwrap()), Some(class), "{ip}");
        }
    }

    #[test]
    fn public_addresses_are_not() {
        let table = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
            "2001:200::1",
            "2606:4700::6810:1",
            "3ffe::1",
        ];
        for ip in table {
            assert_eq!(special_purpose(ip.parse().unwrap()), None, "{ip}");
        }
    }

    #[test]
    fn the_hosts_own_address_is_recognised() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(!is_own("192.0.2.1".parse().unwrap()));
    }
}
