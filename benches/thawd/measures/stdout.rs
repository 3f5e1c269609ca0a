//! How fast output flows: a bare pipe, the event stream, and the event stream beside a reader that has stalled.

use std::io::Read;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Options;
use crate::bed::{Bed, Daemon, Provider, check_interrupted};
use crate::http::{Event, Request};
use crate::processes;
use crate::report::{Goal, Outcome};
use crate::stats::Series;

/// Size of the file that is written out again and again, MiB; it lies in the container's own tmpfs.
const FILE_MIB: usize = 64;

/// Runs, at most: each moves a gibibyte.
const ROUNDS: usize = 5;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let total_mib = options.stdout_mib.next_multiple_of(FILE_MIB);
    let total = total_mib << 20;
    let mut outcome = Outcome::new(
        &format!("Standard output, {total_mib} MiB"),
        "busybox `dd` writes a file of text in tmpfs to its standard output, 64 KiB at a time, with no CPU limit below \
         the machine's. Bare pipe: the same program on the host, read by a thread that counts. Event stream: the same \
         in a container, read over HTTP as server-sent events by a client that counts the text in them. Stalled: a \
         second client has asked for the same events and reads none. The clock runs from the first byte to the last.",
    );
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let provider = Provider { cpus, memory_mib: 512, ..Provider::new("bench", 2) };
    let daemon = Daemon::start(bed, &[provider], 20)?;
    let names = ["bare pipe", "thawd, events", "thawd, events beside a stalled reader"];
    let mut series = names.map(Series::new).to_vec();
    let (mut lost, mut peak) = ([0, 0], [0, 0]);
    // Bytes per second that reached the reader.
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    let rounds = options.n.min(ROUNDS);
    for _ in 0..rounds {
        check_interrupted()?;
        let time = bare(bed, total)?;
        series[0].push(time);
        speeds[0].push(total as f64 / time.as_secs_f64());
        for (index, stalled) in [false, true].into_iter().enumerate() {
            check_interrupted()?;
            daemon.wait_full("bench", 2)?;
            processes::reset_peak(daemon.pid());
            let (time, missing) = events(&daemon, total, stalled)?;
            series[index + 1].push(time);
            speeds[index + 1].push((total - missing) as f64 / time.as_secs_f64());
            lost[index] += missing;
            peak[index] = peak[index].max(processes::peak(daemon.pid()));
        }
    }
    let speed = |index: usize| {
        let mut sorted = speeds[index].clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2] / f64::from(1 << 20)
    };
    outcome.fact("bare pipe", speed(0), "MiB/s");
    outcome.fact("thawd, events, delivered", speed(1), "MiB/s");
    outcome.goal("thawd, events, delivered / bare pipe", speed(1) / speed(0), "×", Goal::AtLeast(0.5));
    outcome.goal("thawd, events beside a stalled reader / without one", speed(2) / speed(1), "×", Goal::AtLeast(0.9));
    for (index, what) in ["", " beside a stalled reader"].iter().enumerate() {
        let share = lost[index] as f64 * 100.0 / (total * rounds) as f64;
        outcome.fact(format!("not delivered to the reader, told by `gap` events{what}"), share, "%");
        outcome.fact(format!("largest resident size of the daemon{what}"), peak[index] as f64, "bytes");
    }
    outcome.compare("Time for all of it", series, names[0]);
    outcome.note("This build streams output as events only; its speed includes JSON at both ends.");
    Ok(outcome)
}

/// Makes the file at `path`, says `ready` on stderr, writes it to stdout until `total` bytes are written.
fn script(path: &str, total: usize) -> String {
    // Lines of 64 bytes; the newline is the one character that JSON escapes.
    let line = "x".repeat(63);
    let (size, times) = (FILE_MIB << 20, (total >> 20) / FILE_MIB);
    format!(
        "yes {line} | head -c {size} > {path} || exit 1; i=0; \
         while [ $i -lt {times} ]; do dd if={path} bs=65536 2>/dev/null || exit 1; i=$((i+1)); done; rm {path}"
    )
}

fn bare(bed: &Bed, total: usize) -> Result<Duration> {
    let file = tempfile::Builder::new().prefix("thawd-bench.").tempfile_in("/dev/shm")?;
    let script = script(&file.path().display().to_string(), total);
    let mut child = Command::new(bed.rootfs.join("bin/sh"))
        .args(["-c", &script])
        .env("PATH", bed.rootfs.join("bin"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the writer")?;
    let mut stdout = child.stdout.take().context("no pipe")?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut begun, mut count) = (None, 0);
    loop {
        let length = stdout.read(&mut buffer)?;
        begun.get_or_insert_with(Instant::now);
        if length == 0 {
            break;
        }
        count += length;
    }
    let time = begun.map_or(Duration::ZERO, |begun: Instant| begun.elapsed());
    let status = child.wait()?;
    ensure!(status.success() && count == total, "the writer: {status}, {count} bytes of {total}");
    // The script has removed the file.
    let _ = file.close();
    Ok(time)
}

/// Time, and how many bytes were dropped because the reader was slower than the command.
fn events(daemon: &Daemon, total: usize, stalled: bool) -> Result<(Duration, usize)> {
    let body = json!({
        "provider": "bench", "user": "bench", "timeout_ms": 300_000,
        "command": ["/bin/sh", "-c", script("/home/runtime/file", total)],
    });
    let mut client = daemon.client();
    let mut events = client.execute(&Request::new(&body))?;
    let mut event = Event::default();
    let (mut begun, mut last) = (None, None);
    let (mut count, mut gap, mut code) = (0, false, None);
    let mut idle_reader = None;
    while let Some(at) = events.next(&mut event)? {
        match event.name.as_str() {
            "stdout" => {
                begun.get_or_insert(at);
                last = Some(at);
                count += text_length(&event.data)?;
            }
            "started" if stalled => {
                let id = event.json()?["execution"].as_str().context("no id")?.to_owned();
                // Its answer begins, fills the socket's buffer, and is never read.
                idle_reader = Some(daemon.client().follow(&id)?);
            }
            "gap" => gap = true,
            "exit" => code = Some(event.json()?),
            _ => {}
        }
    }
    drop(idle_reader);
    let code = code.context("the stream ended without an exit")?;
    ensure!(code["code"] == 0, "the writer did not succeed: {code}");
    ensure!(count == total || gap, "{count} bytes of {total} came, and no gap was told");
    ensure!(count <= total, "{count} bytes came of {total}");
    let time = begun.zip(last).map_or(Duration::ZERO, |(begun, last)| last.duration_since(begun));
    Ok((time, total - count))
}

/// Bytes of output in the data of a `stdout` event, without decoding it: only newlines are escaped, as two bytes.
fn text_length(data: &[u8]) -> Result<usize> {
    let text = data.strip_prefix(b"{\"data\":\"").and_then(|rest| rest.strip_suffix(b"\"}"));
    let text = text.with_context(|| format!("unexpected data: {:.80}", String::from_utf8_lossy(data)))?;
    Ok(text.len() - text.iter().filter(|byte| **byte == b'\\').count())
}
