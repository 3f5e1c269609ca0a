//! Named steps of the daemon at which tests can kill or stop it.
//!
//! In a build with debug assertions, the environment variable `THAWD_DIE_AT` names a step, with a count if a later pass
//! is meant (`claim.submitted:3`). The process kills itself there with SIGKILL. With `THAWD_STOP_AT` it stops itself
//! there with SIGSTOP, until SIGCONT. Other builds do not read these variables.

/// Every step, in the order in which a container goes through them.
pub const ALL: [&str; 28] = [
    "create.cgroup",
    "create.spawned",
    "create.ready",
    "create.credentials",
    "create.prestarted",
    "park.frozen",
    "park.kept",
    "claim.kept",
    "claim.marked",
    "claim.raised",
    "claim.injected",
    "claim.submitted",
    "claim.noted",
    "claim.thawed",
    "say.written",
    "say.moved",
    "run.started",
    "run.moved",
    "run.taken",
    "run.published",
    "end.seen",
    "end.drained",
    "end.brought_back",
    "end.collected",
    "end.written",
    "destroy.killed",
    "destroy.emptied",
    "destroy.removed",
];

/// Steps of renewing a login.
pub const REFRESH: [&str; 3] = ["refresh.asking", "refresh.answered", "refresh.stored"];

/// Those of a sandbox, in the order in which one goes through them.
pub const SANDBOX: [&str; 8] = [
    "sandbox.written",
    "sandbox.kept",
    "sandbox.claimed",
    "inside.kept",
    "inside.submitted",
    "sandbox.frozen",
    "sandbox.thawed",
    "sandbox.ended",
];

/// Those of a sandbox's storage, in the order in which one is created, stopped, started again and deleted.
pub const STORAGE: [&str; 9] = [
    "storage.making",
    "storage.made",
    "storage.attached",
    "storage.prepared",
    "sandbox.terminated",
    "sandbox.stopping",
    "sandbox.stopped",
    "sandbox.started",
    "storage.removing",
];

/// Marks a step: kills or stops the process here if the environment says so.
#[cfg(debug_assertions)]
pub fn at(step: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// Longest time until a stop has reached all threads: microseconds usually, this long on the busiest machine.
    const STOP_COMES_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);

    struct Wanted {
        step: String,
        left: AtomicU32,
        signal: Signal,
    }

    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let named = [("THAWD_DIE_AT", Signal::KILL), ("THAWD_STOP_AT", Signal::STOP)];
        let (text, signal) = named.into_iter().find_map(|(name, signal)| Some((std::env::var(name).ok()?, signal)))?;
        let (step, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Wanted { step: step.to_owned(), left: AtomicU32::new(count.parse().ok()?), signal })
    });
    if let Some(Wanted { step: wanted, left, signal }) = wanted
        && wanted == step
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        debug_assert!(
            [&ALL[..], &REFRESH, &SANDBOX, &STORAGE].iter().any(|steps| steps.contains(&step)),
            "{step} is not listed"
        );
        let _ = kill_process(getpid(), *signal);
        // The kernel may deliver the signal to another thread first; this thread must not continue meanwhile.
        if *signal == Signal::STOP {
            std::thread::sleep(STOP_COMES_WITHIN);
            return;
        }
        loop {
            std::thread::park();
        }
    }
}

/// Does nothing in a build without debug assertions.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at(_step: &str) {}
