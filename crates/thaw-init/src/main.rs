//! PID 1 of each container: runs commands for the daemon, reaps orphans, and dies with its daemon.
//!
//! no_std, static and without an allocator: it must run in any root file system and cost next to nothing while
//! frozen. It is executed from a sealed memory file, so nothing inside the container can replace it; it is not dumpable,
//! and its user and group are nobody else's in the container, so that no command, root of an image included, can trace
//! it, limit it, signal it, or read its `/proc` files.

#![no_std]
#![no_main]
// Talks to the kernel only: every call below is a system call.
#![allow(unsafe_code)]

mod asked;

use core::ffi::{c_char, c_int, c_ulong, c_void};
use core::ptr;

use thaw_wire::{
    self as wire, INIT_ID, MAX_DATAGRAM, MAX_GROUPS, MAX_PROCESSES, MAX_RLIMITS, MAX_STRINGS, Report, Rlimit,
    SPAWN_FDS, SpawnHeader, op, stage,
};

const CONTROL: c_int = 0;
/// Stack of the vfork-style child until its exec: it only makes system calls.
const CHILD_STACK: usize = 32 * 1024;
/// Words of a processor mask: 4,096 processors. Where the kernel's masks are longer, no command is confined.
const MASK_WORDS: usize = 64;
/// Most that is read of a file of `/proc`, bytes: several times what the lines that are looked for have.
const SPACE: usize = 32 * 1024;
/// ioprio_set(2).
const IOPRIO_WHO_PROCESS: c_int = 1;
/// The kernel's own, prctl(2).
const TIMER_SLACK_NS: c_ulong = 50_000;
/// `_NSIG`, signal(7).
const LAST_SIGNAL: c_int = 64;

#[repr(C, align(16))]
struct Buffers {
    // The last byte stays 0, so that every string in the buffer is terminated.
    datagram: [u8; MAX_DATAGRAM + 1],
    argv: [*const c_char; MAX_STRINGS + 1],
    envp: [*const c_char; MAX_STRINGS + 1],
    // The primary group, then the supplementary ones.
    groups: [u32; MAX_GROUPS + 1],
    rlimits: [Rlimit; MAX_RLIMITS],
    path: [u8; 4096],
    stack: [u8; CHILD_STACK],
}

/// What the child needs, and where it says how it failed (it shares our memory until it executes).
struct Child {
    header: SpawnHeader,
    cwd: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    search: *const c_char,
    path: *mut u8,
    groups: *const u32,
    rlimits: *const Rlimit,
    fds: [c_int; SPAWN_FDS],
    cpus: u32,
    failed_stage: u32,
    failed_errno: c_int,
}

#[derive(Clone, Copy)]
struct Process {
    pid: libc::pid_t,
    tag: u32,
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: _exit takes no pointers. The death of PID 1 ends the container, which the daemon sees.
    unsafe { libc::_exit(101) }
}

/// The precompiled `core` refers to it from its unwind tables; nothing here ever unwinds (panic = "abort").
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

fn errno() -> c_int {
    // SAFETY: always points to this thread's errno.
    unsafe { *libc::__errno_location() }
}

/// Entry point, called by the C runtime.
#[unsafe(no_mangle)]
pub extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    static mut BUFFERS: Buffers = Buffers {
        datagram: [0; MAX_DATAGRAM + 1],
        argv: [ptr::null(); MAX_STRINGS + 1],
        envp: [ptr::null(); MAX_STRINGS + 1],
        groups: [0; MAX_GROUPS + 1],
        rlimits: [Rlimit { resource: 0, soft: 0, hard: 0 }; MAX_RLIMITS],
        path: [0; 4096],
        stack: [0; CHILD_STACK],
    };
    // Its end kills every process that it may signal: on a host, started by hand as root, that would be all of them.
    // SAFETY: neither call takes a pointer.
    if unsafe { libc::getpid() } != 1 {
        // SAFETY: no pointers.
        unsafe { libc::_exit(104) }
    }
    // SAFETY: the only reference ever made to BUFFERS; this program has one thread.
    let buffers = unsafe { &mut *ptr::addr_of_mut!(BUFFERS) };
    // SAFETY: no pointers; failure would show in the isolation tests.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    forget_inheritance();
    keep_capabilities_to_itself();
    let signals = child_signals();
    let cpus = visible_cpus(argc, argv);
    let Some(mut counts) = asked::Counts::open() else { end(107) };
    let mut processes = [Process { pid: 0, tag: 0 }; MAX_PROCESSES];
    send(&said(op::HELLO, 0, wire::VERSION as i32, 0));
    loop {
        let mut polled = [
            libc::pollfd { fd: CONTROL, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: asked::QUESTIONS, events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: `polled` is an array of the given length.
        if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) } < 0 {
            if errno() == libc::EINTR {
                continue;
            }
            // Nothing can be heard any more, and trying again would only use up the processor.
            end(104);
        }
        if polled.iter().any(|polled| polled.revents & libc::POLLNVAL != 0) {
            end(105);
        }
        if polled[1].revents != 0 {
            drain_signals(signals);
            reap(&mut processes);
        }
        if polled[2].revents != 0 {
            counts.answer(&mut buffers.datagram[..SPACE]);
        }
        if polled[0].revents != 0 {
            receive(buffers, &mut processes, cpus);
        }
    }
}

/// How many processors a command is to see: the second argument; 0 for all of them.
fn visible_cpus(argc: c_int, argv: *const *const c_char) -> u32 {
    if argc < 2 {
        return 0;
    }
    // SAFETY: the kernel passes `argc` pointers to NUL-terminated strings.
    unsafe { libc::atoi(*argv.add(1)) }.max(0).unsigned_abs()
}

/// Keeps this process, and what it executes, on `count` processors: the one on which it runs, and those behind it. The
/// scheduler has just chosen an idle one; a processor chosen at creation would often be the one on which the daemon is
/// busy with the claim (measured: 0.4 ms more from claim to start on two processors). Advice rather than a limit, so that
/// a failure is none: a command may undo it, and the time that it may use stays the same.
fn stay_on_processors(count: u32) {
    let mut allowed = [0u64; MASK_WORDS];
    let mut here = 0u32;
    // SAFETY: the kernel writes at most as many bytes as said, and one integer.
    let bytes = unsafe {
        libc::syscall(libc::SYS_getcpu, &raw mut here, ptr::null_mut::<u32>(), ptr::null_mut::<c_void>());
        libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&allowed), allowed.as_mut_ptr())
    };
    let Some(mask) = usize::try_from(bytes).ok().and_then(|bytes| allowed.get(..bytes / 8)) else { return };
    let total: u32 = mask.iter().map(|word| word.count_ones()).sum();
    if count == 0 || count >= total {
        return;
    }
    let (bits, mut left) = (mask.len() * 64, count);
    let mut chosen = [0u64; MASK_WORDS];
    for step in 0..bits {
        let cpu = (here as usize + step) % bits;
        if mask[cpu / 64] & 1 << (cpu % 64) != 0 && left > 0 {
            chosen[cpu / 64] |= 1 << (cpu % 64);
            left -= 1;
        }
    }
    // SAFETY: the kernel reads as many bytes as it has written above.
    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, chosen.as_ptr()) };
}

/// What depends on how the daemon itself was started must not reach a command: a descriptor that its starter left
/// open (CVE-2024-21626), ignored signals, the file mode mask, priorities, the precision of timers.
fn forget_inheritance() {
    // SAFETY: no pointers; standard input to error stay, and this program has opened nothing else yet.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } < 0 {
        // SAFETY: no pointers.
        unsafe { libc::_exit(103) }
    }
    // The kernel's struct sigaction, all zero: default action, no flags, empty mask.
    let default_action = [0u64; 4];
    // Rust programs, the daemon among them, ignore SIGPIPE, and an ignored signal stays so across exec.
    for number in 1..=LAST_SIGNAL {
        // SAFETY: the structure and the sizes are the kernel's. SIGKILL and SIGSTOP are refused, as they should be.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, default_action.as_ptr(), ptr::null_mut::<u64>(), 8usize);
        }
    }
    // struct sched_param: SCHED_OTHER has the priority 0 alone.
    let ordinary = 0i32;
    // SAFETY: no pointers but that to the priority. What would need a privilege, raising a low priority, is left as it is:
    // a daemon that was started so passes that on.
    unsafe {
        libc::umask(0o022);
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const ordinary);
        libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_personality, 0);
        libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0);
    }
}

/// It was executed as a user without privileges, with its capabilities in the sets that survive that. They are no longer
/// needed there, and whatever is executed from here must not inherit them.
fn keep_capabilities_to_itself() {
    let mut kept = 0;
    for capability in wire::KEPT_CAPABILITIES {
        kept |= 1 << capability;
    }
    // SAFETY: no pointers; the ambient set lies within the inheritable one, which capset empties as well.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if set_capabilities(kept, 0) < 0 {
        // SAFETY: no pointers.
        unsafe { libc::_exit(106) }
    }
}

/// Effective and permitted, and inheritable.
fn set_capabilities(permitted: u32, inheritable: u32) -> libc::c_long {
    // _LINUX_CAPABILITY_VERSION_3 and this thread; two words for each set of 64 bits (capset(2)).
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets: [[u32; 3]; 2] = [[permitted, permitted, inheritable], [0; 3]];
    // SAFETY: both structures have the size that this version says.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }
}

fn child_signals() -> c_int {
    // SAFETY: an all-zero sigset_t is valid and is initialised by sigemptyset; the pointers live through the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        // SAFETY: no pointers.
        unsafe { libc::_exit(102) }
    }
    fd
}

fn drain_signals(fd: c_int) {
    let mut buffer = [0u8; 1024];
    // SAFETY: the buffer is as long as said; the descriptor does not block.
    while unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

fn said(op: u8, tag: u32, value: i32, detail: u32) -> Report {
    Report { op, tag, value, detail, cpu_us: 0, max_rss_kib: 0 }
}

fn send(report: &Report) {
    let bytes = report.encode();
    // SAFETY: `bytes` is valid for its length. A failure means that the daemon is gone: the next poll says so.
    unsafe { libc::send(CONTROL, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

/// Reaps every child that has ended, our commands and adopted orphans alike.
fn reap(processes: &mut [Process; MAX_PROCESSES]) {
    loop {
        let mut status: c_int = 0;
        // SAFETY: all-zero is a valid rusage; both places are valid to write to.
        let (pid, used) = unsafe {
            let mut used: libc::rusage = core::mem::zeroed();
            (libc::wait4(-1, &mut status, libc::WNOHANG, &mut used), used)
        };
        if pid <= 0 {
            return;
        }
        if let Some(process) = processes.iter_mut().find(|process| process.pid == pid) {
            let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
            let cpu_us = micros(used.ru_utime) + micros(used.ru_stime);
            let max_rss_kib = used.ru_maxrss as u32;
            send(&Report { cpu_us, max_rss_kib, ..said(op::EXITED, process.tag, status, 0) });
            process.pid = 0;
        }
    }
}

/// The daemon closed its end: nobody can claim or stop this container any more, so it ends.
fn daemon_gone() -> ! {
    end(0)
}

/// Ends the container, and everything in it.
fn end(code: c_int) -> ! {
    // SAFETY: no pointers; -1 is every process of this pid namespace but ourselves.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
        libc::_exit(code)
    }
}

fn receive(buffers: &mut Buffers, processes: &mut [Process; MAX_PROCESSES], cpus: u32) {
    #[repr(C, align(8))]
    struct ControlBuffer([u8; 64]);
    let mut control = ControlBuffer([0; 64]);
    let mut fds = [-1; SPAWN_FDS];
    let mut count = 0;
    let mut iov = libc::iovec { iov_base: buffers.datagram.as_mut_ptr().cast(), iov_len: MAX_DATAGRAM };
    // SAFETY: all-zero is a valid msghdr; the pointers put in it outlive the call; the control messages are read
    // with the CMSG macros within the length that the kernel returned.
    let (length, truncated) = unsafe {
        let mut message: libc::msghdr = core::mem::zeroed();
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let length = libc::recvmsg(CONTROL, &mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT);
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() && length > 0 {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                let n = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<c_int>();
                for index in 0..n {
                    let fd = data.add(index).read_unaligned();
                    if count < SPAWN_FDS {
                        fds[count] = fd;
                        count += 1;
                    } else {
                        libc::close(fd);
                    }
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
        (length, message.msg_flags & libc::MSG_TRUNC != 0)
    };
    if length == 0 {
        daemon_gone();
    }
    if length < 0 {
        match errno() {
            libc::EAGAIN | libc::EINTR => return,
            _ => daemon_gone(),
        }
    }
    let length = length as usize;
    buffers.datagram[length] = 0;
    let answer = match buffers.datagram[0] {
        op::SPAWN if truncated => {
            let tag = SpawnHeader::decode(&buffers.datagram[..length]).map_or(0, |header| header.tag);
            Some(said(op::FAILED, tag, libc::EINVAL, stage::REQUEST))
        }
        op::SPAWN => Some(spawn(buffers, length, &fds[..count], (processes, cpus))),
        op::SIGNAL => {
            signal(&buffers.datagram[..length], processes);
            None
        }
        _ => None,
    };
    // The strings of a command held a prompt or a key: nothing of them stays in our memory, whether it was started or not.
    buffers.datagram[..length].fill(0);
    if let Some(answer) = answer {
        send(&answer);
    }
    for fd in &fds[..count] {
        // SAFETY: we own the descriptors that we received; the command has its own copies by now.
        unsafe { libc::close(*fd) };
    }
}

fn signal(datagram: &[u8], processes: &[Process; MAX_PROCESSES]) {
    let Some(message) = wire::Signal::decode(datagram) else { return };
    if let Some(process) = processes.iter().find(|process| process.pid != 0 && process.tag == message.tag) {
        // SAFETY: no pointers. Each command leads its own process group (setsid in the child).
        unsafe { libc::kill(-process.pid, message.signal as c_int) };
    }
}

/// Starts a command; returns what is to be said of that.
fn spawn(
    buffers: &mut Buffers,
    length: usize,
    fds: &[c_int],
    (processes, cpus): (&mut [Process; MAX_PROCESSES], u32),
) -> Report {
    let Some(header) = SpawnHeader::decode(&buffers.datagram[..length]) else {
        return said(op::FAILED, 0, libc::EINVAL, stage::REQUEST);
    };
    let refuse = |errno| said(op::FAILED, header.tag, errno, stage::REQUEST);
    if processes.iter().any(|process| process.pid != 0 && process.tag == header.tag) {
        return refuse(libc::EEXIST);
    }
    let Some(slot) = processes.iter_mut().find(|process| process.pid == 0) else { return refuse(libc::EAGAIN) };
    // One descriptor that is a terminal stands for all three.
    let terminal = header.flags & wire::TERMINAL != 0;
    let all: [c_int; SPAWN_FDS] = match *fds {
        [one] if terminal => [one; SPAWN_FDS],
        [stdin, stdout, stderr] if !terminal => [stdin, stdout, stderr],
        _ => return refuse(libc::EINVAL),
    };
    let Some(strings) = read_lists(buffers, &header, length) else { return refuse(libc::EINVAL) };
    if header.uid == INIT_ID || buffers.groups[..=header.groups as usize].contains(&INIT_ID) {
        return said(op::FAILED, header.tag, libc::EPERM, stage::IDENTITY);
    }
    let mut cwd = [ptr::null(); 2];
    let parsed = buffers
        .datagram
        .get(strings..length)
        .filter(|_| header.argc > 0)
        .and_then(|bytes| wire::cut_strings(bytes, 1, &mut cwd))
        .and_then(|bytes| wire::cut_strings(bytes, header.argc as usize, &mut buffers.argv))
        .and_then(|bytes| wire::cut_strings(bytes, header.envc as usize, &mut buffers.envp));
    if parsed.is_none() {
        return refuse(libc::EINVAL);
    }
    let mut child = Child {
        header,
        cwd: cwd[0],
        argv: buffers.argv.as_ptr(),
        envp: buffers.envp.as_ptr(),
        search: search_path(&buffers.envp[..header.envc as usize]),
        path: buffers.path.as_mut_ptr(),
        groups: buffers.groups.as_ptr(),
        rlimits: buffers.rlimits.as_ptr(),
        fds: all,
        cpus,
        failed_stage: 0,
        failed_errno: 0,
    };
    // SAFETY: the stack is ours, large enough for code that only makes system calls, and CLONE_VFORK keeps this
    // thread from running (so `child` and the buffers stay put) until the child has executed or exited.
    let pid = unsafe {
        let top = buffers.stack.as_mut_ptr().add(CHILD_STACK).cast::<c_void>();
        libc::clone(run_child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, (&raw mut child).cast())
    };
    if pid < 0 {
        return said(op::FAILED, header.tag, errno(), stage::CLONE);
    }
    if child.failed_stage != 0 {
        // Its zombie is reaped with the SIGCHLD that it sends.
        return said(op::FAILED, header.tag, child.failed_errno, child.failed_stage);
    }
    *slot = Process { pid, tag: header.tag };
    said(op::STARTED, header.tag, pid, 0)
}

/// Reads groups and resource limits into the buffers; returns where the strings begin.
fn read_lists(buffers: &mut Buffers, header: &SpawnHeader, length: usize) -> Option<usize> {
    let (rlimits, strings) = header.offsets()?;
    let datagram = buffers.datagram.get(..length)?;
    // The primary group is in the list too: a file that denies the group denies us (CVE-2022-36109).
    buffers.groups[0] = header.gid;
    for index in 0..header.groups as usize {
        *buffers.groups.get_mut(index + 1)? = wire::group(datagram, index)?;
    }
    for index in 0..header.rlimits as usize {
        let at = rlimits + index * wire::RLIMIT_LEN;
        *buffers.rlimits.get_mut(index)? = Rlimit::decode(datagram.get(at..)?)?;
    }
    Some(strings)
}

/// Value of `PATH` in the command's environment, or the usual default.
fn search_path(envp: &[*const c_char]) -> *const c_char {
    for entry in envp {
        // SAFETY: each entry points to a NUL-terminated string of at least one byte; the comparison stops there.
        if unsafe { libc::strncmp(*entry, c"PATH=".as_ptr(), 5) } == 0 {
            // SAFETY: the first five bytes were just compared, so the sixth exists (it may be the NUL).
            return unsafe { entry.add(5) };
        }
    }
    c"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr()
}

/// Runs in the child on its own stack, sharing memory with the parent, which waits: only system calls here.
extern "C" fn run_child(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passed a pointer to its `Child` and is suspended until we exec or exit.
    let child = unsafe { &mut *argument.cast::<Child>() };
    let (failed_stage, failed_errno) = match enter(child) {
        Err(failed_stage) => (failed_stage, errno()),
        Ok(()) => (stage::EXEC, exec(child)),
    };
    child.failed_stage = failed_stage;
    child.failed_errno = failed_errno;
    127
}

fn check(result: libc::c_long, failed: u32) -> Result<(), u32> {
    if result < 0 { Err(failed) } else { Ok(()) }
}

/// Everything between clone and exec. Raw calls for identity: glibc's wrappers would signal threads.
fn enter(child: &mut Child) -> Result<(), u32> {
    let SpawnHeader { uid, gid, flags, groups, rlimits, .. } = child.header;
    stay_on_processors(child.cpus);
    // SAFETY: system calls with integers, or with pointers to memory that lives until exec; groups and limits are as many
    // as were read into the parent's buffers; close_range and dup3 act on this child's own descriptor table (no
    // CLONE_FILES).
    unsafe {
        libc::setsid();
        for (index, fd) in child.fds.iter().enumerate() {
            check(libc::dup3(*fd, index as c_int, 0).into(), stage::FDS)?;
        }
        check(libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32), stage::FDS)?;
        if flags & wire::TERMINAL != 0 {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0).into(), stage::TERMINAL)?;
        }
        for index in 0..rlimits as usize {
            let Rlimit { resource, soft, hard } = *child.rlimits.add(index);
            // struct rlimit64, prlimit(2).
            let limit = [soft, hard];
            let none = ptr::null_mut::<u64>();
            check(libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), none), stage::RLIMIT)?;
        }
        let mut set: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
        // The rest went before this program was executed. Cleared last: without it, nothing else could be dropped.
        for cap in wire::KEPT_CAPABILITIES {
            check(libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0).into(), stage::IDENTITY)?;
        }
        check(libc::syscall(libc::SYS_setgroups, groups as usize + 1, child.groups), stage::IDENTITY)?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid), stage::IDENTITY)?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid), stage::IDENTITY)?;
        // The kernel takes them away from a process that was root; this one was not.
        check(set_capabilities(0, 0), stage::IDENTITY)?;
        // After setuid: a directory that the user may not enter must not become its working directory.
        check(libc::chdir(child.cwd).into(), stage::CHDIR)?;
    }
    Ok(())
}

/// execvpe by hand, without an allocator; returns the errno of the most telling failure.
fn exec(child: &Child) -> c_int {
    let mut telling = libc::ENOENT;
    // SAFETY: argv[0], the search path and the environment are NUL-terminated strings or NULL-terminated arrays in
    // the parent's buffers; `path` is a buffer of 4096 bytes and is filled within that.
    unsafe {
        let name = *child.argv;
        let length = libc::strlen(name);
        if length == 0 {
            return libc::ENOENT;
        }
        if !libc::strchr(name, c_int::from(b'/')).is_null() {
            libc::execve(name, child.argv, child.envp);
            return errno();
        }
        let mut directory = child.search;
        loop {
            let mut end = libc::strchr(directory, c_int::from(b':')).cast_const();
            if end.is_null() {
                end = directory.add(libc::strlen(directory));
            }
            let span = end.offset_from(directory) as usize;
            if span > 0 && span + 1 + length < 4096 {
                ptr::copy_nonoverlapping(directory.cast(), child.path, span);
                *child.path.add(span) = b'/';
                ptr::copy_nonoverlapping(name.cast(), child.path.add(span + 1), length + 1);
                libc::execve(child.path.cast(), child.argv, child.envp);
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    other => telling = other,
                }
            }
            if *end == 0 {
                return telling;
            }
            directory = end.add(1);
        }
    }
}
