//! What refilling costs the claims beside it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::sustained::drain;
use crate::Options;
use crate::bed::{self, Bed, Daemon, Provider, check_interrupted};
use crate::contender::TEXT;
use crate::http::{self, Request};
use crate::report::{Goal, Outcome};
use crate::stats::Series;
use crate::thawd_run::request;

/// The pool that is emptied to make a storm of creations.
const STORM: usize = 100;

/// The pool that the claims take from.
const POOL: usize = 50;

/// Pause between claims.
const PACE: Duration = Duration::from_millis(30);

/// Fewest samples of each kind: with 400, the 99th percentile has four samples above it.
const SAMPLES: usize = 400;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Claims beside a refill storm",
        "Claims on a pool of their own, one every 30 ms, in turns while nothing else happens (quiet) and while another \
         pool, of 100, refills after all its containers were claimed at once (and are destroyed meanwhile). Quiet and \
         storm follow each other in batches of the same size, at least 400 claims of each in all; quiet begins when \
         all that the storm has used is cleared away.",
    );
    let providers = [Provider::new("bench", POOL), Provider::new("storm", STORM)];
    let daemon = Daemon::start(bed, &providers, POOL + 2 * STORM + 50)?;
    let names = ["quiet", "during a refill storm"];
    let (mut quiet, mut during) = (Claims::new(names[0]), Claims::new(names[1]));
    let wanted = options.n.max(SAMPLES);
    // As many quiet ones as the last storm gave, so that both are spread alike over the time of the measure.
    let mut batch = 10;
    while during.first_byte.micros.len() < wanted || quiet.first_byte.micros.len() < wanted {
        daemon.wait_full("bench", POOL)?;
        daemon.wait_full("storm", STORM)?;
        // The storm is over when what was claimed in it is gone, too.
        daemon.wait_settled()?;
        quiet.take(&daemon, batch, || Ok(true))?;
        daemon.wait_full("bench", POOL)?;
        drain(&daemon, "storm", STORM)?;
        let mut client = daemon.client();
        // The figures are read between claims, not during one.
        let filling = || Ok(bed::pool(&mut client, "storm")?["warm"].as_u64().unwrap_or_default() < STORM as u64);
        let so_far = during.first_byte.micros.len();
        during.take(&daemon, POOL, filling)?;
        batch = (during.first_byte.micros.len() - so_far).max(1);
    }
    let ratio = |q| during.first_byte.quantile(q) / quiet.first_byte.quantile(q);
    outcome.goal("claims' p99 during a storm / quiet", ratio(0.99), "×", Goal::AtMost(2.0));
    outcome.fact("their medians", ratio(0.5), "×");
    outcome.fact("cold claims among them", f64::from(quiet.cold + during.cold), "");
    outcome.compare("Request to first byte", vec![quiet.first_byte, during.first_byte], names[0]);
    outcome.compare("Of it, parsed request to started command", vec![quiet.started, during.started], names[0]);
    Ok(outcome)
}

/// Claims at an even pace.
struct Claims {
    first_byte: Series,
    /// By the daemon's own clock.
    started: Series,
    cold: u32,
}

impl Claims {
    fn new(name: &str) -> Self {
        Self { first_byte: Series::new(name), started: Series::new(name), cold: 0 }
    }

    /// Claims while `go_on` says so, at most `most`.
    fn take(&mut self, daemon: &Daemon, most: usize, mut go_on: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut client = daemon.client();
        let request = Request::new(&request("bench", &["/bin/echo", TEXT]));
        for _ in 0..most {
            check_interrupted()?;
            if !go_on()? {
                break;
            }
            let finished = http::run(&mut client, &request, true)?;
            ensure!(finished.stdout.trim() == TEXT, "the command said {:?}", finished.stdout);
            self.cold += u32::from(finished.path == "cold");
            self.first_byte.push(finished.first_byte);
            self.started.push(Duration::from_micros(finished.claim_us));
            std::thread::sleep(PACE);
        }
        Ok(())
    }
}
