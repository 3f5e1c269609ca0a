//! `make bench`: thawd against its peers, interleaved, on this machine. See docs/BENCHMARKS.md for the last results.
//!
//! Prints a table for each measure, writes target/bench/MEASURE.json and replaces its section of docs/BENCHMARKS.md. A
//! bad time never makes it fail; a wrong result (a cold claim where a warm one was due, wrong output) does.

mod bed;
mod contender;
mod document;
mod http;
mod machine;
mod measures;
mod peers;
mod private;
mod processes;
mod real;
mod report;
mod stats;
mod thawd_run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;

use crate::bed::Bed;

/// Compares thawd with its peers on this machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub struct Options {
    /// Measures to run, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Samples of each contender
    #[arg(long, short, default_value_t = 50)]
    n: usize,
    /// Pool sizes with which claims are measured
    #[arg(long, value_delimiter = ',', default_value = "10,100,500")]
    sizes: Vec<usize>,
    /// Seconds over which idle CPU is measured
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// MiB that the throughput measure moves in each run
    #[arg(long, default_value_t = 1024)]
    stdout_mib: usize,
    /// The folder with the release binaries [default: target/release]
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// A folder with the binaries of another version, which takes turns with this one in `claim` and `cold`
    #[arg(long)]
    against: Option<PathBuf>,
    /// Containers that run a real CLI at the same time
    #[arg(long, default_value_t = 200)]
    many: usize,
    /// Providers whose CLIs are measured, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    providers: Vec<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the measures; whether all of them came to a result.
fn run(options: Options) -> Result<bool> {
    ensure!(rustix::process::getuid().is_root(), "run this as root: it makes real containers");
    ensure!(options.n > 0, "--n must be at least 1");
    let order: Vec<&str> = measures::ALL.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = options.only.iter().find(|name| !order.contains(&name.as_str())) {
        bail!("no measure is called {unknown}; there are {}", order.join(", "));
    }
    bed::catch_signals()?;
    bed::raise_open_files();
    let binaries = options.binaries.clone().unwrap_or_else(|| bed::repository().join("target/release"));
    let bed = Rc::new(Bed::new(binaries)?);
    let (mut all_well, mut measured) = (true, Vec::new());
    for (name, measure) in &measures::ALL {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        bed::check_interrupted()?;
        let before = report::Circumstances::look();
        eprintln!("bench: {name} …");
        let begun = Instant::now();
        match measure(&bed, &options) {
            Ok(outcome) => {
                report::publish(name, &outcome, &before, begun.elapsed().as_secs_f64())?;
                measured.push(*name);
            }
            Err(error) => {
                eprintln!("bench: {name} gave no result: {error:#}");
                all_well = false;
            }
        }
    }
    report::write_document(&order, &measured)?;
    Ok(all_well)
}
