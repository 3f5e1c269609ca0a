//! What happens when the host runs out of something, or something of thawd's own is killed: it fails with a reason,
//! loses nothing that runs, and goes on by itself when there is enough again.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod descriptors;
mod disk;
mod memory;
mod processes;
mod second;
mod understanding;

use std::fmt::Write as _;
use std::time::Duration;

use support::{Daemon, Outcome, shell};
use thaw_client::types::ExecutionRequest;

/// A file system of a test's own in memory, over a directory; taken away when this is dropped.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(directory: std::path::PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("mode=0755,{options}"), "tmpfs", directory.to_str().unwrap()]);
        Self(directory)
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a daemon whose test has failed still has files open on it.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// An execution that nobody streams, which writes a numbered line every 10 ms.
struct Counting {
    id: String,
    lines: usize,
}

impl Counting {
    async fn start(daemon: &Daemon, lines: usize) -> Self {
        let script = format!("i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 7");
        // On a slow machine a line takes several times as long.
        let request = ExecutionRequest { timeout_ms: Some(120_000), ..shell(&script) };
        let id = daemon.client.create(&request).await.unwrap().id;
        Self { id, lines }
    }

    /// Whatever happened meanwhile: each line once, in order, and its own exit code.
    async fn assert_complete(self, daemon: &Daemon) {
        let events = daemon.client.events(&self.id, None).await.unwrap();
        let outcome = tokio::time::timeout(support::PATIENCE, Outcome::of(events)).await.expect("it ends").exited(7);
        let mut expected = String::new();
        for line in 1..=self.lines {
            writeln!(expected, "line {line}").unwrap();
        }
        assert_eq!(outcome.text(), expected);
    }
}

/// Until the pause between two tries of a pool, which doubles up to a minute, is over.
const RECOVERY: Duration = Duration::from_secs(90);
