//! crun and runc, without an engine around them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bed::{Bed, CPUS, MEMORY_MIB, PIDS};
use crate::contender::{Contender, TEXT, succeed, time_to_first_byte};

/// Either runtime, running whole containers or executing in a running one.
pub struct Oci {
    bed: Rc<Bed>,
    runtime: &'static str,
    bundle: PathBuf,
    /// The running container, for `exec`.
    running: Option<String>,
    count: usize,
}

impl Oci {
    /// A new container each time.
    pub fn run(bed: &Rc<Bed>, runtime: &'static str) -> Result<Self> {
        Self::new(bed, runtime, "run", &["/bin/echo", TEXT])
    }

    /// Into one running container.
    pub fn exec(bed: &Rc<Bed>, runtime: &'static str) -> Result<Self> {
        let mut this = Self::new(bed, runtime, "exec", &["/bin/sleep", "1000000"])?;
        let name = format!("{}-{runtime}-exec", bed.cgroup);
        let mut command = this.command();
        command.args(["run", "--detach", "--bundle"]).arg(&this.bundle).arg(&name);
        // The container inherits these: a pipe would never end.
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        this.bed.private.run(move || {
            let status = command.status()?;
            anyhow::ensure!(status.success(), "{command:?}: {status}");
            Ok(())
        })?;
        this.running = Some(name);
        Ok(this)
    }

    fn new(bed: &Rc<Bed>, runtime: &'static str, what: &str, argv: &[&str]) -> Result<Self> {
        let bundle = bed.path().join(format!("{runtime}-{what}"));
        fs::create_dir_all(&bundle)?;
        let config = config(bed, &format!("/{}/{runtime}-{what}", bed.cgroup), argv);
        fs::write(bundle.join("config.json"), config.to_string())?;
        Ok(Self { bed: Rc::clone(bed), runtime, bundle, running: None, count: 0 })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.runtime);
        command.arg("--root").arg(self.bed.path().join(format!("{}-state", self.runtime)));
        if self.runtime == "crun" {
            command.arg("--cgroup-manager=cgroupfs");
        }
        command
    }
}

impl Contender for Oci {
    fn name(&self) -> String {
        format!("{} {}", self.runtime, if self.running.is_some() { "exec" } else { "run" })
    }

    fn once(&mut self) -> Result<Duration> {
        let mut command = self.command();
        match &self.running {
            Some(name) => command.args(["exec", name, "/bin/echo", TEXT]),
            None => {
                self.count += 1;
                let name = format!("{}-{}-{}", self.bed.cgroup, self.runtime, self.count);
                command.args(["run", "--bundle"]).arg(&self.bundle).arg(name)
            }
        };
        self.bed.private.run(move || time_to_first_byte(&mut command))
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let Some(name) = &self.running else { return };
        let mut command = self.command();
        command.args(["delete", "--force", name]);
        if let Err(error) = self.bed.private.run(move || succeed(&mut command)) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// A bundle's config.json with the namespaces, mounts and limits of a thawd container; without its user namespace and
/// its system call filter, which favours the runtime.
fn config(bed: &Bed, cgroup: &str, argv: &[&str]) -> Value {
    let namespaces: Vec<_> =
        ["pid", "network", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    let tmpfs = |target: &str, options: &[&str]| json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options});
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false, "user": {"uid": 1000, "gid": 1000}, "args": argv, "cwd": "/",
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/home/runtime"],
            "capabilities": {}, "noNewPrivileges": true,
        },
        "root": {"path": bed.rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            tmpfs("/dev", &["nosuid", "mode=755", "size=64k"]),
            tmpfs("/dev/shm", &["nosuid", "nodev", "noexec", "size=16m"]),
            tmpfs("/tmp", &["nosuid", "nodev", "size=64m"]),
            tmpfs("/home/runtime", &["nosuid", "nodev", "size=64m", "uid=1000", "gid=1000", "mode=700"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": {
                "memory": {"limit": MEMORY_MIB << 20},
                "cpu": {"quota": (CPUS * 100_000.0) as u64, "period": 100_000},
                "pids": {"limit": PIDS},
            },
        },
    })
}
