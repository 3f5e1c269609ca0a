//! A container that does one thing as often as it can, and what its neighbours feel of it.

use std::time::{Duration, Instant};

use thaw_client::types::Event;

use crate::bed::{Bed, kinds};
use crate::podman::Podman;
use crate::support::{command, in_bed, resident_bytes};

/// What a victim measures of itself (`victim.c`).
const FIGURES: [&str; 5] = ["CPU", "memory", "files", "network", "processes"];

/// Kinds that CI tries: the worst ones of the whole table, and one for each thing that is shared.
const CHEAP: [&str; 8] = [
    "spin",
    "fork_bomb",
    "memory_at_the_limit",
    "membarrier_fast",
    "interfaces_asked",
    "proxy_refusals",
    "lines_of_output",
    "image_synced",
];

/// What is felt, once.
#[derive(Debug, Clone)]
struct Felt {
    /// Medians of the victim's rounds.
    figures: [f64; 5],
    /// From a request to `started`, in ascending order.
    claims: Vec<Duration>,
    /// The slowest answer of `/healthz`.
    health: Duration,
}

impl Felt {
    fn median(&self) -> Duration {
        self.claims[self.claims.len() / 2]
    }

    fn slowest(&self) -> Duration {
        *self.claims.last().unwrap()
    }
}

/// Lets a victim measure for so many rounds of half a second, and claims meanwhile.
async fn feel(bed: &Bed, rounds: usize, claims: usize) -> Felt {
    let rounds = rounds.to_string();
    let argv = ["/victim", &rounds];
    let measuring = bed.run(&argv);
    let claiming = async {
        let (mut times, mut health) = (Vec::new(), Duration::ZERO);
        for _ in 0..claims {
            // A warm container is there: what counts is how long a claim takes, not how long it waits for one.
            bed.daemon.settled().await;
            let begun = Instant::now();
            let mut stream = bed.daemon.client.execute_stream(&command(["true"])).await.unwrap();
            while let Some(event) = stream.next().await {
                if matches!(event.unwrap().1, Event::Started(_)) {
                    times.push(begun.elapsed());
                }
            }
            let begun = Instant::now();
            bed.daemon.client.healthz().await.unwrap();
            health = health.max(begun.elapsed());
        }
        times.sort();
        (times, health)
    };
    let (outcome, (claims, health)) = tokio::join!(measuring, claiming);
    Felt { figures: medians(outcome.text()), claims, health }
}

/// Of each figure of the victim's rounds.
fn medians(text: &str) -> [f64; 5] {
    let figures = |line: &str| line.split(' ').skip(1).map(|figure| figure.parse().unwrap()).collect();
    let rounds: Vec<Vec<f64>> = text.lines().map(figures).collect();
    std::array::from_fn(|index| {
        let mut all: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    })
}

fn percent(part: f64, whole: f64) -> f64 {
    100.0 * part / whole.max(f64::MIN_POSITIVE)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// What the daemon used meanwhile.
#[derive(Debug, Clone, Copy)]
struct Spent {
    /// Processor time, percent of one processor.
    cpu: f64,
    /// Memory at the end, MiB.
    mib: u64,
}

/// Processor time of a process so far, seconds (proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// One row of the table.
fn row(name: &str, quiet: &Felt, felt: &Felt, spent: Spent) -> String {
    let figures: Vec<String> =
        felt.figures.iter().zip(quiet.figures).map(|(now, before)| format!("{:.0} %", percent(*now, before))).collect();
    format!(
        "| `{name}` | {} | {} | {} | {} | {:.0} % | {} |",
        figures.join(" | "),
        milliseconds(felt.median()),
        milliseconds(felt.slowest()),
        milliseconds(felt.health),
        spent.cpu,
        spent.mib
    )
}

/// The same, with what the daemon spends.
async fn measured(bed: &Bed, rounds: usize, claims: usize) -> (Felt, Spent) {
    let (begun, before) = (Instant::now(), cpu_seconds(bed.daemon.pid()));
    let felt = feel(bed, rounds, claims).await;
    let cpu = percent(cpu_seconds(bed.daemon.pid()) - before, begun.elapsed().as_secs_f64());
    (felt, Spent { cpu, mib: resident_bytes(bed.daemon.pid()) >> 20 })
}

async fn under(bed: &Bed, argv: &[&str], rounds: usize, claims: usize) -> (Felt, Spent) {
    let attacker = bed.begin(argv, &[("PROBE_MIB", "96"), ("PROBE_SECONDS", "60")]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let measured = measured(bed, rounds, claims).await;
    bed.end(attacker).await;
    measured
}

/// How often a neighbour is measured before something counts as taken.
const ATTEMPTS: u32 = 3;

#[tokio::test]
async fn the_worst_neighbours_leave_others_what_is_theirs() {
    let bed = Bed::start(192).await;
    let mut quiet = feel(&bed, 3, 8).await;
    println!("quiet: {quiet:?}");
    let mut stolen = Vec::new();
    for name in CHEAP {
        // Others may work on this machine too, at one moment and not at the next: a theft is one each time.
        for attempt in 1.. {
            let (felt, spent) = under(&bed, &["/storm", name], 3, 8).await;
            println!("{}", row(name, &quiet, &felt, spent));
            let taken = taken(name, &quiet, &felt, spent);
            if taken.is_empty() {
                break;
            }
            if attempt == ATTEMPTS {
                stolen.extend(taken);
                break;
            }
            quiet = feel(&bed, 3, 8).await;
        }
    }
    assert!(stolen.is_empty(), "{stolen:#?}");
    bed.stop().await;
}

/// What a neighbour has taken, if it is much: the thresholds are for gross thefts.
fn taken(name: &str, quiet: &Felt, felt: &Felt, spent: Spent) -> Vec<String> {
    let mut taken = Vec::new();
    for (figure, (now, before)) in FIGURES.iter().zip(felt.figures.iter().zip(quiet.figures)) {
        // With one processor for all, what is measured last in a round finds the quota used up.
        let least = if in_bed() { 4.0 } else { 20.0 };
        if percent(*now, before) < least {
            taken.push(format!("{name}: {figure} {now} instead of {before}"));
        }
    }
    let patience = if in_bed() { 2000 } else { 500 };
    if felt.median() > quiet.median() * 8 + Duration::from_millis(20) || felt.health > Duration::from_millis(patience) {
        taken.push(format!("{name}: claims {:?}, health {:?}", felt.claims, felt.health));
    }
    if spent.mib >= 64 || spent.cpu > 100.0 {
        taken.push(format!("{name}: the daemon: {spent:?}"));
    }
    taken
}

/// The whole table: `make neighbours`, on a quiet machine.
#[tokio::test]
#[ignore = "takes some minutes, and a quiet machine"]
async fn every_neighbour_and_what_it_takes() {
    let bed = Bed::start(192).await;
    let mut all = Vec::new();
    for program in ["/storm", "/probe"] {
        all.extend(kinds(&bed, program).await.into_iter().map(|name| (program, name)));
    }
    let (quiet, spent) = measured(&bed, 6, 20).await;
    println!(
        "\n| kind | {} | claim, median ms | slowest ms | `/healthz`, slowest ms | daemon, CPU | MiB |",
        FIGURES.join(" | ")
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    println!("{}", row("nobody", &quiet, &quiet, spent));
    for (program, name) in &all {
        let (felt, spent) = under(&bed, &[program, name], 4, 12).await;
        println!("{}", row(name, &quiet, &felt, spent));
    }
    let (again, spent) = measured(&bed, 6, 20).await;
    println!("{}", row("nobody, again", &quiet, &again, spent));
    let storage = tempfile::Builder::new().prefix("podman-").rand_bytes(0).tempdir_in("/var/tmp").unwrap();
    if let Some(podman) = Podman::new(storage.path(), &bed.programs) {
        beside_podman(&podman, &all);
    }
    bed.stop().await;
}

/// The same kinds, in podman's containers.
fn beside_podman(podman: &Podman, all: &[(&str, String)]) {
    println!("\n| kind, under podman | {} |\n|---|---|---|---|---|---|", FIGURES.join(" | "));
    let feel = || podman.run(&["/victim", "4"]).map(|text| medians(&text));
    let Some(quiet) = feel() else { return };
    for (program, name) in all {
        let Some(attacker) = podman.begin(&[program, name]) else { continue };
        let felt = feel();
        podman.end(&attacker);
        let figures = felt.map(|felt| {
            let percents = felt.iter().zip(quiet).map(|(now, before)| format!("{:.0} %", percent(*now, before)));
            percents.collect::<Vec<_>>().join(" | ")
        });
        println!("| `{name}` | {} |", figures.unwrap_or_else(|| "failed | | | |".to_owned()));
    }
}
