//! Log lines as journal entries with fields of their own: `journalctl -u thawd THAWD_PROVIDER=openai`.
//!
//! The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) rather than the crate `tracing-journald`: that one
//! leaves the fields out of `MESSAGE`, so that a plain `journalctl -u thawd` would not tell the reason of anything.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::escape::escape_control;

/// Where the journal listens (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest value; what is longer is cut. A datagram must stay below the usual 208 KiB of `net.core.wmem_default`.
const MAX_VALUE: usize = 16 << 10;

/// Sends every event to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// Connects to this machine's journal.
    ///
    /// # Errors
    /// There is none.
    pub fn connect() -> io::Result<Self> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self { socket })
    }
}

/// Fields of a span, kept until it ends.
struct SpanFields(Vec<(String, String)>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Journal {
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
        // What the event says itself is not said twice.
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
        if let Err(error) = self.socket.send(&entry) {
            // Standard error is the journal's too under systemd, and somewhere to look otherwise.
            eprintln!("<{priority}>{} (not sent as an entry: {error})", escape_control(&fields.line()));
        }
    }
}

/// What an event or span carries.
#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(String, String)>,
}

impl Fields {
    /// The message with its fields, as on a terminal.
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

/// One field in the journal's encoding. With a length in front a value may hold line breaks without starting a field.
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

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn entry_of(log: impl FnOnce()) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::connect_to(&path).unwrap());
        tracing::subscriber::with_default(subscriber, log);
        server.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let length = server.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
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
