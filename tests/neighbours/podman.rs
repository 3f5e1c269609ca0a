//! The same attackers and the same victim in podman's containers, with the same limits.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::hierarchies;

/// podman with storage of its own.
pub struct Podman {
    folder: PathBuf,
}

/// The image with the three programs.
const IMAGE: &str = "localhost/neighbours";

/// Control group of its containers.
const GROUP: &str = "/thawd-test-podman";

impl Podman {
    /// With the programs that lie in `programs`; `None` where it is not installed, or cannot run with limits.
    pub fn new(folder: &Path, programs: &[PathBuf]) -> Option<Self> {
        crate::support::configure_podman(folder, 16384);
        let archive = folder.join("image.tar");
        let mut builder = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        for program in programs {
            let name = program.file_stem().unwrap();
            builder.append_path_with_name(program, name).unwrap();
        }
        builder.finish().unwrap();
        let podman = Self { folder: folder.to_owned() };
        let imported = podman.call(&["import", "-q", archive.to_str().unwrap(), IMAGE])?;
        let works = imported.status.success() && podman.run(&["/storm", "nothing"]).is_some();
        works.then_some(podman)
    }

    fn call(&self, arguments: &[&str]) -> Option<Output> {
        crate::support::podman(&self.folder, arguments).ok()
    }

    fn limited<'a>(first: &[&'a str], argv: &[&'a str]) -> Vec<&'a str> {
        let limits = ["--network", "none", "--memory", "192m", "--cpus", "0.5", "--pids-limit", "256"];
        [first, &limits, &["--cgroup-parent", GROUP, "--tmpfs", "/tmp", IMAGE], argv].concat()
    }

    /// Runs a program to its end; what it writes, if it succeeds.
    pub fn run(&self, argv: &[&str]) -> Option<String> {
        let output = self.call(&Self::limited(&["run", "--rm"], argv))?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program; its container's name.
    pub fn begin(&self, argv: &[&str]) -> Option<String> {
        let output = self.call(&Self::limited(&["run", "-d"], argv))?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Ends it.
    pub fn end(&self, container: &str) {
        self.call(&["rm", "-f", "-t", "0", container]);
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["rm", "-a", "-f", "-t", "0"]);
        for (mount, _) in hierarchies() {
            remove_empty(&mount.join(GROUP.trim_start_matches('/')));
        }
    }
}

/// Removes what podman leaves of its control group.
fn remove_empty(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(group);
}
