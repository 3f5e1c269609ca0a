//! Calls that stand for many: what each may be asked, and that what was refused costs the programs of real life nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use libc::{
    AF_INET, AF_INET6, AF_UNIX, EINVAL, ENOPROTOOPT, ENOTTY, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT, SOCK_DGRAM,
    SOCK_STREAM,
};
use support::{Call, Daemon, OwnedCall, Value, assert_calls, assert_owned, n, text};

#[tokio::test]
async fn protocols_that_load_modules_are_refused_as_if_the_kernel_lacked_them() {
    let daemon = Daemon::start(|setup| setup).await;
    // IPPROTO_* and SOCK_* by number (linux/in.h, linux/net.h): not by the filter's own list.
    let mut calls: Vec<(&str, Vec<Value>, Result<(), i32>)> = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for (name, kind, protocol) in [
            ("SCTP", SOCK_STREAM, 132),
            ("SCTP one to many", libc::SOCK_SEQPACKET, 132),
            ("DCCP", 6, 33),
            ("UDP-Lite", SOCK_DGRAM, 136),
            ("SMC", SOCK_STREAM, 256),
            ("MPTCP", SOCK_STREAM, 262),
            ("L2TP", SOCK_DGRAM, 115),
            ("a protocol of tomorrow", SOCK_STREAM, 300),
        ] {
            let errno = if kind == 6 || kind == libc::SOCK_SEQPACKET { ESOCKTNOSUPPORT } else { EPROTONOSUPPORT };
            calls.push((name, vec![n(family), n(kind), n(protocol)], Err(errno)));
            // Flags stand beside the type.
            calls.push((name, vec![n(family), n(kind | libc::SOCK_CLOEXEC), n(protocol)], Err(errno)));
        }
        calls.push(("raw", vec![n(family), n(libc::SOCK_RAW), n(6)], Err(EPERM)));
        calls.push(("TCP", vec![n(family), n(SOCK_STREAM | libc::SOCK_NONBLOCK), n(0)], Ok(())));
        calls.push(("TCP by name", vec![n(family), n(SOCK_STREAM), n(6)], Ok(())));
        calls.push(("UDP", vec![n(family), n(SOCK_DGRAM | libc::SOCK_CLOEXEC), n(17)], Ok(())));
    }
    calls.push(("SMC as a family", vec![n(43), n(SOCK_STREAM), n(0)], Err(EPERM)));
    calls.push(("TIPC", vec![n(30), n(SOCK_STREAM), n(0)], Err(EPERM)));
    calls.push(("ping", vec![n(AF_INET), n(SOCK_DGRAM), n(1)], Ok(())));
    calls.push(("ping6", vec![n(AF_INET6), n(SOCK_DGRAM), n(58)], Ok(())));
    calls.push(("unix", vec![n(AF_UNIX), n(libc::SOCK_SEQPACKET), n(0)], Ok(())));
    let calls: Vec<Call<'_>> =
        calls.iter().map(|(name, arguments, expected)| (*name, libc::SYS_socket, &arguments[..], *expected)).collect();
    assert_calls(&daemon, &calls).await;
    daemon.stop().await;
}

#[tokio::test]
async fn options_and_requests_are_allowed_by_number() {
    let daemon = Daemon::start(|setup| setup).await;
    let one = || Value::Data(vec![1, 0, 0, 0, 0, 0, 0, 0]);
    let (tcp, udp6, file, terminal) = (Value::Result(0), Value::Result(1), Value::Result(2), Value::Result(3));
    let set = |socket: &Value, level: i32, option: i32| vec![socket.clone(), n(level), n(option), one(), n(4)];
    let ask = |what: &Value, request: u64| vec![what.clone(), request.into(), Value::Data(vec![0; 64])];
    let lock = || Value::Data(vec![0; 32]);
    let (option, ioctl, fcntl, prctl) = (libc::SYS_setsockopt, libc::SYS_ioctl, libc::SYS_fcntl, libc::SYS_prctl);
    let of_self = |number: i32, value: i32| vec![n(number), n(value), n(0), n(0), n(0)];
    let file_flags = vec![text(c"/tmp/f"), n(libc::O_CREAT | libc::O_RDWR), n(0o600)];
    let calls: Vec<OwnedCall> = vec![
        ("a socket", libc::SYS_socket, vec![n(AF_INET), n(SOCK_STREAM), n(0)], Ok(())),
        ("another", libc::SYS_socket, vec![n(AF_INET6), n(SOCK_DGRAM), n(0)], Ok(())),
        ("a file", libc::SYS_open, file_flags, Ok(())),
        ("a terminal", libc::SYS_open, vec![text(c"/dev/ptmx"), n(libc::O_RDWR | libc::O_NOCTTY)], Ok(())),
        // Options of sockets.
        ("SO_REUSEADDR", option, set(&tcp, 1, 2), Ok(())),
        ("SO_KEEPALIVE", option, set(&tcp, 1, 9), Ok(())),
        ("TCP_NODELAY", option, set(&tcp, 6, 1), Ok(())),
        ("IP_TOS", option, set(&tcp, 0, 1), Ok(())),
        ("IPV6_V6ONLY", option, set(&udp6, 41, 26), Ok(())),
        ("SO_ATTACH_FILTER", option, set(&tcp, 1, 26), Err(EPERM)),
        ("SO_ATTACH_BPF", option, set(&tcp, 1, 50), Err(EPERM)),
        ("SO_ATTACH_REUSEPORT_CBPF", option, set(&tcp, 1, 51), Err(EPERM)),
        ("SO_ATTACH_REUSEPORT_EBPF", option, set(&tcp, 1, 52), Err(EPERM)),
        ("TCP_ULP", option, set(&tcp, 6, 31), Err(EPERM)),
        ("TCP_MD5SIG", option, set(&tcp, 6, 14), Err(EPERM)),
        ("IP_ADD_MEMBERSHIP", option, set(&tcp, 0, 35), Err(EPERM)),
        ("IPV6_JOIN_GROUP", option, set(&udp6, 41, 20), Err(EPERM)),
        ("IPV6_FLOWLABEL_MGR", option, set(&udp6, 41, 32), Err(EPERM)),
        ("IPV6_ADDRFORM", option, set(&udp6, 41, 1), Err(EPERM)),
        ("iptables", option, set(&tcp, 0, 64), Err(ENOPROTOOPT)),
        ("an option of tomorrow", option, set(&tcp, 1, 999), Err(ENOPROTOOPT)),
        ("a level of tomorrow", option, set(&tcp, 263, 1), Err(ENOPROTOOPT)),
        // Requests to devices and files.
        ("FIONREAD", ioctl, ask(&tcp, 0x541b), Ok(())),
        ("TIOCGWINSZ", ioctl, ask(&terminal, 0x5413), Ok(())),
        ("TCGETS", ioctl, ask(&terminal, 0x5401), Ok(())),
        ("SIOCGIFCONF", ioctl, ask(&tcp, 0x8912), Ok(())),
        ("TIOCSETD", ioctl, ask(&terminal, 0x5423), Err(EPERM)),
        ("TIOCCONS", ioctl, ask(&terminal, 0x541d), Err(EPERM)),
        ("FIDEDUPERANGE", ioctl, ask(&file, 0xc018_9436), Err(EPERM)),
        ("FIFREEZE", ioctl, ask(&file, 0xc004_5877), Err(EPERM)),
        ("a request of tomorrow", ioctl, ask(&terminal, 0x5fff), Err(ENOTTY)),
        // Descriptors.
        ("F_SETLK", fcntl, vec![file.clone(), n(6), lock()], Ok(())),
        ("F_OFD_SETLK", fcntl, vec![file.clone(), n(37), lock()], Err(EINVAL)),
        ("F_GETFL", fcntl, vec![file.clone(), n(3)], Ok(())),
        ("F_SETLEASE", fcntl, vec![file.clone(), n(1024), n(0)], Err(EPERM)),
        ("F_NOTIFY", fcntl, vec![file.clone(), n(1026), n(2)], Err(EINVAL)),
        ("F_SET_RW_HINT", fcntl, vec![file.clone(), n(1036), lock()], Err(EINVAL)),
        ("a command of tomorrow", fcntl, vec![file, n(1999)], Err(EINVAL)),
        // The process itself.
        ("PR_GET_DUMPABLE", prctl, of_self(3, 0), Ok(())),
        ("PR_SET_CHILD_SUBREAPER", prctl, of_self(36, 1), Ok(())),
        ("PR_SCHED_CORE", prctl, of_self(62, 1), Err(EPERM)),
        ("PR_SET_MEMORY_MERGE", prctl, of_self(67, 1), Err(EINVAL)),
        ("PR_SET_MM", prctl, of_self(35, 1), Err(EPERM)),
        ("a setting of tomorrow", prctl, of_self(999, 1), Err(EINVAL)),
        ("a filter of its own", libc::SYS_seccomp, vec![n(1), n(0), one()], Err(EINVAL)),
        ("MADV_MERGEABLE", libc::SYS_madvise, vec![n(0), n(0), n(12)], Err(EINVAL)),
        ("MADV_DONTNEED", libc::SYS_madvise, vec![n(0), n(0), n(4)], Ok(())),
    ];
    assert_owned(&daemon, &calls).await;
    daemon.stop().await;
}

#[tokio::test]
async fn sockets_whose_memory_is_charged_to_nobody_are_few() {
    let daemon = Daemon::start(|setup| setup).await;
    let netlink = || ("netlink", libc::SYS_socket, vec![n(libc::AF_NETLINK), n(libc::SOCK_RAW), n(0)]);
    let ping = || ("ping", libc::SYS_socket, vec![n(AF_INET), n(SOCK_DGRAM), n(1)]);
    let close = |index: usize| ("close", libc::SYS_close, vec![Value::Result(index)]);
    let mut calls: Vec<OwnedCall> = Vec::new();
    let mut add = |(name, number, arguments): (&'static str, i64, Vec<Value>), expected| {
        calls.push((name, number, arguments, expected));
    };
    (0..64).for_each(|_| add(netlink(), Ok(())));
    add(netlink(), Err(libc::ENOBUFS));
    // One that is closed makes way for another one.
    add(close(0), Ok(()));
    add(netlink(), Ok(()));
    add(netlink(), Err(libc::ENOBUFS));
    // Those for echo requests are counted over the life of the container.
    (0..128).for_each(|_| add(ping(), Ok(())));
    add(close(70), Ok(()));
    add(ping(), Err(libc::ENOBUFS));
    // Others are as many as one may have open.
    add(("TCP", libc::SYS_socket, vec![n(AF_INET), n(SOCK_STREAM), n(0)]), Ok(()));
    // The size of a buffer is a wish: no error, and nothing that changes.
    let (socket, large) = (Value::Result(1), Value::Data((1u32 << 24).to_ne_bytes().to_vec()));
    add(("SO_RCVBUF", libc::SYS_setsockopt, vec![socket, n(1), n(8), large, n(4)]), Ok(()));
    assert_owned(&daemon, &calls).await;

    // Listeners: 32, of which the container's way out is one.
    let mut calls: Vec<OwnedCall> = Vec::new();
    for _ in 0..70 {
        calls.push(("socket", libc::SYS_socket, vec![n(AF_INET), n(SOCK_STREAM), n(0)], Ok(())));
    }
    for index in 0..70 {
        let expected = if index < 32 { Ok(()) } else { Err(libc::ENOBUFS) };
        calls.push(("listen", libc::SYS_listen, vec![Value::Result(index), n(1)], expected));
    }
    for index in 0..2 {
        calls.push(("close", libc::SYS_close, vec![Value::Result(index)], Ok(())));
    }
    calls.push(("again", libc::SYS_listen, vec![Value::Result(69), n(1)], Ok(())));
    calls.push(("too many again", libc::SYS_listen, vec![Value::Result(68), n(1)], Err(libc::ENOBUFS)));
    assert_owned(&daemon, &calls).await;
    daemon.stop().await;
}
