//! What commands have to ask for: sockets and locks whose memory the kernel charges to nobody.
//!
//! There may be so many at a time, and the kernel itself keeps count of them: a socket that is closed is one less, whoever
//! closed it. Of sockets for echo requests it counts only those that have sent one, so that there are so many in the life
//! of a container.

use core::ffi::c_int;

use thaw_wire::{MAX_LISTENERS, MAX_NETLINK_SOCKETS, MAX_PING_SOCKETS, MAX_RANGE_LOCKS};

/// Descriptor on which the questions arrive (seccomp_unotify(2)), as the spawner passes it.
pub const QUESTIONS: c_int = 1;

/// The container's `/proc/locks`, as the spawner passes it: commands have an empty file in its place.
const LOCKS: c_int = 2;

/// A call to lock may leave two more than there were, by taking the middle out of one.
const LOCKS_PER_CALL: u32 = 2;

/// Shortest time between two looks at the locks, ms: while they are read, nobody on the host gets one.
const LOCKS_PAUSE_MS: i64 = 100;

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` (linux/seccomp.h).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the kernel goes on with the call. What was decided on are numbers in registers, which
/// nobody can exchange meanwhile.
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`.
#[repr(C)]
struct Question {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Files of `/proc` that tell how many there are in the container's network, opened before anybody can be in the way.
pub struct Counts {
    /// Sockets by protocol.
    protocols: c_int,
    /// TCP sockets, those that listen first; the second is -1 where there is no IPv6.
    tcp: [c_int; 2],
    /// Permissions to listen since they were counted.
    permissions: u32,
    /// Sockets for echo requests so far.
    pings: u32,
    /// Locks that there may be, at most, and when they were counted last, ms.
    locks: u32,
    locks_counted: i64,
}

impl Counts {
    /// Paths are relative to `/proc`, in which this program was started: the root of an image may keep its user out. `None`
    /// if there is no such file.
    pub fn open() -> Option<Self> {
        let open = |path: &core::ffi::CStr| {
            // SAFETY: the path is a string that ends with a zero byte.
            unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }
        };
        let (protocols, tcp) = (open(c"net/protocols"), [open(c"net/tcp"), open(c"net/tcp6")]);
        (protocols >= 0 && tcp[0] >= 0).then_some(Self {
            protocols,
            tcp,
            permissions: 0,
            pings: 0,
            locks: 0,
            locks_counted: 0,
        })
    }

    /// Answers one question, if there is one. `space` is for what is read meanwhile.
    pub fn answer(&mut self, space: &mut [u8]) {
        // SAFETY: all-zero is what the kernel asks for, and valid.
        let mut question: Question = unsafe { core::mem::zeroed() };
        // SAFETY: the structure is of the size that the request's number names.
        if unsafe { libc::ioctl(QUESTIONS, RECEIVE, &raw mut question) } < 0 {
            // Whoever asked was interrupted, and asks again, or is no more.
            return;
        }
        let family = question.arguments[0] as c_int;
        let call = i64::from(question.call);
        let granted = match call {
            libc::SYS_listen => self.may_listen(space),
            libc::SYS_fcntl => self.may_lock(space),
            _ if family == libc::AF_NETLINK => self.may_ask_the_kernel(space),
            _ => self.may_ping(),
        };
        let none_left = if call == libc::SYS_fcntl { libc::ENOLCK } else { libc::ENOBUFS };
        let (error, flags) = if granted { (0, CONTINUE) } else { (-none_left, 0) };
        let answer = Answer { id: question.id, value: 0, error, flags };
        // SAFETY: as above. It fails if whoever asked is no more.
        unsafe { libc::ioctl(QUESTIONS, SEND, &raw const answer) };
    }

    fn may_ask_the_kernel(&self, space: &mut [u8]) -> bool {
        let mut lines = read(self.protocols, space).split(|byte| *byte == b'\n');
        // Name, size of a structure, number of sockets.
        let count = lines.find(|line| word(line, 0) == b"NETLINK").map_or(u32::MAX, |line| number(word(line, 2)));
        count < MAX_NETLINK_SOCKETS
    }

    fn may_ping(&mut self) -> bool {
        let granted = self.pings < MAX_PING_SOCKETS;
        self.pings += u32::from(granted);
        granted
    }

    fn may_lock(&mut self, space: &mut [u8]) -> bool {
        if self.locks + LOCKS_PER_CALL > MAX_RANGE_LOCKS {
            let now = milliseconds();
            if now - self.locks_counted >= LOCKS_PAUSE_MS {
                (self.locks, self.locks_counted) = (range_locks(space), now);
            }
        }
        let granted = self.locks + LOCKS_PER_CALL <= MAX_RANGE_LOCKS;
        if granted {
            self.locks += LOCKS_PER_CALL;
        }
        granted
    }

    fn may_listen(&mut self, space: &mut [u8]) -> bool {
        if self.permissions >= MAX_LISTENERS {
            self.permissions = self.tcp.iter().map(|file| listening(read(*file, space))).sum();
        }
        let granted = self.permissions < MAX_LISTENERS;
        self.permissions += u32::from(granted);
        granted
    }
}

/// Lines of `/proc/locks` about ranges of files; at most as many as there may be.
fn range_locks(space: &mut [u8]) -> u32 {
    let (mut count, mut offset) = (0, 0);
    while count < MAX_RANGE_LOCKS {
        let text = read_from(LOCKS, offset, space);
        // Whole lines; the rest is read again.
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { break };
        count += text[..end].split(|byte| *byte == b'\n').filter(|line| word(line, 1) == b"POSIX").count() as u32;
        offset += end + 1;
    }
    count.min(MAX_RANGE_LOCKS)
}

fn milliseconds() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is valid to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Lines of `/proc/net/tcp` with the state `TCP_LISTEN` (include/net/tcp_states.h).
fn listening(text: &[u8]) -> u32 {
    text.split(|byte| *byte == b'\n').filter(|line| word(line, 3) == b"0A").count() as u32
}

/// The file from its start, as far as there is room: what is looked for stands at the start, or the file is short.
fn read(file: c_int, space: &mut [u8]) -> &[u8] {
    read_from(file, 0, space)
}

/// The file from `offset` on, as far as there is room.
fn read_from(file: c_int, offset: usize, space: &mut [u8]) -> &[u8] {
    let mut length = 0;
    while length < space.len() {
        // SAFETY: the rest of the buffer is as long as said. A file that there is not gives an error.
        let read = unsafe {
            let rest = space.as_mut_ptr().add(length);
            libc::pread(file, rest.cast(), space.len() - length, (offset + length) as libc::off_t)
        };
        if read <= 0 {
            break;
        }
        length += read as usize;
    }
    &space[..length]
}

/// The word of a line with that index; nothing if there are fewer.
fn word(line: &[u8], index: usize) -> &[u8] {
    line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).nth(index).unwrap_or_default()
}

fn number(text: &[u8]) -> u32 {
    text.iter().fold(0u32, |sum, digit| {
        if digit.is_ascii_digit() { sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')) } else { sum }
    })
}
