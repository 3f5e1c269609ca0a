//! How the container of a sandbox ends.

use std::time::Duration;

use tokio::time::Instant;

use super::SandboxError;
use super::handle::{Fate, Running};
use crate::container::Sandbox as Container;
use crate::failpoints;

/// Pause between two looks at whether every process has ended.
const AGAIN: Duration = Duration::from_millis(10);

/// Lets every process in it end: SIGTERM, and `grace`.
///
/// # Errors
/// Its control files cannot be used.
pub(super) async fn terminate(container: &Container, grace: Duration) -> Result<(), SandboxError> {
    // Who is frozen hears nothing.
    container.thaw()?;
    container.terminate()?;
    failpoints::at("sandbox.terminated");
    let until = Instant::now() + grace;
    while container.has_processes()? && Instant::now() < until {
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}

/// Ends a container, and tells those whose commands run in it why.
pub(super) fn kill(running: &Running, fate: Fate) {
    // Once: a container ends once.
    let _ = running.fate.set(fate);
    if let Err(error) = running.container.kill() {
        tracing::error!(%error, "could not kill a sandbox");
    }
}

/// More about a container that ended without being told to.
pub(super) fn how_it_ended(container: &Container) -> Option<String> {
    let used = container.usage().ok()?.since(&container.baseline());
    (used.oom_kills > 0).then(|| {
        let mib = container.limits().memory_bytes >> 20;
        format!("its memory limit of {mib} MiB had been exceeded {} times", used.oom_kills)
    })
}
