//! What the integration tests share: a real daemon with real containers, and eyes on the kernel.
//!
//! [`Daemon::start`] runs the `thawd` program with directories, a control group and a socket of its own, so that tests
//! can run at the same time. [`Daemon::stop`] ends it in order and asserts that nothing of it is left.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod calls;
mod cgroups;
mod daemon;
mod host_image;
mod http;
mod image;
mod machine;
mod outcome;
mod podman;
mod program;
pub mod programs;
mod setup;
mod token_server;

use std::future::Future;
use std::time::{Duration, Instant};

pub use calls::{Call, OwnedCall, assert_calls, assert_owned, n, text};
pub use cgroups::{ContainerCgroup, hierarchies};
pub use daemon::Daemon;
pub use host_image::HostImage;
pub use http::{Answer, header_end, open};
pub use image::layouts;
pub use machine::{Process, children, mounts_below, open_files, processes_in_cgroup, resident_bytes, status_field};
pub use outcome::{Outcome, bytes, collect, command, prompt, shell};
pub use podman::{configure_podman, podman};
pub use program::{Program, Value};
pub use setup::Setup;
pub use token_server::{Mood, TokenServer};

/// Longest wait for something that should happen soon: generous, because the test bed is slow and machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this runs in the User-mode Linux bed, where everything takes several times longer.
pub fn in_bed() -> bool {
    std::env::var_os("THAWD_TEST_BED").is_some_and(|bed| bed == "uml")
}

/// Asks again and again until there is an answer; panics after [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "did not happen within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
