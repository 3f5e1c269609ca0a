//! Claims that go on for a while, and refilling.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::Options;
use crate::bed::{self, Bed, Daemon, Provider, check_interrupted};
use crate::contender::TEXT;
use crate::http::{self, Client, Finished, Request};
use crate::report::{Goal, Outcome};
use crate::stats::Series;
use crate::thawd_run::request;

/// Clients that each send their next request when the last one has ended.
const CLIENTS: usize = 4;
/// Their pool.
const POOL: usize = 50;
/// How long they go on.
const PERIOD: Duration = Duration::from_secs(10);
/// The pool whose refilling is timed.
const REFILLED: usize = 100;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Sustained claims and refilling",
        "Refill rate: a pool of 100 filled from nothing, and filled again after 100 claims at once (whose containers \
         are destroyed meanwhile), by the pool's own figures, read every 5 ms. Sustained: 4 clients that each send \
         their next request when the last has ended, for 10 s on a pool of 50.",
    );
    refill(bed, options, &mut outcome)?;
    sustained(bed, &mut outcome)?;
    Ok(outcome)
}

/// Containers per second until `provider` has all of its `target`, counted from its first look.
fn rate(daemon: &Daemon, provider: &str, target: usize) -> Result<f64> {
    let mut client = daemon.client();
    let (mut begun, mut first) = (Instant::now(), None);
    let deadline = begun + Duration::from_secs(120);
    loop {
        check_interrupted()?;
        let warm = bed::pool(&mut client, provider)?["warm"].as_u64().unwrap_or_default() as usize;
        let first = *first.get_or_insert_with(|| {
            begun = Instant::now();
            warm
        });
        if warm == target {
            return Ok((target - first) as f64 / begun.elapsed().as_secs_f64());
        }
        ensure!(Instant::now() < deadline, "the pool did not fill; log:\n{}", daemon.log_end());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn refill(bed: &Rc<Bed>, options: &Options, outcome: &mut Outcome) -> Result<()> {
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..options.n.min(3) {
        let daemon = Daemon::start_empty(bed, &[Provider::new("bench", REFILLED)], 2 * REFILLED + 20)?;
        daemon.wait_ready("bench")?;
        fresh.push(rate(&daemon, "bench", REFILLED)?);
        daemon.wait_full("bench", REFILLED)?;
        drain(&daemon, "bench", REFILLED)?;
        again.push(rate(&daemon, "bench", REFILLED)?);
    }
    fresh.sort_by(f64::total_cmp);
    again.sort_by(f64::total_cmp);
    outcome.goal("refill from nothing, median", fresh[fresh.len() / 2], "containers/s", Goal::AtLeast(30.0));
    outcome.goal("refill after 100 claims, median", again[again.len() / 2], "containers/s", Goal::AtLeast(30.0));
    Ok(())
}

/// Claims everything that is warm at once, and returns when all of it has ended.
pub fn drain(daemon: &Daemon, provider: &str, count: usize) -> Result<()> {
    let request = Request::new(&request(provider, &["/bin/echo", TEXT]));
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let (socket, request) = (daemon.socket.clone(), request.clone());
            std::thread::spawn(move || http::run(&mut Client::new(&socket), &request, false).map(drop))
        })
        .collect();
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
}

fn sustained(bed: &Rc<Bed>, outcome: &mut Outcome) -> Result<()> {
    let daemon = Daemon::start(bed, &[Provider::new("bench", POOL)], POOL + 50)?;
    let request = Request::new(&request("bench", &["/bin/echo", TEXT]));
    let begun = Instant::now();
    let threads: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (socket, request) = (daemon.socket.clone(), request.clone());
            std::thread::spawn(move || -> Result<Vec<Finished>> {
                let (mut client, mut all) = (Client::new(&socket), Vec::new());
                while begun.elapsed() < PERIOD {
                    check_interrupted()?;
                    let finished = http::run(&mut client, &request, true)?;
                    ensure!(finished.stdout.trim() == TEXT, "the command said {:?}", finished.stdout);
                    all.push(finished);
                }
                Ok(all)
            })
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut by_path = ["warm", "cold"].map(Series::new);
    for finished in &all {
        by_path[usize::from(finished.path == "cold")].push(finished.first_byte);
    }
    outcome.fact("executions per second, 4 clients", all.len() as f64 / seconds, "/s");
    outcome.fact("of them warm", by_path[0].micros.len() as f64 * 100.0 / all.len() as f64, "%");
    let series = by_path.into_iter().filter(|one| !one.micros.is_empty()).collect();
    outcome.compare("Sustained: claim to first byte by path", series, "warm");
    Ok(())
}
