//! Whose files are that a thread makes.

use std::io;

/// Lets this thread make and open files as `user` and `group` of the host, until it ends. It loses the capabilities that
/// get around permissions of files (setfsuid(2)). Other threads are not concerned.
///
/// # Errors
/// The kernel does not let it.
pub fn own_files_as(user: u32, group: u32) -> io::Result<()> {
    // The group first: it takes a capability that is gone afterwards.
    for (call, id) in [(libc::SYS_setfsgid, group), (libc::SYS_setfsuid, user)] {
        // SAFETY: takes a number and touches no memory. The raw call concerns the calling thread alone.
        unsafe { libc::syscall(call, libc::c_long::from(id)) };
        // There is no error to return: the call gives what was set before, and -1 changes nothing.
        // SAFETY: as above.
        if unsafe { libc::syscall(call, -1 as libc::c_long) } != libc::c_long::from(id) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(())
}
