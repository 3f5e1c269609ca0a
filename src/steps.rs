//! Named steps of what the daemon does, at each of which tests can kill it.
//!
//! In a build with debug assertions, the environment variable `THAWD_DIE_AT` names a step, with a count if it is not the
//! first time that is meant (`claim.submitted:3`): the process kills itself there, by SIGKILL, before it goes on. Other
//! builds know nothing of this.

/// Every step, in the order in which a container goes through them.
pub const ALL: [&str; 23] = [
    "create.cgroup",
    "create.spawned",
    "create.ready",
    "create.credentials",
    "rest.frozen",
    "rest.kept",
    "claim.kept",
    "claim.marked",
    "claim.raised",
    "claim.injected",
    "claim.submitted",
    "claim.noted",
    "claim.thawed",
    "run.started",
    "run.moved",
    "run.taken",
    "run.published",
    "end.seen",
    "end.drained",
    "end.written",
    "destroy.killed",
    "destroy.emptied",
    "destroy.removed",
];

/// The daemon is at this step now.
#[cfg(debug_assertions)]
pub fn at(step: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("THAWD_DIE_AT").ok()?;
        let (step, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((step.to_owned(), AtomicU32::new(count.parse().ok()?)))
    });
    if let Some((wanted, left)) = wanted
        && wanted == step
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        debug_assert!(ALL.contains(&step), "{step} is not listed");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // It comes before this thread gets any further, if not at once.
        loop {
            std::thread::park();
        }
    }
}

/// The daemon is at this step now.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at(_step: &str) {}
