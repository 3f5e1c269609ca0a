//! Who thawd is compared with. Each runs the same root file system with the same limits, as far as it can.

mod docker;
mod host;
mod oci;
pub mod podman;

use std::rc::Rc;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::contender::{Contender, succeed};

pub use docker::Docker;
pub use host::{Bwrap, Spawn};
pub use oci::Oci;
pub use podman::Podman;

/// Contenders, and a line for each peer that cannot run here.
#[derive(Default)]
pub struct Field {
    /// Those that work.
    pub contenders: Vec<Box<dyn Contender>>,
    /// Those that do not, with the reason.
    pub absent: Vec<String>,
}

impl Field {
    /// Adds a contender if it can be made and does its job once.
    pub fn add<C: Contender + 'static>(&mut self, name: &str, made: Result<C>) {
        let tried = made.and_then(|mut contender| contender.once().map(|_| contender));
        match tried {
            Ok(contender) => self.contenders.push(Box::new(contender)),
            Err(error) => self.absent.push(format!("{name} is not in the comparison: {error:#}")),
        }
    }

    /// Programs started on the host, without any container.
    pub fn add_host(&mut self, bed: &Bed) {
        self.add("posix_spawn", Ok(Spawn::new("posix_spawn /bin/echo", "/bin/echo".into())));
        let image = bed.rootfs.join("bin/echo");
        self.add("posix_spawn (image's)", Ok(Spawn::new("posix_spawn of the image's echo", image)));
    }

    /// `exec` into running containers.
    pub fn add_exec(&mut self, bed: &Rc<Bed>, docker: &Result<Rc<docker::Engine>>) {
        self.add("crun exec", Oci::exec(bed, "crun"));
        self.add("runc exec", Oci::exec(bed, "runc"));
        self.add("podman exec", Podman::exec(bed));
        self.add("docker exec", docker::engine(docker).and_then(Docker::exec));
    }

    /// Whole containers: created, run, removed.
    pub fn add_run(&mut self, bed: &Rc<Bed>, docker: &Result<Rc<docker::Engine>>) {
        self.add("crun run", Oci::run(bed, "crun"));
        self.add("runc run", Oci::run(bed, "runc"));
        self.add("podman run", Podman::run(bed));
        self.add("docker run", docker::engine(docker).and_then(Docker::run));
    }
}

/// Starts a docker daemon for a measure, if this machine can.
pub fn docker(bed: &Rc<Bed>) -> Result<Rc<docker::Engine>> {
    docker::Engine::start(bed).map(Rc::new)
}

/// Versions of the peers that are installed.
pub fn versions() -> Value {
    let mut versions = serde_json::Map::new();
    for program in ["bwrap", "crun", "runc", "podman", "dockerd"] {
        let first = succeed(std::process::Command::new(program).arg("--version"));
        let first = first.ok().and_then(|text| text.lines().next().map(str::to_owned));
        versions.insert(program.to_owned(), json!(first.unwrap_or_else(|| "not installed".to_owned())));
    }
    Value::Object(versions)
}

/// An engine that keeps idle containers.
pub trait Idle {
    /// Starts a container that sleeps.
    fn start(&self, name: &str) -> Result<()>;
    /// Removes it.
    fn stop(&self, name: &str);
}
