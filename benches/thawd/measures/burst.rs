//! A hundred claims at the same moment on a pool of a hundred.

use std::io::Read;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::Options;
use crate::bed::{Bed, Daemon, Provider, check_interrupted};
use crate::contender::TEXT;
use crate::http::{self, Request};
use crate::report::{Goal, Outcome};
use crate::stats::Series;
use crate::thawd_run::request;

/// Claims at once, and warm containers for them.
const CLAIMS: usize = 100;

/// Bursts, at most: each needs the pool to be full again.
const ROUNDS: usize = 10;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome::new(
        "Burst of 100 claims",
        "100 clients, each connected and with its request ready, let go at the same moment on a pool of 100 frozen \
         containers; refilling goes on meanwhile. In turns with it, 100 threads that each start `/bin/echo` on the \
         host. The wall time ends with the last first byte.",
    );
    let daemon = Daemon::start(bed, &[Provider::new("bench", CLAIMS)], 2 * CLAIMS + 20)?;
    let rounds = options.n.min(ROUNDS);
    let (mut wall, mut spawn_wall) = (Series::new("thawd, wall time"), Series::new("posix_spawn, wall time"));
    let (mut single, mut exits) = (Series::new("thawd, each claim"), Series::new("thawd, last exit"));
    let mut warm = 0;
    for _ in 0..rounds {
        check_interrupted()?;
        daemon.wait_full("bench", CLAIMS)?;
        std::thread::sleep(Duration::from_millis(200));
        let finished = claims(&daemon)?;
        warm += finished.iter().filter(|one| one.path == "warm").count();
        wall.push(finished.iter().map(|one| one.first_byte).max().unwrap_or_default());
        exits.push(finished.iter().map(|one| one.exit).max().unwrap_or_default());
        finished.iter().for_each(|one| single.push(one.first_byte));
        daemon.wait_full("bench", CLAIMS)?;
        std::thread::sleep(Duration::from_millis(200));
        spawn_wall.push(spawns()?);
    }
    outcome.goal("served from warm", warm as f64 * 100.0 / (rounds * CLAIMS) as f64, "%", Goal::AtLeast(100.0));
    outcome.goal("wall time, median", wall.median(), "us", Goal::AtMost(500_000.0));
    outcome.fact("thawd / posix_spawn, wall time", wall.median() / spawn_wall.median(), "×");
    let reference = wall.name.clone();
    outcome.compare("", vec![spawn_wall, wall, exits, single], &reference);
    Ok(outcome)
}

/// All at once; times count from the common start.
fn claims(daemon: &Daemon) -> Result<Vec<http::Finished>> {
    let barrier = Arc::new(Barrier::new(CLAIMS + 1));
    let start = Arc::new(std::sync::OnceLock::new());
    let request = Request::new(&request("bench", &["/bin/echo", TEXT]));
    let threads: Vec<_> = (0..CLAIMS)
        .map(|_| {
            let (barrier, start, request) = (Arc::clone(&barrier), Arc::clone(&start), request.clone());
            let socket = daemon.socket.clone();
            std::thread::spawn(move || -> Result<http::Finished> {
                let mut client = http::Client::new(&socket);
                let connected = client.connect();
                barrier.wait();
                connected?;
                let begun = *start.get_or_init(Instant::now);
                let late = begun.elapsed();
                let mut finished = http::run(&mut client, &request, true)?;
                ensure!(finished.stdout.trim() == TEXT, "the command said {:?}", finished.stdout);
                finished.first_byte += late;
                finished.exit += late;
                Ok(finished)
            })
        })
        .collect();
    barrier.wait();
    threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?).collect()
}

fn spawns() -> Result<Duration> {
    let barrier = Arc::new(Barrier::new(CLAIMS + 1));
    let start = Arc::new(std::sync::OnceLock::new());
    let threads: Vec<_> = (0..CLAIMS)
        .map(|_| {
            let (barrier, start) = (Arc::clone(&barrier), Arc::clone(&start));
            std::thread::spawn(move || -> Result<Duration> {
                barrier.wait();
                let begun = *start.get_or_init(Instant::now);
                let mut child =
                    Command::new("/bin/echo").arg(TEXT).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
                let mut byte = [0; 1];
                child.stdout.take().context("no pipe")?.read_exact(&mut byte)?;
                let time = begun.elapsed();
                child.wait()?;
                Ok(time)
            })
        })
        .collect();
    barrier.wait();
    let times: Result<Vec<_>> =
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect();
    Ok(times?.into_iter().max().unwrap_or_default())
}
