//! Owns the log of the process, its delivery to standard error or the journal, and the daemon's own counters.
//!
//! Every room logs through `tracing`. `daemon` and the binaries set the log up; `service` changes its filter.
//! Deliberately absent: waiting for whoever reads the log (see `queue`), and foreign text that is not escaped.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

mod escape;
mod journal;
mod queue;

pub use escape::escape_control;
use journal::{Entries, Journal};
use queue::{Lines, write_stderr};
use thaw_client::config::LogFormat;

/// Longest wait for unwritten log lines at the end of the process.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// The log of this process, once [`init`] has set it up.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Counters of the daemon about itself.
#[derive(Debug, Clone, Default)]
pub struct DaemonMetrics {
    /// Signs of life for systemd's watchdog that were late.
    pub watchdog_misses: Counter,
    /// Spawner processes that ended unasked, or were killed because they hung.
    pub spawner_failures: Counter,
    /// Keeper processes that ended unasked or were killed because they hung, and failed attempts to replace one.
    pub keeper_failures: Counter,
    /// Containers of an earlier daemon that were destroyed at the start because they could not be adopted.
    pub swept: Counter,
    /// Configurations that were rejected at a reload.
    pub reload_failures: Counter,
    /// Log lines that were dropped because their reader took none.
    pub log_lines_dropped: Counter,
}

impl DaemonMetrics {
    /// Registers the counters. The registry must not add a prefix of its own.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self { log_lines_dropped: log_lines_dropped(), ..Self::default() };
        for (name, help, counter) in [
            (
                "thawd_watchdog_misses",
                "Times that the API or a pool did not answer the daemon's own watchdog in time",
                &this.watchdog_misses,
            ),
            (
                "thawd_spawner_failures",
                "Processes for creating containers that ended unasked or did not answer, and were replaced",
                &this.spawner_failures,
            ),
            (
                "thawd_keeper_failures",
                "Processes that hold what survives the daemon which ended unasked, did not answer, or could not be started",
                &this.keeper_failures,
            ),
            (
                "thawd_swept",
                "Containers of an earlier daemon that were not taken over, but destroyed at the start",
                &this.swept,
            ),
            (
                "thawd_reload_failures",
                "Times that a changed configuration was not taken over because of a mistake in it",
                &this.reload_failures,
            ),
            (
                "thawd_log_lines_dropped",
                "Log lines that were dropped because nobody took them from standard error or the journal's socket",
                &this.log_lines_dropped,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        this
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("log filter {filter:?}: {reason}; write it like \"info\" or \"info,egress=debug\"")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else has already set up logging in this process.
    #[error("logging is already set up in this process")]
    AlreadySet,
    /// The thread that writes the log cannot be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
}

/// Handle to change the log filter of the running process.
#[derive(Debug, Clone)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

impl LogControl {
    /// Replaces the log filter.
    ///
    /// # Errors
    /// A filter that cannot be read; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let parsed = parse_filter(filter)?;
        self.filter.reload(parsed).map_err(|_| TelemetryError::AlreadySet)
    }
}

/// Checks a filter without using it.
///
/// # Errors
/// A filter that cannot be read.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), reason: error.to_string() })
}

/// Sends the process' log lines to standard error or the journal. Call once, first thing in `main`, and [`flush`] last.
///
/// `filter` is a level (`error`, `warn`, `info`, `debug`, `trace`), optionally followed by `,target=level` pairs. At most
/// `queue_bytes` wait for whoever reads them.
///
/// # Errors
/// A filter that cannot be read, no thread, or a second call.
pub fn init(log_format: LogFormat, filter: &str, queue_bytes: usize) -> Result<LogControl, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let journal = if log_format == LogFormat::Journald { Journal::connect().ok() } else { None };
    let is_journal = journal.is_some();
    let lines = match journal {
        Some(journal) => {
            let missing = |count| Journal::line("4", &missing_text(count));
            Lines::start(queue_bytes, log_lines_dropped(), missing, move |entry| journal.send(entry))
        }
        None => {
            Lines::start(queue_bytes, log_lines_dropped(), move |count| missing_line(log_format, count), write_stderr)
        }
    };
    let lines = lines.map_err(TelemetryError::Thread)?;
    let writer = lines.clone();
    let result = match log_format {
        LogFormat::Human => registry.with(layer().with_writer(writer).with_ansi(io::stderr().is_terminal())).try_init(),
        LogFormat::Json => {
            registry.with(layer().json().flatten_event(true).with_span_list(false).with_writer(writer)).try_init()
        }
        LogFormat::Journald if is_journal => registry.with(Entries::new(writer)).try_init(),
        LogFormat::Journald => {
            let form = Prioritised(format::format().without_time());
            registry.with(layer().with_ansi(false).event_format(form).with_writer(writer)).try_init()
        }
    };
    result.map_err(|_| TelemetryError::AlreadySet)?;
    let _ = LINES.set(lines);
    // The default panic hook writes to standard error itself, and would block there on a slow reader.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a bug: the process ends");
        flush();
    }));
    Ok(LogControl { filter: handle })
}

/// Waits up to [`FLUSH_PATIENCE`] until the queued lines are written. Call it when the process is about to end.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_PATIENCE);
    }
}

/// Writes a text to standard error after all log lines. Waits for the reader for up to [`FLUSH_PATIENCE`], twice.
pub fn last_words(text: &str) {
    flush();
    let line = format!("{text}\n").into_bytes();
    let (said, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        write_stderr(&line);
        let _ = said.send(());
    });
    let _ = done.recv_timeout(FLUSH_PATIENCE);
}

/// Counter of dropped lines. Static, because a process has one log.
fn log_lines_dropped() -> Counter {
    static DROPPED: OnceLock<Counter> = OnceLock::new();
    DROPPED.get_or_init(Counter::default).clone()
}

fn missing_text(count: u64) -> String {
    format!("{count} log lines are missing here: nobody took them, and no more than `log.queue_bytes` wait")
}

fn missing_line(log_format: LogFormat, count: u64) -> Vec<u8> {
    let text = missing_text(count);
    match log_format {
        LogFormat::Human => format!("WARN thawd::telemetry: {text}\n").into_bytes(),
        LogFormat::Json => {
            let line = serde_json::json!({ "level": "WARN", "target": "thawd::telemetry", "message": text });
            format!("{line}\n").into_bytes()
        }
        LogFormat::Journald => format!("<4>WARN thawd::telemetry: {text}\n").into_bytes(),
    }
}

/// Formatter that puts the syslog priority in front of each line.
struct Prioritised<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(ctx, writer, event)
    }
}

/// Now, in milliseconds since the Unix epoch; 0 if the clock stands before it.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let error = init(LogFormat::Human, "egress=loud", 1 << 20).unwrap_err().to_string();
        assert!(error.contains("\"egress=loud\""), "{error}");
    }

    #[test]
    fn journald_lines_carry_their_priority() {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Prioritised(format::format().without_time()))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "egress", host = "a.test", "one");
            tracing::info!("two");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("<3>ERROR egress: one host=\"a.test\""), "{text}");
        assert!(lines[1].starts_with("<6>") && lines[1].ends_with("two"), "{text}");
    }
}
