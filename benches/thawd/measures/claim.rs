//! A warm claim: from the request to the first byte of `/bin/echo`, two credential files delivered on the way.

use std::rc::Rc;

use anyhow::Result;

use super::other_version;
use crate::Options;
use crate::bed::{self, Bed, Daemon, Provider};
use crate::contender::interleave;
use crate::peers::{self, Bwrap, Field};
use crate::report::{Goal, Outcome, median};
use crate::stats::Series;
use crate::thawd_run::{Echo, check_credentials};

const KEPT: &str = "thawd, warm";
const NEW: &str = "thawd, warm, new connection";
const SPAWN: &str = "posix_spawn /bin/echo";

/// Frozen containers in the comparison with the peers.
const POOL: usize = 10;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Claim to first byte",
        "A request over HTTP on the Unix socket claims a frozen container, hands over two credential files and runs \
         `/bin/echo`; the clock runs from the first byte of the request to the first byte of the command's output. \
         One connection is kept for all requests, except where it says otherwise. The peers execute the same `echo` \
         in a container that is already running and unfrozen, and deliver no files; bwrap makes its sandbox each time. \
         crun and runc have neither a user namespace nor a system call filter here, which favours them.",
    );
    peers(bed, options, &mut outcome)?;
    sizes(bed, options, &mut outcome)?;
    Ok(outcome)
}

fn peers(bed: &Rc<Bed>, options: &Options, outcome: &mut Outcome) -> Result<()> {
    let daemon = Rc::new(Daemon::start(bed, &[Provider::new("bench", POOL)], POOL + 20)?);
    check_credentials(&daemon, "bench")?;
    let docker = peers::docker(bed);
    // Before the field, so that the other daemon is stopped before its directory goes.
    let other = other_version(bed, options)?;
    let mut field = Field::default();
    field.add_host(bed);
    let kept = Echo::new(KEPT, &daemon, "bench", POOL, true);
    let inside = Rc::clone(&kept.claim_us);
    field.contenders.push(Box::new(kept));
    field.contenders.push(Box::new(Echo::new(NEW, &daemon, "bench", POOL, false)));
    if let Some((name, bed)) = &other {
        let daemon = Rc::new(Daemon::start(bed, &[Provider::new("bench", POOL)], POOL + 20)?);
        field.contenders.push(Box::new(Echo::new(&format!("{name}, warm"), &daemon, "bench", POOL, true)));
    }
    field.add("bwrap", Ok(Bwrap::new(bed)));
    field.add_exec(bed, &docker);
    let series = interleave(&mut field.contenders, options.n)?;
    let of = |name: &str| median(&series, name).unwrap_or(f64::NAN);
    let claim = of(KEPT);
    let p99 = series.iter().find(|one| one.name == KEPT).map_or(f64::NAN, |one| one.quantile(0.99));
    outcome.goal("thawd's median", claim, "us", Goal::AtMost(2000.0));
    outcome.goal("thawd / posix_spawn /bin/echo", claim / of(SPAWN), "×", Goal::AtMost(3.0));
    outcome.goal("thawd's p99 / median", p99 / claim, "×", Goal::AtMost(5.0));
    outcome.goal("runc exec / thawd", of("runc exec") / claim, "×", Goal::AtLeast(10.0));
    outcome.goal("podman exec / thawd", of("podman exec") / claim, "×", Goal::AtLeast(40.0));
    outcome.fact("crun exec / thawd", of("crun exec") / claim, "×");
    let mut daemon_side = Series::new("inside");
    daemon_side.micros = inside.borrow().clone();
    outcome.fact("of it, parsed request to started command, by the daemon's own clock", daemon_side.median(), "us");
    outcome.compare("", series, KEPT);
    outcome.notes.extend(field.absent);
    Ok(())
}

/// How a claim grows with the number of frozen containers.
fn sizes(bed: &Rc<Bed>, options: &Options, outcome: &mut Outcome) -> Result<()> {
    let mut all = Vec::new();
    let mut first = None;
    for &size in &options.sizes {
        bed::check_interrupted()?;
        let daemon = Rc::new(Daemon::start(bed, &[Provider::new("bench", size)], size + 20)?);
        let mut field = Field::default();
        field.add_host(bed);
        field.contenders.truncate(1);
        field.contenders.push(Box::new(Echo::new(KEPT, &daemon, "bench", size, true)));
        let mut series = interleave(&mut field.contenders, options.n)?;
        for one in &mut series {
            one.name = format!("{}, {size} frozen", one.name);
        }
        let claim = series.last().map_or(f64::NAN, Series::median);
        let first = *first.get_or_insert((size, claim));
        if size != first.0 {
            let what = format!("median with {size} frozen / with {} frozen", first.0);
            // The project's line is drawn at 500.
            if size <= 500 {
                outcome.goal(what, claim / first.1, "×", Goal::AtMost(1.5));
            } else {
                outcome.fact(what, claim / first.1, "×");
            }
        }
        all.extend(series);
    }
    let reference = all.get(1).map(|one| one.name.clone()).unwrap_or_default();
    outcome.compare("With more frozen containers", all, &reference);
    outcome.note("Pool sizes follow one another; posix_spawn beside each shows whether the machine changed meanwhile.");
    Ok(())
}
