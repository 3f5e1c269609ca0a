//! The control protocol between the daemon and `thaw-init`: one message per `SOCK_SEQPACKET` datagram on fd 0.
//!
//! `core` only: it is compiled into the std daemon and into the no_std `thaw-init`. Both ends are
//! always the same build on the same machine: integers are native-endian and [`VERSION`] is checked at hello.

#![no_std]
#![forbid(unsafe_code)]

use core::ffi::c_char;

/// Protocol version; `Hello` carries it and the daemon refuses another.
pub const VERSION: u32 = 1;

/// Largest datagram either side accepts, bytes. One argument can be 128 KiB (`MAX_ARG_STRLEN`, execve(2)), and a
/// command with its environment must fit beside it.
pub const MAX_DATAGRAM: usize = 256 * 1024;

/// Most arguments, and most environment variables, of one command.
pub const MAX_STRINGS: usize = 512;

/// Most commands that `thaw-init` watches at once.
pub const MAX_PROCESSES: usize = 32;

/// Descriptors that accompany [`op::SPAWN`]: stdin, stdout, stderr.
pub const SPAWN_FDS: usize = 3;

/// Capabilities that `thaw-init` keeps, by number (capabilities(7)): KILL, SETGID, SETUID, SETPCAP. Commands have none.
pub const KEPT_CAPABILITIES: [i32; 4] = [5, 6, 7, 8];

/// First byte of each datagram.
pub mod op {
    /// Daemon → init: run a command. [`super::SpawnHeader`], then NUL-terminated cwd, arguments and environment.
    pub const SPAWN: u8 = 1;
    /// Daemon → init: send a signal to a command's process group. [`super::Signal`].
    pub const SIGNAL: u8 = 2;
    /// Init → daemon: ready. [`super::Report`] with `value` = [`super::VERSION`].
    pub const HELLO: u8 = 16;
    /// Init → daemon: the command runs. [`super::Report`] with `value` = pid inside the container.
    pub const STARTED: u8 = 17;
    /// Init → daemon: the command could not be started. [`super::Report`] with `value` = errno, `detail` = stage.
    pub const FAILED: u8 = 18;
    /// Init → daemon: the command ended. [`super::Report`] with `value` = wait status (wait(2)).
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
}

/// Length of an encoded [`SpawnHeader`] with its opcode.
pub const SPAWN_HEADER_LEN: usize = 24;
/// Length of an encoded [`Signal`] with its opcode.
pub const SIGNAL_LEN: usize = 12;
/// Length of an encoded [`Report`].
pub const REPORT_LEN: usize = 16;

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

impl SpawnHeader {
    /// Encodes opcode and header.
    pub fn encode(&self) -> [u8; SPAWN_HEADER_LEN] {
        let mut buffer = [0; SPAWN_HEADER_LEN];
        buffer[0] = op::SPAWN;
        for (index, value) in [self.tag, self.uid, self.gid, self.argc, self.envc].into_iter().enumerate() {
            put(&mut buffer, 4 + 4 * index, value);
        }
        buffer
    }

    /// Decodes a datagram that starts with [`op::SPAWN`]; the strings follow at [`SPAWN_HEADER_LEN`].
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        Some(Self {
            tag: get(buffer, 4)?,
            uid: get(buffer, 8)?,
            gid: get(buffer, 12)?,
            argc: get(buffer, 16)?,
            envc: get(buffer, 20)?,
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
        buffer
    }

    /// Decodes a report; `None` if it has another length.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        if buffer.len() != REPORT_LEN {
            return None;
        }
        Some(Self { op: buffer[0], tag: get(buffer, 4)?, value: get(buffer, 8)? as i32, detail: get(buffer, 12)? })
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DATAGRAM, Report, Signal, SpawnHeader, op};

    #[test]
    fn messages_survive_encoding() {
        let spawn = SpawnHeader { tag: 7, uid: 1000, gid: 1001, argc: 3, envc: 2 };
        assert_eq!(SpawnHeader::decode(&spawn.encode()), Some(spawn));
        let signal = Signal { tag: 7, signal: 15 };
        assert_eq!(Signal::decode(&signal.encode()), Some(signal));
        let report = Report { op: op::EXITED, tag: 7, value: -2, detail: 9 };
        assert_eq!(Report::decode(&report.encode()), Some(report));
    }

    #[test]
    fn short_messages_are_refused() {
        assert_eq!(SpawnHeader::decode(&[op::SPAWN, 0, 0, 0, 1]), None);
        assert_eq!(Signal::decode(&[op::SIGNAL]), None);
        assert_eq!(Report::decode(&[op::HELLO; 15]), None);
        assert_eq!(Report::decode(&[op::HELLO; 17]), None);
    }

    #[test]
    fn the_largest_single_argument_fits() {
        // MAX_ARG_STRLEN, execve(2): 32 pages.
        const { assert!(MAX_DATAGRAM > 32 * 4096 + 64 * 1024) }
    }
}
