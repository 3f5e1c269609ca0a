//! Queue of log lines. Code that logs never waits for the reader of the log.
//!
//! One thread writes the lines. While the reader (the journal, or the other end of standard error) takes nothing, lines
//! wait in memory up to a limit; further lines are dropped and counted. As soon as there is room again, a line in their
//! place says how many are missing.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes charged per line in addition to the line's length.
const LINE_OVERHEAD: usize = 64;

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Signalled when there is a line to write.
    filled: Condvar,
    /// Signalled when all lines have been written.
    emptied: Condvar,
    /// Limit of the lines that wait, bytes.
    limit: usize,
    /// Makes a line, in the format of the log, that says how many lines are missing.
    missing: Box<dyn Fn(u64) -> Vec<u8> + Send + Sync>,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines dropped that no line in the log accounts for yet.
    missing: u64,
    /// Whether the thread is writing a line right now.
    writing: bool,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("limit", &self.0.limit).finish_non_exhaustive()
    }
}

impl Lines {
    /// Starts the thread. At most `limit` bytes wait for `write`, which writes one line and may block. `missing` makes
    /// a line that says how many are missing; `dropped` counts the dropped lines.
    ///
    /// The thread cannot be started. No thread can be had.
    pub fn start(
        limit: usize,
        dropped: Counter,
        missing: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
        write: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            limit,
            missing: Box::new(missing),
            dropped,
        };
        let this = Self(Arc::new(shared));
        let lines = this.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || lines.run(write))?;
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, also after a panic elsewhere.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or drops it if it does not fit below the limit.
    pub fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.missing > 0 {
            // The note about missing lines stands where they would be, if there is room for it.
            let note = (self.0.missing)(state.missing);
            if state.bytes + cost(&note) + cost(&line) <= self.0.limit {
                state.missing = 0;
                state.put(note);
            }
        }
        if state.missing > 0 || state.bytes + cost(&line) > self.0.limit {
            state.missing += 1;
            self.0.dropped.inc();
            return;
        }
        state.put(line);
        self.0.filled.notify_one();
    }

    /// Waits until all lines have been written, at most for `patience`. Returns whether they have been.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.writing || !state.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self, mut write: impl FnMut(&[u8])) {
        let mut state = self.lock();
        loop {
            let line = match state.lines.pop_front() {
                Some(line) => {
                    state.bytes -= cost(&line);
                    line
                }
                None if state.missing > 0 => (self.0.missing)(std::mem::take(&mut state.missing)),
                None => {
                    self.0.emptied.notify_all();
                    state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            state.writing = true;
            drop(state);
            write(&line);
            state = self.lock();
            state.writing = false;
        }
    }
}

impl State {
    fn put(&mut self, line: Vec<u8>) {
        self.bytes += cost(&line);
        self.lines.push_back(line);
    }
}

fn cost(line: &[u8]) -> usize {
    line.len() + LINE_OVERHEAD
}

/// Writes a whole line to standard error; blocks for as long as the reader takes.
pub fn write_stderr(mut line: &[u8]) {
    let stderr: BorrowedFd<'_> = rustix::stdio::stderr();
    while !line.is_empty() {
        match rustix::io::write(stderr, line) {
            Ok(written) => line = &line[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Standard error may have been made non-blocking by whoever opened it.
            Err(rustix::io::Errno::AGAIN) => {
                let mut polled = [rustix::event::PollFd::new(&stderr, rustix::event::PollFlags::OUT)];
                let _ = rustix::event::poll(&mut polled, None);
            }
            // Nobody reads standard error any more: there is nowhere to report it.
            Err(_) => return,
        }
    }
}

/// Buffer for the line of one event; dropping it pushes the line to the queue.
#[derive(Debug)]
pub struct LineWriter<'a> {
    lines: &'a Lines,
    line: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.lines.push(std::mem::take(&mut self.line));
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { lines: self, line: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: usize = 10 * (LINE_OVERHEAD + 10);

    /// A queue whose reader takes a line each time that it is told to.
    fn queue() -> (Lines, mpsc::SyncSender<()>, mpsc::Receiver<String>, Counter) {
        let (allow, allowed) = mpsc::sync_channel::<()>(1000);
        let (told, taken) = mpsc::channel();
        let dropped = Counter::default();
        let write = move |line: &[u8]| {
            let _ = allowed.recv();
            let _ = told.send(String::from_utf8(line.to_vec()).unwrap());
        };
        let missing = |count: u64| format!("-{count}").into_bytes();
        (Lines::start(LIMIT, dropped.clone(), missing, write).unwrap(), allow, taken, dropped)
    }

    fn line(number: u64) -> Vec<u8> {
        format!("{number:010}").into_bytes()
    }

    #[test]
    fn nobody_waits_and_what_is_missing_is_said_in_its_place() {
        let (lines, allow, taken, dropped) = queue();
        lines.push(line(0));
        // Taken out, and stuck.
        while !lines.lock().writing {
            std::thread::yield_now();
        }
        for number in 1..=25 {
            lines.push(line(number));
        }
        assert_eq!(dropped.get(), 15);
        assert!(!lines.flush(Duration::from_millis(10)), "its reader takes nothing");
        for expected in 0..=4 {
            allow.send(()).unwrap();
            assert_eq!(taken.recv().unwrap().into_bytes(), line(expected));
        }
        lines.push(line(100));
        for _ in 0..20 {
            allow.send(()).unwrap();
        }
        let rest: Vec<String> =
            std::iter::from_fn(|| taken.recv_timeout(Duration::from_secs(5)).ok()).take(7).collect();
        let numbers: Vec<u64> = rest[..5].iter().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, [5, 6, 7, 8, 9]);
        assert_eq!(rest[5..], ["0000000010".to_owned(), "-15".to_owned()]);
        assert_eq!(taken.recv().unwrap(), "0000000100");
        assert!(lines.flush(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_missing_is_said_even_if_nothing_follows() {
        let (lines, allow, taken, _) = queue();
        for number in 0..50 {
            lines.push(line(number));
        }
        for _ in 0..50 {
            allow.send(()).unwrap();
        }
        let last =
            std::iter::from_fn(|| taken.recv_timeout(Duration::from_secs(5)).ok()).find(|line| line.starts_with('-'));
        assert!(last.is_some());
        assert!(lines.flush(Duration::from_secs(5)));
    }

    #[test]
    fn a_line_is_what_one_event_writes() {
        let (lines, allow, taken, _) = queue();
        let mut writer = lines.make_writer();
        writer.write_all(b"one ").unwrap();
        writer.write_all(b"line\n").unwrap();
        drop(writer);
        drop(lines.make_writer());
        allow.send(()).unwrap();
        assert_eq!(taken.recv().unwrap(), "one line\n");
        assert!(lines.flush(Duration::from_secs(5)));
    }
}
