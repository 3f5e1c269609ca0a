//! Writes log lines as journal entries with their own fields: `journalctl -u thawd THAWD_PROVIDER=openai`.
//!
//! Speaks the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) itself. The crate `tracing-journald`
//! leaves the fields out of `MESSAGE`, so a plain `journalctl -u thawd` would not show the reason of anything.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::escape::escape_control;
use super::queue::{Lines, write_stderr};

/// Socket of the journal (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest value, bytes; longer values are cut. A datagram must stay below the usual 208 KiB of
/// `net.core.wmem_default`.
const MAX_VALUE: usize = 16 << 10;

/// Connection to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// Connects to this machine's journal.
    ///
    /// # Errors
    /// The machine has no journal.
    pub fn connect() -> io::Result<Self> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self { socket })
    }

    /// Sends an entry; blocks for as long as the journal takes. Call only from the log's own thread.
    pub fn send(&self, entry: &[u8]) {
        if let Err(error) = self.socket.send(entry) {
            // Under systemd, standard error goes to the journal too; elsewhere it is the place to look.
            let message = message(entry);
            write_stderr(format!("{} (not sent as an entry: {error})\n", escape_control(&message)).as_bytes());
        }
    }

    /// An entry about the log itself.
    pub fn line(priority: &str, message: &str) -> Vec<u8> {
        let mut entry = Vec::new();
        for (name, value) in [
            ("PRIORITY", priority),
            ("SYSLOG_IDENTIFIER", "thawd"),
            ("TARGET", "thawd::telemetry"),
            ("MESSAGE", message),
        ] {
            put(&mut entry, name, value);
        }
        entry
    }
}

/// The message of an entry with its priority in front, in the form of sd-daemon(3).
fn message(entry: &[u8]) -> String {
    let field = |name: &str| {
        let text = String::from_utf8_lossy(entry);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
        value.unwrap_or_default()
    };
    format!("<{}>{}", field("PRIORITY"), field("MESSAGE"))
}

/// Layer that makes an entry of every event.
#[derive(Debug)]
pub struct Entries {
    lines: Lines,
}

impl Entries {
    /// Pushes entries to `lines`, whose writer is [`Journal::send`].
    pub fn new(lines: Lines) -> Self {
        Self { lines }
    }
}

/// Fields of a span, kept until the span ends.
struct SpanFields(Vec<(String, String)>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Entries {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields.named));
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(kept) = span.extensions_mut().get_mut::<SpanFields>()
        {
            kept.0.append(&mut fields.named);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(kept) = span.extensions().get::<SpanFields>() {
                fields.named.extend(kept.0.iter().cloned());
            }
        }
        let of_spans = std::mem::take(&mut fields.named);
        event.record(&mut fields);
        let named = |name: &str| fields.named.iter().any(|(known, _)| known == name);
        // A field of the event replaces the field of the same name of a span.
        let mut all: Vec<_> = of_spans.into_iter().filter(|(name, _)| !named(name)).collect();
        all.append(&mut fields.named);
        fields.named = all;
        let metadata = event.metadata();
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut entry = Vec::with_capacity(512);
        put(&mut entry, "PRIORITY", priority);
        put(&mut entry, "SYSLOG_IDENTIFIER", "thawd");
        put(&mut entry, "TARGET", metadata.target());
        put(&mut entry, "MESSAGE", &fields.line());
        for (name, value) in &fields.named {
            put(&mut entry, &field_name(name), value);
        }
        self.lines.push(entry);
    }
}

/// Message and fields of an event or a span.
#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(String, String)>,
}

impl Fields {
    /// The message with its fields in one line, as on a terminal.
    fn line(&self) -> String {
        let mut line = escape_control(&self.message).into_owned();
        for (name, value) in &self.named {
            // Writing to a string cannot fail.
            let _ = write!(line, " {name}={}", escape_control(value));
        }
        line
    }

    fn add(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.named.push((field.name().to_owned(), value));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// `THAWD_` and the name in the journal's alphabet: capitals, digits and underscores, at most 64 characters.
fn field_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    "THAWD_".chars().chain(name.chars().map(plain)).take(64).collect()
}

/// Appends one field in the journal's encoding. The explicit length lets a value hold line breaks without starting a
/// new field.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(MAX_VALUE)];
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    use prometheus_client::metrics::counter::Counter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn entry_of(log: impl FnOnce()) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let lines = lines_to(&path, 1 << 20, Counter::default());
        let subscriber = tracing_subscriber::registry().with(Entries::new(lines.clone()));
        tracing::subscriber::with_default(subscriber, log);
        assert!(lines.flush(Duration::from_secs(5)));
        server.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let length = server.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    fn lines_to(path: &Path, limit: usize, dropped: Counter) -> Lines {
        let journal = Journal::connect_to(path).unwrap();
        let missing = |count: u64| Journal::line("4", &format!("{count} missing"));
        Lines::start(limit, dropped, missing, move |entry| journal.send(entry)).unwrap()
    }

    #[test]
    fn a_journal_that_has_stopped_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let dropped = Counter::default();
        let lines = lines_to(&path, 64 << 10, dropped.clone());
        let subscriber = tracing_subscriber::registry().with(Entries::new(lines.clone()));
        let begun = Instant::now();
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..20_000 {
                tracing::info!(number, "nobody reads this");
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(dropped.get() > 0 && !lines.flush(Duration::from_millis(50)));
        // It goes on: everything that waited arrives, and how much is missing.
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (mut buffer, mut arrived, mut missing) = (vec![0; 1 << 16], 0, 0);
        while arrived + missing < 20_000 {
            let length = server.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let message = text.lines().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
            match message.strip_suffix(" missing") {
                Some(count) => missing += count.parse::<u64>().unwrap(),
                None => arrived += 1,
            }
        }
        assert_eq!((arrived + missing, missing), (20_000, dropped.get()));
    }

    #[test]
    fn an_event_has_its_fields_and_those_of_its_spans() {
        let entry = entry_of(|| {
            let span = tracing::info_span!("execution", execution = "e1", host = "b.test");
            let _entered = span.enter();
            tracing::warn!(target: "egress", host = "a.test", count = 3, "refused");
        });
        let text = String::from_utf8(entry).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "PRIORITY=4",
                "SYSLOG_IDENTIFIER=thawd",
                "TARGET=egress",
                "MESSAGE=refused execution=e1 host=a.test count=3",
                "THAWD_EXECUTION=e1",
                "THAWD_HOST=a.test",
                "THAWD_COUNT=3",
            ]
        );
    }

    #[test]
    fn a_value_cannot_forge_a_field() {
        let entry = entry_of(|| tracing::info!(reason = "x\nPRIORITY=0", "failed"));
        let needle = b"THAWD_REASON\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n";
        assert!(entry.windows(needle.len()).any(|window| window == needle), "{:?}", String::from_utf8_lossy(&entry));
        assert!(String::from_utf8_lossy(&entry).contains("MESSAGE=failed reason=x\\nPRIORITY=0\n"));
    }

    #[test]
    fn names_and_long_values_fit_the_journal() {
        assert_eq!(field_name("bytes.in-out"), "THAWD_BYTES_IN_OUT");
        assert_eq!(field_name(&"n".repeat(100)).len(), 64);
        let mut entry = Vec::new();
        put(&mut entry, "A", &"ü".repeat(MAX_VALUE));
        assert_eq!(entry.len(), 2 + MAX_VALUE + 1);
    }
}
