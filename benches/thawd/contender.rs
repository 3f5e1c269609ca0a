//! Round-robin over contenders, so that whatever else the machine does hits them all alike.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::stats::Series;

/// What every command of a latency measure prints.
pub const TEXT: &str = "thawd-bench";

/// Pause after each sample: what the one before left to be cleared away must not be paid by the next.
const PAUSE: Duration = Duration::from_millis(20);

/// Rounds that do not count: caches fill and lazy set-up happens.
const WARM_UP: usize = 2;

/// One way of running a command.
pub trait Contender {
    /// Name in tables.
    fn name(&self) -> String;
    /// Runs it once: from the decision to do so to the first byte of its output. Fails if the output is wrong.
    fn once(&mut self) -> Result<Duration>;
    /// Waits until it is ready for the next run; not timed.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// `rounds` samples of each, taken in turns; the order rotates, so that nobody always follows the same one.
///
/// # Errors
/// A contender that did not do what it should.
pub fn interleave(contenders: &mut [Box<dyn Contender>], rounds: usize) -> Result<Vec<Series>> {
    let mut series: Vec<Series> = contenders.iter().map(|contender| Series::new(contender.name())).collect();
    for round in 0..rounds + WARM_UP {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let contender = &mut contenders[index];
            let run = contender.settle().and_then(|()| {
                std::thread::sleep(PAUSE);
                contender.once()
            });
            let time = run.with_context(|| format!("{}, round {round}", contender.name()))?;
            if round >= WARM_UP {
                series[index].push(time);
            }
        }
    }
    Ok(series)
}

/// Starts a program and reads its output: time to the first byte. Fails unless it prints [`TEXT`] and succeeds.
///
/// `Command` uses posix_spawn(3) here, since it changes neither directory nor identity.
pub fn time_to_first_byte(command: &mut Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let mut stdout = child.stdout.take().context("no pipe")?;
    let mut buffer = [0; 4096];
    let mut length = stdout.read(&mut buffer)?;
    let time = begun.elapsed();
    loop {
        match stdout.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let (status, complaint) = end(child)?;
    ensure!(status.success() && text.trim() == TEXT, "{command:?}: {status}, said {text:?} {complaint}");
    Ok(time)
}

fn end(mut child: Child) -> Result<(std::process::ExitStatus, String)> {
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    Ok((child.wait()?, complaint))
}

/// Runs a set-up command to its end.
///
/// # Errors
/// It cannot be run, or fails; with what it said.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
