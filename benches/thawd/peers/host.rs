//! The host itself, and bubblewrap.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use crate::bed::Bed;
use crate::contender::{Contender, TEXT, time_to_first_byte};

/// A program started on the host: the least that anything can cost.
pub struct Spawn {
    name: &'static str,
    program: PathBuf,
}

impl Spawn {
    /// An `echo`.
    pub fn new(name: &'static str, program: PathBuf) -> Self {
        Self { name, program }
    }
}

impl Contender for Spawn {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn once(&mut self) -> Result<Duration> {
        time_to_first_byte(Command::new(&self.program).arg(TEXT))
    }
}

/// `bwrap` makes a new sandbox each time, without limits.
pub struct Bwrap(Rc<Bed>);

impl Bwrap {
    /// With the test image.
    pub fn new(bed: &Rc<Bed>) -> Self {
        Self(Rc::clone(bed))
    }
}

impl Contender for Bwrap {
    fn name(&self) -> String {
        "bwrap".to_owned()
    }

    fn once(&mut self) -> Result<Duration> {
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--ro-bind"]).arg(&self.0.rootfs).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/home/runtime"]);
        command.args(["--uid", "1000", "--gid", "1000", "/bin/echo", TEXT]);
        time_to_first_byte(&mut command)
    }
}
