//! The ids that a thread acts on files with (setfsuid(2)).

use std::io;

/// Runs `act` as this user and group where files are concerned, with every capability that this thread is permitted.
///
/// # Errors
/// The ids or capabilities cannot be changed.
pub fn with_file_ids<T>(user: u32, group: u32, act: impl FnOnce() -> T) -> io::Result<T> {
    let before = set(user, group)?;
    // Leaving user 0 took the capabilities over files away.
    let raised = raise_capabilities();
    let outcome = raised.map(|()| act());
    // User 0 has them again by itself.
    set(before.0, before.1)?;
    outcome
}

fn raise_capabilities() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Sets both; returns what they were.
fn set(user: u32, group: u32) -> io::Result<(u32, u32)> {
    // SAFETY: both calls change an id of this thread, and touch no memory.
    let before = unsafe { (libc::setfsuid(user), libc::setfsgid(group)) };
    // They report no errors: an impossible id changes nothing, and returns the present one.
    // SAFETY: as above.
    let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    let id = |number: libc::c_int| number.cast_unsigned();
    match (id(now.0), id(now.1)) == (user, group) {
        true => Ok((id(before.0), id(before.1))),
        false => Err(io::Error::other(format!("cannot act on files as {user}:{group}"))),
    }
}
