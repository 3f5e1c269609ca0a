//! `clone3` for a container's PID 1.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Uid, geteuid, getuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities, set_thread_res_uid};

/// `CLONE_INTO_CGROUP`, linux/sched.h; the `libc` constant is an `int` and truncates to 0 on linux-gnu.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The side on which the clone returned.
#[derive(Debug)]
pub enum Cloned {
    /// The new process, PID 1 of its namespaces.
    Child,
    /// The caller.
    Parent {
        /// Process id in the caller's namespace.
        pid: i32,
        /// Descriptor of the process (pidfd_open(2)).
        pidfd: OwnedFd,
    },
}

/// Forks into new user, pid, mount, network, ipc, uts and cgroup namespaces, directly inside the given cgroup
/// (v2 directory). The new process is a child of the caller's *parent*, which learns of its end.
///
/// The user namespace belongs to `owner`, a user of the host that is nobody else: for that user the kernel counts what a
/// container takes of what each user may have (inotify, signals, messages, namespaces). Were it root, all containers and
/// root itself would share one budget. The child has `owner` as its effective user, and root's right to files, until it
/// becomes somebody of the new namespace.
///
/// Must be called while the process has a single thread: the child goes on running ordinary code.
///
/// # Errors
/// The error of clone3(2); EAGAIN on a process limit, ENOSPC on a namespace limit.
pub fn clone_container(cgroup: BorrowedFd<'_>, owner: u32) -> io::Result<Cloned> {
    let own = act_as(owner)?;
    let cloned = clone3(cgroup);
    if !matches!(cloned, Ok(Cloned::Child)) {
        own.restore()?;
    }
    cloned
}

/// Identity of this process before [`act_as`].
struct Own {
    user: Uid,
    capabilities: CapabilitySets,
}

/// Changes the effective user, and keeps capabilities and the access to files.
fn act_as(owner: u32) -> io::Result<Own> {
    let own = Own { user: geteuid(), capabilities: capabilities(None)? };
    set_thread_res_uid(getuid(), Uid::from_raw(owner), getuid())?;
    // SAFETY: no pointers. It returns the user of before, whether or not it succeeded; what follows shows.
    unsafe { libc::syscall(libc::SYS_setfsuid, own.user.as_raw()) };
    // The change has emptied the effective set (capabilities(7)).
    match set_capabilities(None, own.capabilities) {
        Ok(()) => Ok(own),
        Err(errno) => {
            own.restore()?;
            Err(errno.into())
        }
    }
}

impl Own {
    fn restore(self) -> io::Result<()> {
        set_thread_res_uid(getuid(), self.user, getuid())?;
        Ok(set_capabilities(None, self.capabilities)?)
    }
}

fn clone3(cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data for which all-zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    arguments.flags = namespaces as u64 | (libc::CLONE_PIDFD | libc::CLONE_PARENT) as u64 | CLONE_INTO_CGROUP;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: the structure and the pidfd slot outlive the call. Without CLONE_VM the child has its own copy of
    // our memory, and we have one thread, so it continues like after fork(2).
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel stored a fresh descriptor that nobody else owns.
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}
