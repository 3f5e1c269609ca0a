//! Kills child processes and reaps them without making anybody wait.

use std::process::Child;
use std::time::{Duration, Instant};

/// Delays after which a killed child is checked: short at first, longer for one that hangs in the kernel.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

/// Longest time that the end of the runtime waits for each killed child, so that none is left when the process ends.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A killed child. Dropping it waits until it is reaped, for at most [`LAST_PATIENCE`].
struct Killed(Child);

impl Killed {
    fn is_reaped(&mut self) -> bool {
        // An error means that the child no longer exists.
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let until = Instant::now() + LAST_PATIENCE;
        while !self.is_reaped() && Instant::now() < until {
            std::thread::sleep(LOOKS[0]);
        }
    }
}

/// Kills `child` and reaps it whenever it ends. Only the end of the runtime waits for that.
pub fn kill_and_reap(mut child: Child) {
    // An error means that the child has ended already.
    let _ = child.kill();
    let mut killed = Killed(child);
    if killed.is_reaped() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        for pause in LOOKS.into_iter().chain(std::iter::repeat(LOOKS[LOOKS.len() - 1])) {
            tokio::time::sleep(pause).await;
            if killed.is_reaped() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::kill_and_reap;

    #[tokio::test]
    async fn a_killed_child_leaves_no_zombie_and_keeps_nobody_waiting() {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let process = format!("/proc/{}", child.id());
        kill_and_reap(child);
        let begun = std::time::Instant::now();
        while std::path::Path::new(&process).exists() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(20), "not reaped");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn the_end_of_the_runtime_leaves_no_killed_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let children: Vec<_> = (0..20).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let processes: Vec<_> = children.iter().map(|child| format!("/proc/{}", child.id())).collect();
        runtime.block_on(async {
            children.into_iter().for_each(kill_and_reap);
        });
        drop(runtime);
        for process in processes {
            assert!(!std::path::Path::new(&process).exists(), "{process} is left");
        }
    }
}
