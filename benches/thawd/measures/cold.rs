//! Without a warm container: create, run, first byte.

use std::rc::Rc;

use anyhow::Result;

use super::other_version;
use crate::Options;
use crate::bed::{Bed, Daemon, Provider};
use crate::contender::interleave;
use crate::peers::{self, Bwrap, Field};
use crate::report::{Goal, Outcome, median};
use crate::thawd_run::{Echo, check_credentials};

const COLD: &str = "thawd, cold";

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Cold create to first byte",
        "The pool is empty (`pool_target = 0`), so that the request waits for its container to be created; credential \
         files as for a warm claim. The peers create a container, run `echo` in it and remove it (not timed). crun and \
         runc have neither a user namespace nor a system call filter here, bwrap no limits either, which favours them.",
    );
    let daemon = Rc::new(Daemon::start(bed, &[Provider::new("bench", 0)], 20)?);
    check_credentials(&daemon, "bench")?;
    let docker = peers::docker(bed);
    // Before the field, so that the other daemon is stopped before its directory goes.
    let other = other_version(bed, options)?;
    let mut field = Field::default();
    field.add_host(bed);
    field.contenders.push(Box::new(Echo::new(COLD, &daemon, "bench", 0, true)));
    if let Some((name, bed)) = &other {
        let daemon = Rc::new(Daemon::start(bed, &[Provider::new("bench", 0)], 20)?);
        field.contenders.push(Box::new(Echo::new(&format!("{name}, cold"), &daemon, "bench", 0, true)));
    }
    field.add("bwrap", Ok(Bwrap::new(bed)));
    field.add_run(bed, &docker);
    let series = interleave(&mut field.contenders, options.n)?;
    let of = |name: &str| median(&series, name).unwrap_or(f64::NAN);
    outcome.goal("thawd / runc run", of(COLD) / of("runc run"), "×", Goal::AtMost(1.0));
    outcome.fact("thawd / crun run", of(COLD) / of("crun run"), "×");
    outcome.fact("podman run / thawd", of("podman run") / of(COLD), "×");
    outcome.compare("", series, COLD);
    outcome.notes.extend(field.absent);
    Ok(outcome)
}
