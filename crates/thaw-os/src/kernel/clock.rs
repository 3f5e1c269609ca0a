//! A clock that all processes of the machine agree about.

use std::time::Duration;

/// Time since the machine was started, without the time that it slept (`CLOCK_MONOTONIC`).
///
/// By libc rather than by rustix, which panics where the vDSO lacks one of the functions that it looks for, as in
/// User-mode Linux.
pub fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is what the pointer refers to. It cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
