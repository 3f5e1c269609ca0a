//! The control protocol between the daemon and `thaw-init`: one message per `SOCK_SEQPACKET` datagram on fd 0.
//!
//! `core` only: it is compiled into the std daemon and into the no_std `thaw-init`. Both ends are
//! always the same build on the same machine: integers are native-endian and [`VERSION`] is checked at hello.

#![no_std]
#![forbid(unsafe_code)]

use core::ffi::c_char;

/// Protocol version; `Hello` carries it and the daemon refuses another.
pub const VERSION: u32 = 2;

/// Largest datagram either side accepts, bytes. One argument can be 128 KiB (`MAX_ARG_STRLEN`, execve(2)), and a
/// command with its environment must fit beside it.
pub const MAX_DATAGRAM: usize = 256 * 1024;

/// Most arguments, and most environment variables, of one command.
pub const MAX_STRINGS: usize = 512;

/// Most commands that `thaw-init` watches at once.
pub const MAX_PROCESSES: usize = 128;

/// Netlink sockets of a container at a time: what they have received is charged to nobody.
pub const MAX_NETLINK_SOCKETS: u32 = 64;

/// Sockets for echo requests in the life of a container, for the same reason.
pub const MAX_PING_SOCKETS: u32 = 128;

/// Locks on ranges of files (fcntl(2)) of a container at a time, for the same reason.
pub const MAX_RANGE_LOCKS: u32 = 16_384;

/// TCP sockets of a container that listen, at a time: what they have received and nobody has accepted yet is charged to
/// nobody.
pub const MAX_LISTENERS: u32 = 32;

/// Descriptors that accompany [`op::SPAWN`]: stdin, stdout, stderr. With a terminal one, which is all three.
pub const SPAWN_FDS: usize = 3;

/// Most supplementary groups of one command.
pub const MAX_GROUPS: usize = 64;

/// Most resource limits of one command: more than there are kinds (`RLIM_NLIMITS`, getrlimit(2)).
pub const MAX_RLIMITS: usize = 16;

/// User and group id of `thaw-init` inside its container: the last of the 65,536, and nobody else's. What has the same
/// user id may lower its limits, send it signals and trace it, whatever its own privileges are.
pub const INIT_ID: u32 = 65_535;

/// [`SpawnHeader::flags`]: the one descriptor is a terminal, and becomes the command's controlling terminal.
pub const TERMINAL: u32 = 1;

/// Capabilities that `thaw-init` keeps, by number (capabilities(7)): KILL, SETGID, SETUID, SETPCAP. Commands have none.
pub const KEPT_CAPABILITIES: [i32; 4] = [5, 6, 7, 8];

/// First byte of each datagram.
pub mod op {
    /// Daemon → init: run a command. [`super::SpawnHeader`], then its groups, its [`super::Rlimit`]s, and NUL-terminated
    /// cwd, arguments and environment.
    pub const SPAWN: u8 = 1;
    /// Daemon → init: send a signal to a command's process group. [`super::Signal`].
    pub const SIGNAL: u8 = 2;
    /// Init → daemon: ready. [`super::Report`] with `value` = [`super::VERSION`].
    pub const HELLO: u8 = 16;
    /// Init → daemon: the command runs. [`super::Report`] with `value` = pid inside the container.
    pub const STARTED: u8 = 17;
    /// Init → daemon: the command could not be started. [`super::Report`] with `value` = errno, `detail` = stage.
    pub const FAILED: u8 = 18;
    /// Init → daemon: the command ended. [`super::Report`] with `value` = wait status (wait(2)), and what it has used.
    pub const EXITED: u8 = 19;
}

/// Where a spawn failed, in `Report::detail`.
pub mod stage {
    /// The datagram was malformed.
    pub const REQUEST: u32 = 1;
    /// `clone` failed (usually the pids limit).
    pub const CLONE: u32 = 2;
    /// Redirecting stdin, stdout and stderr.
    pub const FDS: u32 = 3;
    /// Giving up root and capabilities.
    pub const IDENTITY: u32 = 4;
    /// Entering the working directory.
    pub const CHDIR: u32 = 5;
    /// `execve` itself: no such program, not executable, …
    pub const EXEC: u32 = 6;
    /// Making the terminal its controlling one.
    pub const TERMINAL: u32 = 7;
    /// Setting a resource limit.
    pub const RLIMIT: u32 = 8;
}

/// Fixed part of [`op::SPAWN`], after the opcode byte and three bytes of padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnHeader {
    /// Chosen by the daemon, repeated in each report about this command.
    pub tag: u32,
    /// User id inside the container.
    pub uid: u32,
    /// Group id inside the container.
    pub gid: u32,
    /// How many arguments follow the working directory.
    pub argc: u32,
    /// How many environment variables follow the arguments.
    pub envc: u32,
    /// [`TERMINAL`], or 0.
    pub flags: u32,
    /// How many supplementary groups follow the header.
    pub groups: u32,
    /// How many resource limits follow the groups.
    pub rlimits: u32,
}

/// A resource limit of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_…`, getrlimit(2).
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// [`op::SIGNAL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Which command.
    pub tag: u32,
    /// Signal number.
    pub signal: u32,
}

/// Everything that init says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// One of [`op`].
    pub op: u8,
    /// Which command (0 for hello).
    pub tag: u32,
    /// See the opcode.
    pub value: i32,
    /// See the opcode.
    pub detail: u32,
    /// CPU time of the command and of its children that it has waited for, microseconds; of one that ended.
    pub cpu_us: u64,
    /// Largest resident memory of one of them, KiB (`ru_maxrss`, getrusage(2)).
    pub max_rss_kib: u32,
}

/// Length of an encoded [`SpawnHeader`] with its opcode.
pub const SPAWN_HEADER_LEN: usize = 36;
/// Length of an encoded supplementary group.
pub const GROUP_LEN: usize = 4;
/// Length of an encoded [`Rlimit`].
pub const RLIMIT_LEN: usize = 24;
/// Length of an encoded [`Signal`] with its opcode.
pub const SIGNAL_LEN: usize = 12;
/// Length of an encoded [`Report`].
pub const REPORT_LEN: usize = 32;

/// Cuts `count` NUL-terminated strings from `bytes` into `table`, which ends with a null pointer then; returns what is
/// left. `None` if there are not that many, or more than the table can hold.
pub fn cut_strings<'a>(mut bytes: &'a [u8], count: usize, table: &mut [*const c_char]) -> Option<&'a [u8]> {
    if count >= table.len() {
        return None;
    }
    for slot in table.iter_mut().take(count) {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        *slot = bytes.as_ptr().cast();
        bytes = &bytes[end + 1..];
    }
    table[count] = core::ptr::null();
    Some(bytes)
}

fn put(buffer: &mut [u8], at: usize, value: u32) {
    buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn get(buffer: &[u8], at: usize) -> Option<u32> {
    let bytes = buffer.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn get_long(buffer: &[u8], at: usize) -> Option<u64> {
    let bytes = buffer.get(at..at + 8)?;
    let mut value = [0; 8];
    value.copy_from_slice(bytes);
    Some(u64::from_ne_bytes(value))
}

impl Rlimit {
    /// Encodes the limit.
    pub fn encode(&self) -> [u8; RLIMIT_LEN] {
        let mut buffer = [0; RLIMIT_LEN];
        put(&mut buffer, 0, self.resource);
        buffer[8..16].copy_from_slice(&self.soft.to_ne_bytes());
        buffer[16..24].copy_from_slice(&self.hard.to_ne_bytes());
        buffer
    }

    /// Decodes the limit that `buffer` begins with.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        Some(Self { resource: get(buffer, 0)?, soft: get_long(buffer, 8)?, hard: get_long(buffer, 16)? })
    }
}

/// The `index`th group of those that follow a [`SpawnHeader`].
pub fn group(buffer: &[u8], index: usize) -> Option<u32> {
    get(buffer, SPAWN_HEADER_LEN.checked_add(index.checked_mul(GROUP_LEN)?)?)
}

impl SpawnHeader {
    /// Encodes opcode and header.
    pub fn encode(&self) -> [u8; SPAWN_HEADER_LEN] {
        let mut buffer = [0; SPAWN_HEADER_LEN];
        buffer[0] = op::SPAWN;
        let values = [self.tag, self.uid, self.gid, self.argc, self.envc, self.flags, self.groups, self.rlimits];
        for (index, value) in values.into_iter().enumerate() {
            put(&mut buffer, 4 + 4 * index, value);
        }
        buffer
    }

    /// Where the limits begin and where the strings do, in the datagram; `None` if there are more groups or limits than a
    /// command may have.
    pub fn offsets(&self) -> Option<(usize, usize)> {
        let (groups, rlimits) = (self.groups as usize, self.rlimits as usize);
        if groups > MAX_GROUPS || rlimits > MAX_RLIMITS {
            return None;
        }
        let limits = SPAWN_HEADER_LEN + groups * GROUP_LEN;
        Some((limits, limits + rlimits * RLIMIT_LEN))
    }

    /// Decodes a datagram that starts with [`op::SPAWN`]; the rest follows as [`Self::offsets`] says.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        Some(Self {
            tag: get(buffer, 4)?,
            uid: get(buffer, 8)?,
            gid: get(buffer, 12)?,
            argc: get(buffer, 16)?,
            envc: get(buffer, 20)?,
            flags: get(buffer, 24)?,
            groups: get(buffer, 28)?,
            rlimits: get(buffer, 32)?,
        })
    }
}

impl Signal {
    /// Encodes opcode and body.
    pub fn encode(&self) -> [u8; SIGNAL_LEN] {
        let mut buffer = [0; SIGNAL_LEN];
        buffer[0] = op::SIGNAL;
        put(&mut buffer, 4, self.tag);
        put(&mut buffer, 8, self.signal);
        buffer
    }

    /// Decodes a datagram that starts with [`op::SIGNAL`].
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        Some(Self { tag: get(buffer, 4)?, signal: get(buffer, 8)? })
    }
}

impl Report {
    /// Encodes the report.
    pub fn encode(&self) -> [u8; REPORT_LEN] {
        let mut buffer = [0; REPORT_LEN];
        buffer[0] = self.op;
        put(&mut buffer, 4, self.tag);
        buffer[8..12].copy_from_slice(&self.value.to_ne_bytes());
        put(&mut buffer, 12, self.detail);
        buffer[16..24].copy_from_slice(&self.cpu_us.to_ne_bytes());
        put(&mut buffer, 24, self.max_rss_kib);
        buffer
    }

    /// Decodes a report; `None` if it has another length.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        if buffer.len() != REPORT_LEN {
            return None;
        }
        Some(Self {
            op: buffer[0],
            tag: get(buffer, 4)?,
            value: get(buffer, 8)? as i32,
            detail: get(buffer, 12)?,
            cpu_us: get_long(buffer, 16)?,
            max_rss_kib: get(buffer, 24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        MAX_DATAGRAM, MAX_GROUPS, MAX_RLIMITS, REPORT_LEN, RLIMIT_LEN, Report, Rlimit, SPAWN_HEADER_LEN, Signal,
        SpawnHeader, group, op,
    };

    #[test]
    fn messages_survive_encoding() {
        let spawn = SpawnHeader { tag: 7, uid: 1000, gid: 1001, argc: 3, envc: 2, flags: 1, groups: 4, rlimits: 5 };
        assert_eq!(SpawnHeader::decode(&spawn.encode()), Some(spawn));
        let rlimit = Rlimit { resource: 7, soft: 1 << 40, hard: u64::MAX };
        assert_eq!(Rlimit::decode(&rlimit.encode()), Some(rlimit));
        let signal = Signal { tag: 7, signal: 15 };
        assert_eq!(Signal::decode(&signal.encode()), Some(signal));
        let report = Report { op: op::EXITED, tag: 7, value: -2, detail: 9, cpu_us: 1 << 40, max_rss_kib: 11 };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }

    #[test]
    fn short_messages_are_refused() {
        assert_eq!(SpawnHeader::decode(&[op::SPAWN, 0, 0, 0, 1]), None);
        assert_eq!(Signal::decode(&[op::SIGNAL]), None);
        assert_eq!(Report::decode(&[op::HELLO; REPORT_LEN - 1]), None);
        assert_eq!(Report::decode(&[op::HELLO; REPORT_LEN + 1]), None);
    }

    #[test]
    fn more_groups_or_limits_than_there_is_room_for_are_refused() {
        let header = SpawnHeader { tag: 1, uid: 0, gid: 0, argc: 1, envc: 0, flags: 0, groups: 0, rlimits: 0 };
        let offsets = |groups: usize, rlimits: usize| {
            SpawnHeader { groups: groups as u32, rlimits: rlimits as u32, ..header }.offsets()
        };
        assert_eq!(offsets(2, 1), Some((SPAWN_HEADER_LEN + 8, SPAWN_HEADER_LEN + 8 + RLIMIT_LEN)));
        assert!(offsets(MAX_GROUPS, MAX_RLIMITS).is_some());
        assert_eq!(offsets(MAX_GROUPS + 1, 0), None);
        assert_eq!(offsets(0, MAX_RLIMITS + 1), None);
        assert_eq!(group(&[0; SPAWN_HEADER_LEN + 3], 0), None);
    }

    #[test]
    fn the_largest_single_argument_fits() {
        // MAX_ARG_STRLEN, execve(2): 32 pages.
        const { assert!(MAX_DATAGRAM > 32 * 4096 + 64 * 1024) }
    }
}
