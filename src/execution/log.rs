//! The output of one execution: numbered events in bounded memory, readable by any number of clients at their own
//! pace. A reader that is too slow loses the oldest events and is told so; it never slows down the command.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::types::{Event, Gap};

/// Charged per event besides its data, bytes: sequence number, queue slot, allocation.
const EVENT_OVERHEAD: usize = 64;

/// Most that one read takes out, bytes, unless a single event is larger: a reader that stalls keeps that much alive.
const READ_BYTES: usize = 256 * 1024;

/// An event in the form in which it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Name of the event.
    pub name: &'static str,
    /// Its payload as JSON, on one line.
    pub data: Arc<str>,
}

/// An event with its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Counts from 1 without holes.
    pub sequence: u64,
    /// The event.
    pub event: Rendered,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Last sequence number written.
    last: watch::Sender<u64>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Rendered>,
    /// How many events were dropped; the first one held has this number plus one.
    trimmed: u64,
    bytes: usize,
    closed: bool,
}

impl Log {
    /// An empty log that holds at most `limit` bytes of events.
    pub fn new(limit: usize) -> Self {
        Self { inner: Mutex::default(), last: watch::Sender::new(0), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event; `Exit` closes the log, and nothing can follow it.
    pub fn push(&self, event: &Event) {
        let rendered = render(event);
        let last = {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            inner.closed = matches!(event, Event::Exit(_));
            inner.bytes += rendered.data.len() + EVENT_OVERHEAD;
            inner.events.push_back(rendered);
            // The newest event stays even if it alone is over the limit: the exit must be readable.
            while inner.bytes > self.limit && inner.events.len() > 1 {
                if let Some(dropped) = inner.events.pop_front() {
                    inner.bytes -= dropped.data.len() + EVENT_OVERHEAD;
                    inner.trimmed += 1;
                }
            }
            inner.trimmed + inner.events.len() as u64
        };
        self.last.send_replace(last);
    }

    /// Reads what follows sequence number `after`, at most `max` events and about [`READ_BYTES`].
    pub fn read(&self, after: u64, max: usize) -> Vec<Numbered> {
        let inner = self.lock();
        let mut events = Vec::new();
        // A client chooses `after`: the largest number is no reason to overflow.
        let mut next = after.saturating_add(1);
        if next <= inner.trimmed {
            // Numbered as the last missing one, so that resuming after the gap continues where the log does.
            let gap = Event::Gap(Gap { from: next, to: inner.trimmed });
            events.push(Numbered { sequence: inner.trimmed, event: render(&gap) });
            next = inner.trimmed + 1;
        }
        let skip = (next - inner.trimmed - 1) as usize;
        let mut bytes = 0;
        for (index, event) in inner.events.iter().enumerate().skip(skip).take(max) {
            bytes += event.data.len();
            if bytes > READ_BYTES && bytes > event.data.len() {
                break;
            }
            events.push(Numbered { sequence: inner.trimmed + 1 + index as u64, event: event.clone() });
        }
        events
    }

    /// Reads what follows `after`, waiting for the first of it; empty when the log is closed and read to its end.
    pub async fn next(&self, after: u64, max: usize) -> Vec<Numbered> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            let events = self.read(after, max);
            if !events.is_empty() || self.lock().closed {
                return events;
            }
            // The sender lives as long as `self`.
            let _ = last.changed().await;
        }
    }

    /// What it holds, bytes.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Whether the last event was written.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

fn render(event: &Event) -> Rendered {
    let (name, data) = match event {
        Event::Started(data) => ("started", serde_json::to_string(data)),
        Event::Stdout(data) => ("stdout", serde_json::to_string(data)),
        Event::Stderr(data) => ("stderr", serde_json::to_string(data)),
        Event::Delta(data) => ("delta", serde_json::to_string(data)),
        Event::Gap(data) => ("gap", serde_json::to_string(data)),
        Event::Exit(data) => ("exit", serde_json::to_string(data)),
    };
    Rendered { name, data: data.expect("strings and numbers always serialize").into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Log;
    use crate::types::{Delta, Event, Exit, ExitReason};

    fn delta(text: &str) -> Event {
        Event::Delta(Delta { text: text.to_owned() })
    }

    fn exit() -> Event {
        Event::Exit(Exit {
            code: Some(0),
            signal: None,
            reason: ExitReason::Exited,
            success: true,
            detail: None,
            duration_ms: 1,
            cpu_ms: 1,
            memory_peak_bytes: 1,
        })
    }

    #[test]
    fn events_are_numbered_from_one_and_resumable() {
        let log = Log::new(1 << 20);
        for text in ["a", "b", "c"] {
            log.push(&delta(text));
        }
        let all: Vec<u64> = log.read(0, 10).iter().map(|event| event.sequence).collect();
        assert_eq!(all, [1, 2, 3]);
        let rest = log.read(2, 10);
        assert_eq!((rest.len(), rest[0].sequence, &*rest[0].event.data), (1, 3, r#"{"text":"c"}"#));
        assert!(log.read(3, 10).is_empty());
        for future in [99, u64::MAX] {
            assert!(log.read(future, 10).is_empty(), "a number from the future is no reason to panic");
        }
    }

    #[test]
    fn the_limit_trims_the_oldest_and_says_so() {
        let log = Log::new(1000);
        for index in 0..100 {
            log.push(&delta(&format!("{index:0100}")));
        }
        let events = log.read(0, 1000);
        assert_eq!(events[0].event.name, "gap");
        let gap: serde_json::Value = serde_json::from_str(&events[0].event.data).unwrap();
        assert_eq!(gap["from"], 1);
        assert_eq!(gap["to"], events[0].sequence);
        assert_eq!(events[1].sequence, events[0].sequence + 1);
        assert_eq!(events.last().unwrap().sequence, 100);
        assert!(events.len() < 10, "{} events held", events.len());
        let resumed = log.read(events[0].sequence, 1000);
        assert_eq!(resumed[0].sequence, events[1].sequence, "no second gap after the first was read");
    }

    #[test]
    fn a_read_is_bounded_in_bytes_but_never_empty() {
        let log = Log::new(16 << 20);
        log.push(&delta(&"x".repeat(2 * super::READ_BYTES)));
        for _ in 0..64 {
            log.push(&delta(&"y".repeat(super::READ_BYTES / 4)));
        }
        assert_eq!(log.read(0, 64).len(), 1, "a large event comes alone");
        assert_eq!(log.read(1, 64).len(), 3);
    }

    #[tokio::test]
    async fn readers_wait_for_events_and_end_with_exit() {
        let log = Arc::new(Log::new(1 << 20));
        let reader = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                let (mut after, mut names) = (0, Vec::new());
                loop {
                    let events = log.next(after, 2).await;
                    let Some(last) = events.last() else { return names };
                    after = last.sequence;
                    names.extend(events.iter().map(|event| event.event.name));
                }
            }
        });
        for text in ["a", "b", "c"] {
            log.push(&delta(text));
            tokio::task::yield_now().await;
        }
        log.push(&exit());
        log.push(&delta("too late"));
        assert_eq!(reader.await.unwrap(), ["delta", "delta", "delta", "exit"]);
    }
}
