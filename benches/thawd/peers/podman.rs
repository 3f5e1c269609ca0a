//! podman, with storage of its own below the bench's directory.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use super::Idle;
use crate::bed::{Bed, CPUS, MEMORY_MIB, PIDS};
use crate::contender::{Contender, TEXT, succeed, time_to_first_byte};

/// Running whole containers, or executing in a running one.
pub struct Podman {
    bed: Rc<Bed>,
    running: Option<String>,
}

/// `podman` with everything below `directory`.
pub fn podman(directory: &Path) -> Command {
    let mut command = Command::new("podman");
    for (flag, place) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        command.arg(flag).arg(directory.join("podman").join(place));
    }
    command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
    command
}

/// Flags of a container with the usual limits.
pub fn limits(memory_mib: u64, cpus: f64, pids: u32) -> Vec<String> {
    let memory = format!("{memory_mib}m");
    let cpus = cpus.to_string();
    // Explicit ulimits: podman's defaults would raise them, which needs CAP_SYS_RESOURCE.
    [
        "--memory",
        &memory,
        "--memory-swap",
        &memory,
        "--cpus",
        &cpus,
        "--pids-limit",
        &pids.to_string(),
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
        "--user",
        "1000:1000",
        "--cap-drop",
        "all",
        "--security-opt",
        "no-new-privileges",
        "--read-only",
    ]
    .map(str::to_owned)
    .to_vec()
}

impl Podman {
    /// A new container each time.
    pub fn run(bed: &Rc<Bed>) -> Result<Self> {
        Ok(Self { bed: Rc::clone(bed), running: None })
    }

    /// Into one running container.
    pub fn exec(bed: &Rc<Bed>) -> Result<Self> {
        let mut this = Self::run(bed)?;
        let name = format!("{}-exec", bed.cgroup);
        this.start(&name)?;
        this.running = Some(name);
        Ok(this)
    }

    fn run_command(&self) -> Command {
        let mut command = podman(self.bed.path());
        command.args(["run", "--network", "none", "--log-driver", "none", "--stop-timeout", "0"]);
        command.arg("--cgroup-parent").arg(format!("/{}", self.bed.cgroup)).args(limits(MEMORY_MIB, CPUS, PIDS));
        command
    }
}

impl Contender for Podman {
    fn name(&self) -> String {
        format!("podman {}", if self.running.is_some() { "exec" } else { "run" })
    }

    fn once(&mut self) -> Result<Duration> {
        let mut command = match &self.running {
            Some(name) => {
                let mut command = podman(self.bed.path());
                command.args(["exec", name, "/bin/echo", TEXT]);
                command
            }
            None => {
                let mut command = self.run_command();
                command.args(["--rm", "--rootfs"]).arg(&self.bed.rootfs).args(["/bin/echo", TEXT]);
                command
            }
        };
        self.bed.private.run(move || time_to_first_byte(&mut command))
    }
}

impl Idle for Podman {
    fn start(&self, name: &str) -> Result<()> {
        let mut command = self.run_command();
        command.args(["--detach", "--name", name, "--rootfs"]).arg(&self.bed.rootfs).args(["/bin/sleep", "1000000"]);
        self.bed.private.run(move || succeed(&mut command)).map(drop)
    }

    fn stop(&self, name: &str) {
        remove(&self.bed, name);
    }
}

/// Removes a container, running or not.
pub fn remove(bed: &Bed, name: &str) {
    let mut command = podman(bed.path());
    command.args(["rm", "--force", "--ignore", "--time", "0", name]);
    if let Err(error) = bed.private.run(move || succeed(&mut command)) {
        eprintln!("bench: {error:#}");
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Some(name) = &self.running {
            remove(&self.bed, name);
        }
    }
}
