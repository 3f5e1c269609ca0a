//! Calls that stand for many: what `ioctl`, `fcntl`, `prctl`, `setsockopt` and their kin do is chosen by an argument, so
//! that each of its values is looked at as if it were a call. The tables are the filter, and the page of it.

use libc::{EINVAL, ENOPROTOOPT, ENOTTY, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT};

/// What such a call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel does as asked.
    Allow,
    /// The next choice of the call decides.
    Next,
    /// thaw-init decides, which counts how many there are.
    Ask,
    /// This error.
    Refuse(i32),
}

/// Values that get the same answer for the same reason, by the names of the kernel's headers.
#[derive(Debug)]
pub struct Row {
    /// Name and value.
    pub values: &'static [(&'static str, u32)],
    /// What they get.
    pub answer: Answer,
    /// Why.
    pub why: &'static str,
}

/// The values of one argument: all others get `otherwise`.
#[derive(Debug)]
pub struct Choice {
    /// Another argument, by its index, and the value that it has to have, with its name: the level of an option, the
    /// family of a socket. With another value the next choice decides.
    pub given: Option<(u32, u32, &'static str)>,
    /// Index of the argument that chooses.
    pub argument: u32,
    /// The bits of it that count.
    pub mask: u32,
    /// What values get that stand in no row.
    pub otherwise: Answer,
    /// The rows.
    pub rows: &'static [Row],
}

/// A call that stands for many.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// In this order.
    pub choices: &'static [Choice],
    /// What it gets if none of them decides.
    pub elsewhere: Answer,
}

/// Constants of `libc`, with their names.
macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name as u32)),*] };
}

const fn allow(values: &'static [(&'static str, u32)], why: &'static str) -> Row {
    Row { values, answer: Answer::Allow, why }
}

const fn refuse(values: &'static [(&'static str, u32)], errno: i32, why: &'static str) -> Row {
    Row { values, answer: Answer::Refuse(errno), why }
}

const fn by_number(argument: u32, otherwise: Answer, rows: &'static [Row]) -> Choice {
    Choice { given: None, argument, mask: u32::MAX, otherwise, rows }
}

const fn option(level: i32, name: &'static str, rows: &'static [Row]) -> Choice {
    let given = Some((1, level as u32, name));
    Choice { given, argument: 2, mask: u32::MAX, otherwise: Answer::Refuse(ENOPROTOOPT), rows }
}

const fn socket_type(family: i32, name: &'static str) -> Choice {
    // SOCK_TYPE_MASK (linux/net.h): the rest are SOCK_CLOEXEC and SOCK_NONBLOCK.
    let (given, mask) = (Some((0, family as u32, name)), 0xf);
    Choice { given, argument: 1, mask, otherwise: Answer::Refuse(ESOCKTNOSUPPORT), rows: SOCKET_TYPES }
}

const fn protocol(family: i32, name: &'static str) -> Choice {
    let given = Some((0, family as u32, name));
    Choice { given, argument: 2, mask: u32::MAX, otherwise: Answer::Refuse(EPROTONOSUPPORT), rows: PROTOCOLS }
}

/// Every call that is looked into.
pub const CALLS: &[Call] = &[
    Call {
        name: "ioctl",
        number: libc::SYS_ioctl,
        choices: &[by_number(1, Answer::Refuse(ENOTTY), IOCTL)],
        elsewhere: Answer::Allow,
    },
    Call {
        name: "fcntl",
        number: libc::SYS_fcntl,
        choices: &[by_number(1, Answer::Refuse(EINVAL), FCNTL)],
        elsewhere: Answer::Allow,
    },
    Call {
        name: "prctl",
        number: libc::SYS_prctl,
        choices: &[by_number(0, Answer::Refuse(EINVAL), PRCTL)],
        elsewhere: Answer::Allow,
    },
    Call {
        name: "seccomp",
        number: libc::SYS_seccomp,
        choices: &[by_number(0, Answer::Refuse(EINVAL), SECCOMP)],
        elsewhere: Answer::Allow,
    },
    Call {
        name: "madvise",
        number: libc::SYS_madvise,
        choices: &[by_number(2, Answer::Allow, MADVISE)],
        elsewhere: Answer::Allow,
    },
    Call {
        name: "setsockopt",
        number: libc::SYS_setsockopt,
        choices: &[
            option(libc::SOL_SOCKET, "SOL_SOCKET", SOCKET_OPTIONS),
            option(libc::IPPROTO_TCP, "IPPROTO_TCP", TCP_OPTIONS),
            option(libc::IPPROTO_IP, "IPPROTO_IP", IP_OPTIONS),
            option(libc::IPPROTO_IPV6, "IPPROTO_IPV6", IPV6_OPTIONS),
            option(libc::IPPROTO_UDP, "IPPROTO_UDP", UDP_OPTIONS),
            option(libc::SOL_NETLINK, "SOL_NETLINK", NETLINK_OPTIONS),
        ],
        elsewhere: Answer::Refuse(ENOPROTOOPT),
    },
    Call {
        name: "socket",
        number: libc::SYS_socket,
        choices: &[
            socket_type(libc::AF_INET, "AF_INET"),
            socket_type(libc::AF_INET6, "AF_INET6"),
            protocol(libc::AF_INET, "AF_INET"),
            protocol(libc::AF_INET6, "AF_INET6"),
            Choice {
                given: Some((0, libc::AF_NETLINK as u32, "AF_NETLINK")),
                argument: 2,
                mask: u32::MAX,
                otherwise: Answer::Refuse(EPERM),
                rows: NETLINK,
            },
        ],
        // The list of calls decides on the other families.
        elsewhere: Answer::Allow,
    },
    Call {
        name: "listen",
        number: libc::SYS_listen,
        // Whether it is a TCP socket is not to be seen from its arguments.
        choices: &[by_number(0, Answer::Ask, &[])],
        elsewhere: Answer::Allow,
    },
];

const SOCKET_TYPES: &[Row] = &[
    Row { values: named![SOCK_STREAM, SOCK_DGRAM], answer: Answer::Next, why: "if its protocol is allowed" },
    refuse(named![SOCK_RAW], EPERM, "packets of any kind; it needs CAP_NET_RAW"),
];

const UNCHARGED: &str =
    "what such a socket has received is charged to nobody: a container may have 64 of them at a time";

const NETLINK: &[Row] = &[Row { values: &[("NETLINK_ROUTE", 0)], answer: Answer::Ask, why: UNCHARGED }];

const PROTOCOLS: &[Row] = &[
    allow(
        &[("0", 0), ("IPPROTO_TCP", libc::IPPROTO_TCP as u32), ("IPPROTO_UDP", libc::IPPROTO_UDP as u32)],
        "TCP and UDP, whose buffers are charged to the container",
    ),
    Row {
        values: &[("IPPROTO_ICMP", libc::IPPROTO_ICMP as u32), ("IPPROTO_ICMPV6", libc::IPPROTO_ICMPV6 as u32)],
        answer: Answer::Ask,
        why: "ping; what such a socket has received is charged to nobody: a container may have 128 of them in its life",
    },
    refuse(
        &[
            ("IPPROTO_SCTP", 132),
            ("IPPROTO_DCCP", 33),
            ("IPPROTO_UDPLITE", 136),
            ("IPPROTO_L2TP", 115),
            ("IPPROTO_SMC", 256),
            ("IPPROTO_MPTCP", 262),
        ],
        EPROTONOSUPPORT,
        "they load modules of the host's kernel, which have a record of holes; as where the kernel lacks them, programs \
         take TCP or UDP",
    ),
];

const IOCTL: &[Row] = &[
    allow(
        named![
            TCGETS,
            TCSETS,
            TCSETSW,
            TCSETSF,
            TCGETS2,
            TCSETS2,
            TCSETSW2,
            TCSETSF2,
            TCGETA,
            TCSETA,
            TCSETAW,
            TCSETAF,
            TCSBRK,
            TCSBRKP,
            TIOCSBRK,
            TIOCCBRK,
            TCXONC,
            TCFLSH,
            TIOCEXCL,
            TIOCNXCL,
            TIOCGEXCL,
            TIOCSCTTY,
            TIOCNOTTY,
            TIOCGPGRP,
            TIOCSPGRP,
            TIOCGSID,
            TIOCGWINSZ,
            TIOCSWINSZ,
            TIOCGETD,
            TIOCMGET,
            TIOCMBIS,
            TIOCMBIC,
            TIOCMSET,
            TIOCGSOFTCAR,
            TIOCSSOFTCAR,
        ],
        "terminals of the container's own: modes, size, who is in the foreground",
    ),
    allow(
        named![TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK, TIOCGPTPEER, TIOCPKT, TIOCGPKT, TIOCSIG, TIOCGDEV],
        "making terminals (script, tmux, ssh, expect)",
    ),
    allow(
        named![FIONREAD, FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX, FIOQSIZE, TIOCOUTQ],
        "how much can be read, whether to wait, close-on-exec",
    ),
    allow(
        &[
            ("FIGETBSZ", 2),
            ("FS_IOC_GETFLAGS", 0x8008_6601),
            ("FS_IOC_SETFLAGS", 0x4008_6602),
            ("FS_IOC_GETVERSION", 0x8008_7601),
            ("FS_IOC_FSGETXATTR", 0x801c_581f),
            ("FS_IOC_FSSETXATTR", 0x401c_5820),
            ("FS_IOC_FIEMAP", 0xc020_660b),
            ("FICLONE", 0x4004_9409),
            ("FICLONERANGE", 0x4020_940d),
        ],
        "cp, tar, lsattr and databases; the mounts are read-only where nothing may be changed",
    ),
    allow(
        &[
            ("SIOCGIFNAME", 0x8910),
            ("SIOCGIFCONF", 0x8912),
            ("SIOCGIFFLAGS", 0x8913),
            ("SIOCGIFADDR", 0x8915),
            ("SIOCGIFDSTADDR", 0x8917),
            ("SIOCGIFBRDADDR", 0x8919),
            ("SIOCGIFNETMASK", 0x891b),
            ("SIOCGIFMETRIC", 0x891d),
            ("SIOCGIFMTU", 0x8921),
            ("SIOCGIFHWADDR", 0x8927),
            ("SIOCGIFINDEX", 0x8933),
            ("SIOCGIFTXQLEN", 0x8942),
            ("SIOCETHTOOL", 0x8946),
            ("SIOCATMARK", 0x8905),
            ("FIOSETOWN", 0x8901),
            ("SIOCSPGRP", 0x8902),
            ("FIOGETOWN", 0x8903),
            ("SIOCGPGRP", 0x8904),
            ("SIOCOUTQNSD", 0x894b),
        ],
        "reading about `lo`, and about a socket",
    ),
    allow(
        &[("SECCOMP_IOCTL_NOTIF_RECV", 0xc050_2100), ("SECCOMP_IOCTL_NOTIF_SEND", 0xc018_2101)],
        "thaw-init answers those who have to ask; nobody else can have such a descriptor",
    ),
    allow(&[("RNDGETENTCNT", 0x8004_5200)], "whether there are random numbers"),
    refuse(named![TIOCSTI, TIOCLINUX], EPERM, "they push input into a terminal (CVE-2017-5226)"),
    refuse(named![TIOCSETD], EPERM, "line disciplines load modules, and have a record of holes"),
    refuse(named![TIOCCONS, TIOCVHANGUP], EPERM, "the host's console; hanging up on others"),
    refuse(
        &[("FIFREEZE", 0xc004_5877), ("FITHAW", 0xc004_5878), ("FITRIM", 0xc018_5879), ("FIBMAP", 1)],
        EPERM,
        "the host's file systems; they need CAP_SYS_ADMIN",
    ),
    refuse(&[("FIDEDUPERANGE", 0xc018_9436)], EPERM, "it tells whether two files are alike without reading them"),
    refuse(
        &[
            ("PIDFD_GET_CGROUP_NAMESPACE", 0xff01),
            ("PIDFD_GET_IPC_NAMESPACE", 0xff02),
            ("PIDFD_GET_MNT_NAMESPACE", 0xff03),
            ("PIDFD_GET_NET_NAMESPACE", 0xff04),
            ("PIDFD_GET_PID_NAMESPACE", 0xff05),
            ("PIDFD_GET_USER_NAMESPACE", 0xff09),
            ("PIDFD_GET_UTS_NAMESPACE", 0xff0a),
            ("NS_GET_USERNS", 0xb701),
            ("NS_GET_PARENT", 0xb702),
        ],
        EPERM,
        "namespaces as descriptors",
    ),
];

const FCNTL: &[Row] = &[
    allow(
        &[
            ("F_DUPFD", 0),
            ("F_DUPFD_CLOEXEC", 1030),
            ("F_DUPFD_QUERY", 1027),
            ("F_CREATED_QUERY", 1028),
            ("F_GETFD", 1),
            ("F_SETFD", 2),
            ("F_GETFL", 3),
            ("F_SETFL", 4),
        ],
        "descriptors and their flags",
    ),
    allow(&[("F_GETLK", 5), ("F_CANCELLK", 1029), ("F_GETLEASE", 1025)], "reading about locks of files"),
    Row {
        values: &[("F_SETLK", 6), ("F_SETLKW", 7)],
        answer: Answer::Ask,
        why: "locks of files: SQLite, apt; they are charged to nobody: a container may have 16,384 of them at a time",
    },
    refuse(
        &[("F_OFD_GETLK", 36), ("F_OFD_SETLK", 37), ("F_OFD_SETLKW", 38)],
        EINVAL,
        "locks that are charged to nobody and cannot be counted; as where the kernel has none, programs take the others",
    ),
    allow(
        &[
            ("F_SETOWN", 8),
            ("F_GETOWN", 9),
            ("F_SETSIG", 10),
            ("F_GETSIG", 11),
            ("F_SETOWN_EX", 15),
            ("F_GETOWN_EX", 16),
            ("F_GETOWNER_UIDS", 17),
        ],
        "who is told of input",
    ),
    allow(&[("F_SETPIPE_SZ", 1031), ("F_GETPIPE_SZ", 1032)], "size of a pipe, which is charged to the container"),
    allow(&[("F_ADD_SEALS", 1033), ("F_GET_SEALS", 1034)], "memory files that nobody can change any more"),
    allow(
        &[("F_GET_RW_HINT", 1035), ("F_GET_FILE_RW_HINT", 1037)],
        "reading what a database said about how long its data live",
    ),
    refuse(
        &[("F_SETLEASE", 1024), ("F_SETDELEG", 1040)],
        EPERM,
        "a lease on a file of an image makes everybody else who opens it wait, for 45 s",
    ),
    refuse(
        &[("F_NOTIFY", 1026)],
        EINVAL,
        "marks that are not limited in number; as where the kernel has no dnotify, programs take inotify",
    ),
    refuse(&[("F_SET_RW_HINT", 1036), ("F_SET_FILE_RW_HINT", 1038)], EINVAL, "it is kept in the image's inode"),
];

const PRCTL: &[Row] = &[
    allow(
        named![
            PR_SET_PDEATHSIG,
            PR_GET_PDEATHSIG,
            PR_GET_DUMPABLE,
            PR_SET_DUMPABLE,
            PR_GET_KEEPCAPS,
            PR_SET_KEEPCAPS,
            PR_SET_NAME,
            PR_GET_NAME,
            PR_GET_TIMING,
            PR_SET_TIMING,
            PR_GET_TSC,
            PR_SET_TSC,
            PR_SET_TIMERSLACK,
            PR_GET_TIMERSLACK,
            PR_MCE_KILL,
            PR_MCE_KILL_GET,
            PR_SET_CHILD_SUBREAPER,
            PR_GET_CHILD_SUBREAPER,
            PR_GET_TID_ADDRESS,
            PR_SET_THP_DISABLE,
            PR_GET_THP_DISABLE,
            PR_GET_SECCOMP,
        ],
        "settings of the process itself: its name, what happens at its parent's end, how precise its timers are",
    ),
    allow(
        named![
            PR_CAPBSET_READ,
            PR_CAPBSET_DROP,
            PR_GET_SECUREBITS,
            PR_SET_SECUREBITS,
            PR_SET_NO_NEW_PRIVS,
            PR_GET_NO_NEW_PRIVS,
            PR_CAP_AMBIENT,
        ],
        "capabilities, which can only be given up",
    ),
    allow(
        &[("PR_GET_SPECULATION_CTRL", 52), ("PR_SET_SPECULATION_CTRL", 53), ("PR_SET_SYSCALL_USER_DISPATCH", 59)],
        "how the processor guesses for this process; its own handling of its calls",
    ),
    allow(
        &[
            ("PR_SET_MDWE", 65),
            ("PR_GET_MDWE", 66),
            ("PR_SET_VMA", 0x5356_4d41),
            ("PR_GET_AUXV", 0x4155_5856),
            ("PR_SET_PTRACER", 0x5961_6d61),
        ],
        "memory that stays what it is, and names for it; who may debug",
    ),
    refuse(named![PR_SET_SECCOMP], EINVAL, "as `seccomp` below"),
    refuse(
        &[("PR_SCHED_CORE", 62)],
        EPERM,
        "with a cookie of its own a process keeps the other threads of a core idle, which are its neighbours'",
    ),
    refuse(
        &[("PR_SET_MEMORY_MERGE", 67), ("PR_GET_MEMORY_MERGE", 68)],
        EINVAL,
        "merging equal pages takes time of the host's, and tells whether a neighbour has the same",
    ),
    refuse(named![PR_SET_MM], EPERM, "what `/proc` says about a process; it needs CAP_SYS_RESOURCE"),
];

const SECCOMP: &[Row] = &[
    allow(
        &[("SECCOMP_SET_MODE_STRICT", 0), ("SECCOMP_GET_ACTION_AVAIL", 2), ("SECCOMP_GET_NOTIF_SIZES", 3)],
        "what the kernel knows",
    ),
    refuse(
        &[("SECCOMP_SET_MODE_FILTER", 1)],
        EINVAL,
        "the host's room for compiled filters is one for all (`net.core.bpf_jit_limit`); without it nobody can create a \
         container. As where the kernel has no filters, programs go on without; the container is the sandbox",
    ),
];

const MADVISE: &[Row] = &[refuse(
    &[("MADV_MERGEABLE", 12)],
    EINVAL,
    "as `PR_SET_MEMORY_MERGE`; all other advice is about the process's own memory",
)];

const FILTERS: &str = "compiled filters use up the host's room for them (`net.core.bpf_jit_limit`)";

const SOCKET_OPTIONS: &[Row] = &[
    allow(
        named![
            SO_REUSEADDR,
            SO_REUSEPORT,
            SO_KEEPALIVE,
            SO_LINGER,
            SO_BROADCAST,
            SO_DONTROUTE,
            SO_OOBINLINE,
            SO_NO_CHECK,
            SO_PRIORITY,
            SO_RCVLOWAT,
            SO_SNDLOWAT,
            SO_BINDTODEVICE,
            SO_PEEK_OFF,
            SO_RXQ_OVFL,
            SO_MAX_PACING_RATE,
            SO_RCVTIMEO,
            SO_SNDTIMEO,
            SO_RCVTIMEO_NEW,
            SO_SNDTIMEO_NEW,
        ],
        "addresses, waiting, ends of connections",
    ),
    allow(named![SO_SNDBUF], "the size of a buffer, up to the host's `net.core.wmem_max`"),
    refuse(
        named![SO_RCVBUF],
        0,
        "the size of a buffer is a wish, which the kernel cuts (socket(7)); here to what it is: where the buffer is charged \
         to nobody, it has to be small",
    ),
    allow(named![SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD], "who is at the other end"),
    allow(
        named![
            SO_TIMESTAMP,
            SO_TIMESTAMPNS,
            SO_TIMESTAMPING,
            SO_TIMESTAMP_NEW,
            SO_TIMESTAMPNS_NEW,
            SO_TIMESTAMPING_NEW
        ],
        "ping",
    ),
    refuse(
        named![
            SO_ATTACH_FILTER,
            SO_DETACH_FILTER,
            SO_LOCK_FILTER,
            SO_ATTACH_BPF,
            SO_ATTACH_REUSEPORT_CBPF,
            SO_ATTACH_REUSEPORT_EBPF,
        ],
        EPERM,
        FILTERS,
    ),
    refuse(named![SO_DEBUG, SO_MARK, SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_BUSY_POLL], EPERM, "they need CAP_NET_ADMIN"),
    refuse(named![SO_ZEROCOPY], EOPNOTSUPP, "pages that the kernel holds on to; programs copy then"),
];

const TCP_OPTIONS: &[Row] = &[
    allow(
        named![
            TCP_NODELAY,
            TCP_MAXSEG,
            TCP_CORK,
            TCP_KEEPIDLE,
            TCP_KEEPINTVL,
            TCP_KEEPCNT,
            TCP_SYNCNT,
            TCP_LINGER2,
            TCP_DEFER_ACCEPT,
            TCP_WINDOW_CLAMP,
            TCP_QUICKACK,
            TCP_CONGESTION,
            TCP_THIN_LINEAR_TIMEOUTS,
            TCP_THIN_DUPACK,
            TCP_USER_TIMEOUT,
            TCP_FASTOPEN,
            TCP_FASTOPEN_CONNECT,
            TCP_NOTSENT_LOWAT,
            TCP_SAVE_SYN,
            TCP_INQ,
        ],
        "how a connection behaves",
    ),
    refuse(named![TCP_ULP], EPERM, "TLS and others in the kernel: modules, and a record of holes"),
    refuse(
        &[
            ("TCP_MD5SIG", 14),
            ("TCP_MD5SIG_EXT", 32),
            ("TCP_AO_ADD_KEY", 38),
            ("TCP_AO_DEL_KEY", 39),
            ("TCP_AO_INFO", 40),
        ],
        EPERM,
        "signatures of routers: memory that is charged to nobody",
    ),
    refuse(named![TCP_REPAIR, TCP_FASTOPEN_KEY], EPERM, "they need CAP_NET_ADMIN"),
];

const MULTICAST: &str = "memberships are memory that is charged to nobody, and there is nothing but `lo`";

const IP_OPTIONS: &[Row] = &[
    allow(
        named![
            IP_TOS,
            IP_TTL,
            IP_PKTINFO,
            IP_MTU_DISCOVER,
            IP_RECVERR,
            IP_RECVTTL,
            IP_RECVTOS,
            IP_FREEBIND,
            IP_RECVORIGDSTADDR,
            IP_MINTTL,
            IP_BIND_ADDRESS_NO_PORT,
            IP_UNICAST_IF,
            IP_MULTICAST_IF,
            IP_MULTICAST_TTL,
            IP_MULTICAST_LOOP,
            IP_MULTICAST_ALL,
        ],
        "headers of what is sent, and what is told of what comes",
    ),
    allow(
        &[("IP_RECVERR_RFC4884", 26), ("IP_LOCAL_PORT_RANGE", 51)],
        "headers of what is sent, and what is told of what comes",
    ),
    refuse(
        named![
            IP_ADD_MEMBERSHIP,
            IP_DROP_MEMBERSHIP,
            IP_ADD_SOURCE_MEMBERSHIP,
            IP_DROP_SOURCE_MEMBERSHIP,
            IP_BLOCK_SOURCE,
            IP_UNBLOCK_SOURCE,
            IP_MSFILTER,
            MCAST_JOIN_GROUP,
            MCAST_LEAVE_GROUP,
            MCAST_JOIN_SOURCE_GROUP,
            MCAST_LEAVE_SOURCE_GROUP,
            MCAST_BLOCK_SOURCE,
            MCAST_UNBLOCK_SOURCE,
            MCAST_MSFILTER,
        ],
        EPERM,
        MULTICAST,
    ),
    refuse(
        named![IP_OPTIONS, IP_TRANSPARENT, IP_XFRM_POLICY, IP_IPSEC_POLICY],
        EPERM,
        "source routes, transparent proxies and IPsec: nothing of `lo`",
    ),
];

const IPV6_OPTIONS: &[Row] = &[
    allow(
        named![
            IPV6_V6ONLY,
            IPV6_UNICAST_HOPS,
            IPV6_MULTICAST_IF,
            IPV6_MULTICAST_HOPS,
            IPV6_MULTICAST_LOOP,
            IPV6_MTU_DISCOVER,
            IPV6_MTU,
            IPV6_RECVERR,
            IPV6_RECVPKTINFO,
            IPV6_PKTINFO,
            IPV6_RECVHOPLIMIT,
            IPV6_RECVTCLASS,
            IPV6_TCLASS,
            IPV6_RECVPATHMTU,
            IPV6_DONTFRAG,
            IPV6_AUTOFLOWLABEL,
            IPV6_ADDR_PREFERENCES,
        ],
        "headers of what is sent, and what is told of what comes",
    ),
    allow(
        &[
            ("IPV6_MULTICAST_ALL", 29),
            ("IPV6_RECVERR_RFC4884", 31),
            ("IPV6_MINHOPCOUNT", 73),
            ("IPV6_RECVORIGDSTADDR", 74),
            ("IPV6_UNICAST_IF", 76),
            ("IPV6_FREEBIND", 78),
        ],
        "headers of what is sent, and what is told of what comes",
    ),
    refuse(
        &[
            ("IPV6_JOIN_GROUP", 20),
            ("IPV6_LEAVE_GROUP", 21),
            ("IPV6_JOIN_ANYCAST", 27),
            ("IPV6_LEAVE_ANYCAST", 28),
            ("MCAST_JOIN_GROUP", 42),
            ("MCAST_BLOCK_SOURCE", 43),
            ("MCAST_UNBLOCK_SOURCE", 44),
            ("MCAST_LEAVE_GROUP", 45),
            ("MCAST_JOIN_SOURCE_GROUP", 46),
            ("MCAST_LEAVE_SOURCE_GROUP", 47),
            ("MCAST_MSFILTER", 48),
        ],
        EPERM,
        MULTICAST,
    ),
    refuse(&[("IPV6_FLOWLABEL_MGR", 32), ("IPV6_FLOWINFO_SEND", 33)], EPERM, "the host has 4,096 flow labels for all"),
    refuse(&[("IPV6_ADDRFORM", 1)], EPERM, "it makes an IPv4 socket of an IPv6 one; a record of holes"),
    refuse(
        &[
            ("IPV6_2292PKTOPTIONS", 6),
            ("IPV6_HOPOPTS", 54),
            ("IPV6_RTHDRDSTOPTS", 55),
            ("IPV6_RTHDR", 57),
            ("IPV6_DSTOPTS", 59),
            ("IPV6_TRANSPARENT", 75),
            ("IPV6_IPSEC_POLICY", 34),
            ("IPV6_XFRM_POLICY", 35),
        ],
        EPERM,
        "extension headers, transparent proxies and IPsec: nothing of `lo`",
    ),
];

const UDP_OPTIONS: &[Row] = &[
    allow(
        &[
            ("UDP_CORK", 1),
            ("UDP_NO_CHECK6_TX", 101),
            ("UDP_NO_CHECK6_RX", 102),
            ("UDP_SEGMENT", 103),
            ("UDP_GRO", 104),
        ],
        "many datagrams at once (QUIC)",
    ),
    refuse(&[("UDP_ENCAP", 100)], EPERM, "IPsec within UDP"),
];

const NETLINK_OPTIONS: &[Row] = &[allow(
    &[
        ("NETLINK_ADD_MEMBERSHIP", 1),
        ("NETLINK_DROP_MEMBERSHIP", 2),
        ("NETLINK_PKTINFO", 3),
        ("NETLINK_BROADCAST_ERROR", 4),
        ("NETLINK_NO_ENOBUFS", 5),
        ("NETLINK_CAP_ACK", 10),
        ("NETLINK_EXT_ACK", 11),
        ("NETLINK_GET_STRICT_CHK", 12),
    ],
    "what the kernel tells with its answers (ip, Go, systemd's library)",
)];
