//! A system call filter that leaves some calls to another process (seccomp_unotify(2)).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use seccompiler::sock_filter;

/// Installs `program` for this thread, and returns the descriptor on which its questions arrive. The thread has to have
/// `no_new_privs`.
///
/// A call that waits for its answer can be interrupted, and is made again (not `WAIT_KILLABLE_RECV`): otherwise a control
/// group could not be frozen while one waits.
///
/// # Errors
/// Those of seccomp(2).
pub fn install_with_listener(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `length` instructions of the layout of linux/filter.h, which both types have, and changes
    // none of them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}
