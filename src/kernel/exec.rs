//! Executing a program by descriptor.

use std::convert::Infallible;
use std::ffi::{CStr, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Replaces this process by the program that `program` refers to, with one argument and no environment.
///
/// # Errors
/// Returns only when execveat(2) failed.
pub fn execute(program: BorrowedFd<'_>, argument: &CStr) -> io::Result<Infallible> {
    let argv = [argument.as_ptr(), ptr::null()];
    let envp: [*const c_char; 1] = [ptr::null()];
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
