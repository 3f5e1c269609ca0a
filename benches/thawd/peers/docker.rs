//! docker, with a daemon of our own: own data, own socket, no networking, stopped by its process id.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal};

use super::Idle;
use super::podman::limits;
use crate::bed::{Bed, CPUS, MEMORY_MIB, PIDS};
use crate::contender::{Contender, TEXT, succeed, time_to_first_byte};

/// Name of the test image in docker's own store.
const IMAGE: &str = "thawd-bench";

/// A running `dockerd`.
pub struct Engine {
    bed: Rc<Bed>,
    child: Child,
    socket: PathBuf,
}

/// The engine, or why there is none.
pub fn engine(engine: &Result<Rc<Engine>>) -> Result<&Rc<Engine>> {
    engine.as_ref().map_err(|error| anyhow!("{error:#}"))
}

impl Engine {
    /// Starts the daemon and gives it the test image.
    pub fn start(bed: &Rc<Bed>) -> Result<Self> {
        let directory = bed.path().join("docker");
        fs::create_dir_all(&directory)?;
        let socket = directory.join("docker.sock");
        let log = fs::File::create(directory.join("log"))?;
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .arg(format!("--host=unix://{}", socket.display()))
            .arg(format!("--cgroup-parent=/{}", bed.cgroup))
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--bridge=none", "--iptables=false"])
            .args(["--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let mut engine = Self { bed: Rc::clone(bed), child, socket };
        let deadline = Instant::now() + Duration::from_secs(30);
        while succeed(engine.docker().arg("version")).is_err() {
            if engine.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
                bail!("dockerd does not run here: {}", log.lines().last().unwrap_or("it said nothing"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let archive = directory.join("image.tar");
        succeed(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&bed.rootfs).arg("."))?;
        succeed(engine.docker().arg("import").arg(&archive).arg(IMAGE))?;
        Ok(engine)
    }

    fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command.env_remove("DOCKER_CONTEXT");
        command
    }

    fn run_command(&self) -> Command {
        let mut command = self.docker();
        command.args(["run", "--network", "none", "--log-driver", "none"]).args(limits(MEMORY_MIB, CPUS, PIDS));
        command
    }
}

impl Idle for Rc<Engine> {
    fn start(&self, name: &str) -> Result<()> {
        succeed(self.run_command().args(["--detach", "--name", name, IMAGE, "/bin/sleep", "1000000"])).map(drop)
    }

    fn stop(&self, name: &str) {
        if let Err(error) = succeed(self.docker().args(["rm", "--force", name])) {
            eprintln!("bench: {error:#}");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("bench: dockerd did not stop and is killed");
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Running whole containers, or executing in a running one.
pub struct Docker {
    engine: Rc<Engine>,
    running: Option<String>,
}

impl Docker {
    /// A new container each time.
    pub fn run(engine: &Rc<Engine>) -> Result<Self> {
        Ok(Self { engine: Rc::clone(engine), running: None })
    }

    /// Into one running container.
    pub fn exec(engine: &Rc<Engine>) -> Result<Self> {
        let name = format!("{}-exec", engine.bed.cgroup);
        engine.start(&name)?;
        Ok(Self { engine: Rc::clone(engine), running: Some(name) })
    }
}

impl Contender for Docker {
    fn name(&self) -> String {
        format!("docker {}", if self.running.is_some() { "exec" } else { "run" })
    }

    fn once(&mut self) -> Result<Duration> {
        let mut command = match &self.running {
            Some(name) => {
                let mut command = self.engine.docker();
                command.args(["exec", name, "/bin/echo", TEXT]);
                command
            }
            None => {
                let mut command = self.engine.run_command();
                command.args(["--rm", IMAGE, "/bin/echo", TEXT]);
                command
            }
        };
        time_to_first_byte(&mut command)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(name) = &self.running {
            self.engine.stop(name);
        }
    }
}
