//! Clocks of the kernel, read through libc. rustix panics where the vDSO lacks one of the functions that it looks up,
//! as in User-mode Linux.

use std::time::Duration;

/// Time since boot, without time asleep (`CLOCK_MONOTONIC`); the same for all processes of the machine.
pub fn since_boot() -> Duration {
    read(libc::CLOCK_MONOTONIC)
}

/// CPU time that the calling thread has used (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is what the pointer refers to. It cannot fail for these clocks.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_charged_for_work_and_not_for_waiting() {
        let begun = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_cpu_time() - begun < Duration::from_millis(40));
        while thread_cpu_time() - begun < Duration::from_millis(50) {}
        assert!(since_boot() > Duration::ZERO);
    }
}
