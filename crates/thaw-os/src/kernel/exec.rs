//! Executes a program by descriptor.

use std::convert::Infallible;
use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Replaces this process by the program that `program` refers to, with these arguments, an empty environment, and no
/// descriptors but the standard three: nothing that the daemon was started with gets into a container (CVE-2024-21626).
///
/// # Errors
/// Returns only when execveat(2) failed.
pub fn execute(program: BorrowedFd<'_>, arguments: &[&CStr]) -> io::Result<Infallible> {
    let argv: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).chain([ptr::null()]).collect();
    let envp: [*const c_char; 1] = [ptr::null()];
    // SAFETY: only sets close-on-exec (Linux 5.11); nothing is closed unless the exec succeeds.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: argv and envp are NULL-terminated arrays of NUL-terminated strings that live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}
