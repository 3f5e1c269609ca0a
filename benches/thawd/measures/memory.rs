//! What a container costs while nobody uses it: memory and CPU, against the keepers of the engines' containers.

use std::fs;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Options;
use crate::bed::{Bed, Daemon, Provider, check_interrupted};
use crate::machine::{cgroup_core, meminfo};
use crate::peers::{self, Idle, Podman};
use crate::processes;
use crate::real::{self, PROVIDERS, Upstream, Waiting};
use crate::report::{Goal, Outcome};

/// Times that thawd's memory is taken; odd, for the median.
const ROUNDS: usize = 3;

/// Idle containers of each engine.
const PEER_CONTAINERS: usize = 10;

/// Waiting CLIs of each provider.
const PRESTARTED: usize = 4;

/// What counts as the kernel's own in /proc/meminfo.
const KERNEL: [&str; 5] = ["SUnreclaim", "SReclaimable", "KernelStack", "PageTables", "Percpu"];

/// Quiet time before memory is read: freed pages come back by and by.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Clone)]
struct Snapshot {
    available: f64,
    kernel: Vec<f64>,
}

impl Snapshot {
    fn take() -> Self {
        std::thread::sleep(SETTLE);
        let kernel = KERNEL.iter().map(|field| meminfo(field) as f64).collect();
        Self { available: meminfo("MemAvailable") as f64, kernel }
    }
}

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let count = options.sizes.iter().copied().filter(|size| *size <= 500).max().unwrap_or(100);
    let mut outcome = Outcome::new(
        "Idle containers",
        "Frozen, unused containers of the test image. All-in is the loss of MemAvailable per container between a \
         daemon with an empty pool and one with a full pool, which holds everything: processes, page tables, \
         namespaces, mounts, cgroups, the daemon's own growth; it also holds what other programs did meanwhile. Medians of three. \
         Prestarted are the real CLIs, taken once, with their images' pages in the page cache before. The \
         engines' containers run `sleep`; their loss of MemAvailable is taken the same way.",
    );
    thawd(bed, options, count, &mut outcome)?;
    prestarted(bed, &mut outcome)?;
    engines(bed, &mut outcome)?;
    Ok(outcome)
}

fn thawd(bed: &Rc<Bed>, options: &Options, count: usize, outcome: &mut Outcome) -> Result<()> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        check_interrupted()?;
        let empty = Daemon::start(bed, &[Provider::new("bench", 0)], count + 20)?;
        let before = Snapshot::take();
        let daemon_before = daemon_pss(&empty);
        empty.stop()?;
        let full = Daemon::start(bed, &[Provider::new("bench", count)], count + 20)?;
        let after = Snapshot::take();
        rounds.push(figures(&full, count, &before, &after, daemon_before)?);
        if round + 1 == ROUNDS {
            idle_cpu(&full, options, outcome)?;
        }
        full.stop()?;
    }
    for index in 0..rounds[0].len() {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[index].1).collect();
        values.sort_by(f64::total_cmp);
        let (what, value) = (rounds[0][index].0.as_str(), values[ROUNDS / 2]);
        if index == 0 && value <= 0.0 {
            outcome.fact(what, value, "bytes");
            outcome.note(
                "MemAvailable grew although containers were added: other programs freed memory meanwhile, so \
                 that the all-in figures mean nothing; repeat this at a quiet time",
            );
        } else if index == 0 {
            outcome.goal(what, value, "bytes", Goal::AtMost((1 << 20) as f64));
        } else {
            outcome.fact(what, value, "bytes");
        }
    }
    Ok(())
}

/// Bytes per container, by what they are; the whole comes first.
fn figures(
    full: &Daemon,
    count: usize,
    before: &Snapshot,
    after: &Snapshot,
    daemon_before: f64,
) -> Result<Vec<(String, f64)>> {
    let each = |difference: f64| difference / count as f64;
    let containers = full.client().get("/v1/containers")?;
    let containers = containers["items"].as_array().cloned().unwrap_or_default();
    let frozen = containers.iter().filter(|one| one["frozen"] == true).count();
    ensure!(frozen == count, "{frozen} of {count} containers are frozen");
    let charged: f64 = containers.iter().filter_map(|one| one["memory_bytes"].as_f64()).sum();
    let init: u64 = containers.iter().filter_map(|one| one["pid"].as_u64()).map(|pid| processes::pss(pid as u32)).sum();
    let mut figures = vec![
        (format!("thawd, all-in, each of {count}"), each(before.available - after.available)),
        ("thawd: charged to its cgroup".to_owned(), each(charged)),
        ("thawd: PSS of its thaw-init (part of the charge)".to_owned(), each(init as f64)),
        ("thawd: growth of the daemon and its spawner".to_owned(), each(daemon_pss(full) - daemon_before)),
    ];
    for (index, field) in KERNEL.iter().enumerate() {
        let grown = each(after.kernel[index] - before.kernel[index]);
        figures.push((format!("kernel: {field} (partly in the charge)"), grown));
    }
    figures.push(("thawd: daemon and spawner with an empty pool, together".to_owned(), daemon_before));
    Ok(figures)
}

/// What a waiting CLI costs, for each of them.
fn prestarted(bed: &Rc<Bed>, outcome: &mut Outcome) -> Result<()> {
    let upstream = Upstream::start(bed)?;
    for provider in PROVIDERS {
        check_interrupted()?;
        let waiting = |prestarted| [Waiting { provider: provider.to_owned(), created: 0, prestarted }];
        // Fills the cache of pages that all of them share.
        real::daemon(bed, upstream.port, &waiting(1), 20, "")?.stop()?;
        let empty = real::daemon(bed, upstream.port, &waiting(0), 20, "")?;
        let before = Snapshot::take();
        empty.stop()?;
        let full = real::daemon(bed, upstream.port, &waiting(PRESTARTED), 20, "")?;
        let after = Snapshot::take();
        let each = |bytes: f64| bytes / PRESTARTED as f64;
        outcome.fact(
            format!("thawd, {provider} prestarted, all-in, each of {PRESTARTED}"),
            each(before.available - after.available),
            "bytes",
        );
        let pools = full.client().get("/v1/pools")?;
        let mut items = pools["items"].as_array().into_iter().flatten();
        let pool = items.find(|pool| pool["provider"] == provider && pool["stage"] == "prestarted");
        let memory = &pool.context("no pool")?["memory"];
        for (what, field) in [("charged", "bytes"), ("anonymous", "anonymous_bytes"), ("the kernel's", "kernel_bytes")]
        {
            outcome.fact(
                format!("thawd, {provider} prestarted: {what}"),
                each(memory[field].as_f64().unwrap_or(f64::NAN)),
                "bytes",
            );
        }
        // Those of its processes, of which the CLI is one.
        let name = processes::find_in_cgroup(&cgroup_core().join(&full.cgroup));
        let pss: u64 = name.into_iter().map(processes::pss).sum();
        outcome.fact(format!("thawd, {provider} prestarted: PSS of its processes"), each(pss as f64), "bytes");
        full.stop()?;
    }
    Ok(())
}

fn idle_cpu(full: &Daemon, options: &Options, outcome: &mut Outcome) -> Result<()> {
    let seconds = options.idle_seconds;
    let daemon_cpu = || tree(full).into_iter().map(processes::cpu_us).sum::<f64>();
    let (daemon_then, containers_then) = (daemon_cpu(), containers_cpu(full)?);
    for _ in 0..seconds {
        check_interrupted()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let containers = containers_cpu(full)? - containers_then;
    outcome.goal(format!("CPU of all containers over {seconds} s"), containers, "us", Goal::AtMost(0.0));
    outcome.fact(format!("CPU of the daemon over {seconds} s"), daemon_cpu() - daemon_then, "us");
    Ok(())
}

/// The daemon and what it started besides containers.
fn tree(daemon: &Daemon) -> Vec<u32> {
    let spawners = processes::children(daemon.pid()).into_iter().filter(|pid| processes::name(*pid) != "thaw-init");
    std::iter::once(daemon.pid()).chain(spawners).collect()
}

fn daemon_pss(daemon: &Daemon) -> f64 {
    tree(daemon).into_iter().map(|pid| processes::pss(pid) as f64).sum()
}

/// CPU time of all containers together since the daemon started, microseconds.
fn containers_cpu(daemon: &Daemon) -> Result<f64> {
    let path = cgroup_core().join(&daemon.cgroup).join("cpu.stat");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
    usage.context("no usage_usec in cpu.stat")
}

fn engines(bed: &Rc<Bed>, outcome: &mut Outcome) -> Result<()> {
    let podman = Podman::run(bed);
    idle(bed, "podman", "conmon", podman.map(|podman| Box::new(podman) as Box<dyn Idle>), outcome)?;
    let docker = peers::docker(bed).map(|engine| Box::new(engine) as Box<dyn Idle>);
    idle(bed, "docker", "containerd-shim", docker, outcome)
}

fn idle(bed: &Bed, name: &str, keeper: &str, engine: Result<Box<dyn Idle>>, outcome: &mut Outcome) -> Result<()> {
    let engine = match engine {
        Ok(engine) => engine,
        Err(error) => {
            outcome.note(format!("{name} is not in the comparison: {error:#}"));
            return Ok(());
        }
    };
    let names: Vec<_> = (0..PEER_CONTAINERS).map(|index| format!("{}-idle-{index}", bed.cgroup)).collect();
    let before = Snapshot::take();
    let started: Result<()> = names.iter().try_for_each(|name| engine.start(name));
    let after = Snapshot::take();
    let keepers = processes::find(keeper, &bed.path().display().to_string());
    let pss: u64 = keepers.iter().map(|pid| processes::pss(*pid)).sum();
    names.iter().for_each(|name| engine.stop(name));
    if let Err(error) = started {
        outcome.note(format!("{name} is not in the comparison: {error:#}"));
        return Ok(());
    }
    let all_in = (before.available - after.available) / PEER_CONTAINERS as f64;
    outcome.fact(format!("{name}, all-in, each of {PEER_CONTAINERS}"), all_in, "bytes");
    outcome.fact(format!("{name}: PSS of {keeper}, each"), pss as f64 / keepers.len().max(1) as f64, "bytes");
    Ok(())
}
