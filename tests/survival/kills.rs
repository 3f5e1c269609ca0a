//! The daemon is killed again and again, at random moments, under load. Nothing may be lost, repeated or left behind.
//!
//! `THAWD_KILLS` says how often (300; 15 in the test bed, which is slower), `THAWD_KILL_SEED` begins the same sequence of requests and pauses once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::left::{no_stranger, nothing_left};
use super::load::{KINDS, check, request, talk, wait};
use super::strict::{NotAccepted, Strict};
use crate::support::{Daemon, bytes, in_bed};

/// Requests at the same time.
const WORKERS: u64 = 5;

/// Kills between two looks at everything while nothing runs.
const ROUND: u64 = 25;

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed, the same requests.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Debug, Default)]
struct Counts {
    executions: AtomicU64,
    bytes: AtomicU64,
    events: AtomicU64,
    reconnections: AtomicU64,
    prestarted: AtomicU64,
    prestarted_reconnections: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
}

async fn work(strict: Strict, mut random: Random, counts: Arc<Counts>, pause: Arc<AtomicBool>) {
    while !pause.load(Ordering::Acquire) {
        let kind = KINDS[random.below(KINDS.len() as u64) as usize];
        let token = format!("token-{:x}\n", random.next());
        let stream = random.below(2) == 0;
        match strict.run(&request(kind, &token), stream).await {
            Ok(seen) => {
                check(kind, &token, &seen);
                let add = |counter: &AtomicU64, count: u64| counter.fetch_add(count, Ordering::Relaxed);
                add(&counts.executions, 1);
                add(&counts.events, seen.events.len() as u64);
                add(&counts.bytes, (bytes(&seen.events, false).len() + bytes(&seen.events, true).len()) as u64);
                add(&counts.reconnections, seen.reconnections);
                if seen.is_prestarted() {
                    add(&counts.prestarted, 1);
                    add(&counts.prestarted_reconnections, seen.reconnections);
                }
            }
            Err(NotAccepted::Broken) => {
                counts.unanswered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(NotAccepted::Refused(status, why)) => {
                // Too much at once, or a daemon that is about to be killed; never because of the request.
                assert!(matches!(status, 409 | 429 | 503), "{status} {why}");
                counts.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_nothing_is_lost_or_left() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = number("THAWD_KILLS").unwrap_or(if in_bed() { 15 } else { 300 });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("THAWD_KILL_SEED").unwrap_or_else(|| now.subsec_nanos().into());
    println!("seed: THAWD_KILL_SEED={seed}");
    let mut random = Random(seed);
    let mut daemon = Daemon::start(|setup| {
        setup
            .pool(3)
            .add_provider(&talk())
            .add_provider(&wait())
            .set("provider.wait.prestarted", 2)
            .set("container.max", 24)
            .set("execution.reconnect_grace_ms", 10_000)
            .set("execution.disconnect_grace_ms", 10_000)
            .set("execution.retention_seconds", 3600)
            .set("log.filter", "thawd=info")
    })
    .await;
    let counts = Arc::new(Counts::default());
    let mut baseline: Option<(usize, usize)> = None;
    let mut done = 0;
    while done < kills {
        let pause = Arc::new(AtomicBool::new(false));
        let strict = Strict::new(&daemon.socket());
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| tokio::spawn(work(strict.clone(), Random(random.next()), Arc::clone(&counts), Arc::clone(&pause))))
            .collect();
        for _ in 0..ROUND.min(kills - done) {
            // From while it is still starting pools, to well within the load.
            tokio::time::sleep(Duration::from_micros(random.below(120_000))).await;
            if random.below(10) == 0
                && let Some(spawner) = daemon.spawner()
            {
                kill_process(Pid::from_raw(spawner.pid).unwrap(), Signal::KILL).unwrap();
            }
            daemon.kill();
            if random.below(8) == 0 {
                // What a container does meanwhile, it does alone.
                tokio::time::sleep(Duration::from_millis(random.below(100))).await;
            }
            daemon.launch().await;
            done += 1;
            no_stranger(&daemon).await;
            if let Some(failed) = workers.iter().find(|worker| worker.is_finished()) {
                assert!(!failed.is_finished(), "a worker failed after {done} kills");
            }
        }
        pause.store(true, Ordering::Release);
        for worker in workers {
            worker.await.unwrap();
        }
        let now = nothing_left(&daemon).await;
        let base = *baseline.get_or_insert(now);
        let slack = 6;
        assert!(now.0 <= base.0 + slack && now.1 <= base.1 + slack, "descriptors: {base:?}, now {now:?}");
        println!("{done} kills: {counts:?}, descriptors of daemon and keeper {now:?}");
    }
    let log = daemon.log();
    let sum = |name: &str| -> u64 {
        let numbers = log.lines().filter_map(|line| line.split(name).nth(1)?.split(' ').next()?.parse::<u64>().ok());
        numbers.sum()
    };
    println!(
        "kills {done}, executions gone on with {}, ended ones found {}, lost before they were accepted {}, warm containers adopted {}",
        sum("running="),
        sum("ended="),
        sum("lost="),
        sum("adopted="),
    );
    assert!(sum("running=") > 0 && sum("adopted=") > 0 && counts.reconnections.load(Ordering::Relaxed) > 0);
    let prestarted = [&counts.prestarted, &counts.prestarted_reconnections].map(|count| count.load(Ordering::Relaxed));
    assert!(prestarted.iter().all(|count| *count > 0), "prestarted CLIs were among them: {counts:?}");
    daemon.stop().await;
}
