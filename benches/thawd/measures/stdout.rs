//! How fast output flows: a bare pipe, the raw stream, the same beside a reader that has stalled, and the event stream.

use std::io::Read;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::Options;
use crate::bed::{Bed, Daemon, Provider, check_interrupted};
use crate::http::{Event, RawRequest, Request};
use crate::processes;
use crate::report::{Goal, Outcome};
use crate::stats::Series;

/// Size of the file that is written out again and again, MiB; it lies in the container's own tmpfs.
const FILE_MIB: usize = 64;

/// Runs, at most: each moves a gibibyte.
const ROUNDS: usize = 15;

pub fn measure(bed: &Rc<Bed>, options: &Options) -> Result<Outcome> {
    let total_mib = options.stdout_mib.next_multiple_of(FILE_MIB);
    let total = total_mib << 20;
    let mut outcome = Outcome::new(
        &format!("Standard output, {total_mib} MiB"),
        "busybox `dd` writes a file of text in tmpfs to its standard output, 64 KiB at a time, with no CPU limit below \
         the machine's. Bare pipe: the same program on the host, read by a thread that counts. Raw: the same in a \
         container, its bytes read over HTTP (`Accept: application/octet-stream`). Events: the same as server-sent \
         events by a client that counts the text in them. Stalled: a second client has asked for the events and reads \
         none. Every other round goes backwards. The clock runs from the first byte to the last, all of which must \
         arrive.",
    );
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let provider = Provider { cpus, memory_mib: 512, ..Provider::new("bench", 2) };
    let daemon = Daemon::start(bed, &[provider], 20)?;
    let names = ["bare pipe", "thawd, raw", "thawd, raw beside a stalled reader", "thawd, events"];
    let mut series = names.map(Series::new).to_vec();
    // Bytes per second that reached the reader.
    let mut speeds = [const { Vec::new() }; 4];
    let mut peak = [0; 4];
    for round in 0..options.n.min(ROUNDS) {
        for turn in 0..names.len() {
            check_interrupted()?;
            // Every other round backwards: nobody always comes after the same one.
            let index = if round % 2 == 0 { turn } else { names.len() - 1 - turn };
            daemon.wait_full("bench", 2)?;
            processes::reset_peak(daemon.pid());
            let time = match index {
                0 => bare(bed, total)?,
                1 => raw(&daemon, total, false)?,
                2 => raw(&daemon, total, true)?,
                _ => events(&daemon, total)?,
            };
            series[index].push(time);
            speeds[index].push(total as f64 / time.as_secs_f64());
            peak[index] = peak[index].max(processes::peak(daemon.pid()));
        }
    }
    let speed = |index: usize| {
        let mut sorted = speeds[index].clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2] / f64::from(1 << 20)
    };
    for (index, name) in names.iter().enumerate() {
        outcome.fact(*name, speed(index), "MiB/s");
    }
    outcome.goal("thawd, raw / bare pipe", speed(1) / speed(0), "×", Goal::AtLeast(0.5));
    outcome.goal("thawd, raw beside a stalled reader / without one", speed(2) / speed(1), "×", Goal::AtLeast(0.9));
    for index in 1..names.len() {
        outcome.fact(format!("largest resident size of the daemon, {}", names[index]), peak[index] as f64, "bytes");
    }
    outcome.compare("Time for all of it", series, names[0]);
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

fn request(total: usize) -> serde_json::Value {
    json!({
        "provider": "bench", "user": "bench", "timeout_ms": 300_000,
        "command": ["/bin/sh", "-c", script("/home/runtime/file", total)],
    })
}

fn raw(daemon: &Daemon, total: usize, stalled: bool) -> Result<Duration> {
    let mut idle_reader = None;
    let bytes = daemon.client().bytes(&RawRequest::new(&request(total)), || {
        if stalled {
            let executions = daemon.client().get("/v1/executions")?;
            let running = |execution: &&serde_json::Value| execution["state"] == "running";
            let mut items = executions["items"].as_array().into_iter().flatten();
            let id = items.find(running).and_then(|running| running["id"].as_str()).context("nothing runs")?;
            // Its answer begins, fills the socket's buffer, and is never read.
            idle_reader = Some(daemon.client().follow(id)?);
        }
        Ok(())
    })?;
    drop(idle_reader);
    ensure!(bytes.count == total, "{} bytes of {total} came", bytes.count);
    Ok(bytes.time)
}

fn events(daemon: &Daemon, total: usize) -> Result<Duration> {
    let mut client = daemon.client();
    let mut events = client.execute(&Request::new(&request(total)))?;
    let mut event = Event::default();
    let (mut begun, mut last) = (None, None);
    let (mut count, mut exit) = (0, None);
    while let Some(at) = events.next(&mut event)? {
        match event.name.as_str() {
            "stdout" => {
                begun.get_or_insert(at);
                last = Some(at);
                count += text_length(&event.data)?;
            }
            "exit" => exit = Some(event.json()?),
            _ => {}
        }
    }
    let exit = exit.context("the stream ended without an exit")?;
    ensure!(exit["code"] == 0, "the writer did not succeed: {exit}");
    ensure!(count == total, "{count} bytes of {total} came");
    Ok(begun.zip(last).map_or(Duration::ZERO, |(begun, last)| last.duration_since(begun)))
}

/// Bytes of output in the data of a `stdout` event, without decoding it: only newlines are escaped, as two bytes.
fn text_length(data: &[u8]) -> Result<usize> {
    let text = data.strip_prefix(b"{\"data\":\"").and_then(|rest| rest.strip_suffix(b"\"}"));
    let text = text.with_context(|| format!("unexpected data: {:.80}", String::from_utf8_lossy(data)))?;
    Ok(text.len() - text.iter().filter(|byte| **byte == b'\\').count())
}
