//! The output of one execution: numbered events in bounded memory, readable by any number of clients at their own
//! pace, as events or as the bytes that were written.
//!
//! A command that writes faster than anybody reads is slowed down to the pace of its fastest reader, as by a pipe; but
//! readers that read nothing at all for [`STALL`] slow down nobody any more: the oldest events are dropped, and those
//! who miss them are told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::output;
use crate::types::{Event, Gap};

/// Charged per event besides its data, bytes: sequence number, queue slot, allocation.
const EVENT_OVERHEAD: usize = 64;

/// Most that one read takes out, bytes, unless a single event is larger: a reader that stalls keeps that much alive.
const READ_BYTES: usize = 256 * 1024;

/// Most output in one event, bytes.
const EVENT_BYTES: usize = 64 * 1024;

/// How long a command waits for readers that do not read at all.
const STALL: Duration = Duration::from_secs(1);

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

/// One of a command's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that a reader wanted were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes {wanted} to {kept} are gone: the limit of the log was passed before they were read")]
pub struct Dropped {
    /// The next byte that was wanted.
    pub wanted: u64,
    /// The first byte that is there.
    pub kept: u64,
}

/// Where somebody is in the bytes of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    stream: Stream,
    /// Bytes wanted from here on.
    wanted: u64,
    /// Events up to here were looked at, and hold this many bytes of the stream.
    after: u64,
    passed: u64,
}

impl Cursor {
    /// At byte `offset` of `stream`.
    pub fn new(stream: Stream, offset: u64) -> Self {
        Self { stream, wanted: offset, after: 0, passed: 0 }
    }
}

/// What is kept of an event: output as it came, everything else as it goes out.
#[derive(Debug, Clone)]
enum Piece {
    Output(Stream, Bytes),
    Other(Rendered),
}

impl Piece {
    fn charge(&self) -> usize {
        EVENT_OVERHEAD
            + match self {
                Self::Output(_, bytes) => bytes.len(),
                Self::Other(rendered) => rendered.data.len(),
            }
    }

    fn output(&self, wanted: Stream) -> Option<&Bytes> {
        match self {
            Self::Output(stream, bytes) if *stream == wanted => Some(bytes),
            _ => None,
        }
    }

    fn render(self) -> Rendered {
        match self {
            Self::Output(stream, bytes) => {
                let name = match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                };
                Rendered { name, data: output::json(&bytes).into() }
            }
            Self::Other(rendered) => rendered,
        }
    }
}

/// The log.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Last sequence number written.
    last: watch::Sender<u64>,
    /// What the fastest reader has read, as the sum of all charges up to there.
    read: watch::Sender<u64>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// With the sum of all charges up to and with each.
    events: VecDeque<(Piece, u64)>,
    /// How many events were dropped; the first one held has this number plus one.
    trimmed: u64,
    /// Bytes of each stream in those.
    trimmed_output: [u64; 2],
    bytes: usize,
    charged: u64,
    closed: bool,
    /// The readers had read this much when they were given up.
    stalled_at: Option<u64>,
}

impl Log {
    /// An empty log that holds at most `limit` bytes of events.
    pub fn new(limit: usize) -> Self {
        Self { inner: Mutex::default(), last: watch::Sender::new(0), read: watch::Sender::new(0), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event; `Exit` closes the log, and nothing can follow it.
    pub fn push(&self, event: &Event) {
        self.append([Piece::Other(render(event))], matches!(event, Event::Exit(_)));
    }

    /// Appends output, in events of at most [`EVENT_BYTES`] and a quarter of the log's limit.
    pub fn push_output(&self, stream: Stream, bytes: Bytes) {
        let most = EVENT_BYTES.min(self.limit / 4);
        self.append(output::pieces(bytes, most).map(|piece| Piece::Output(stream, piece)), false);
    }

    fn append(&self, pieces: impl IntoIterator<Item = Piece>, last: bool) {
        let number = {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            inner.closed = last;
            for piece in pieces {
                inner.bytes += piece.charge();
                inner.charged += piece.charge() as u64;
                let charged = inner.charged;
                inner.events.push_back((piece, charged));
            }
            // The newest event stays even if it alone is over the limit: the exit must be readable.
            while inner.bytes > self.limit && inner.events.len() > 1 {
                if let Some((dropped, _)) = inner.events.pop_front() {
                    inner.bytes -= dropped.charge();
                    inner.trimmed += 1;
                    if let Piece::Output(stream, bytes) = dropped {
                        inner.trimmed_output[stream as usize] += bytes.len() as u64;
                    }
                }
            }
            inner.trimmed + inner.events.len() as u64
        };
        self.last.send_replace(number);
    }

    /// Whether so much is unread, by the fastest reader, that the command should wait for it: half of the limit.
    pub fn is_ahead(&self) -> bool {
        let read = *self.read.borrow();
        let inner = self.lock();
        inner.stalled_at != Some(read) && inner.charged.saturating_sub(read) > self.limit as u64 / 2
    }

    /// Waits until somebody has read something, but not longer than [`STALL`].
    pub async fn progress(&self) {
        let mut read = self.read.subscribe();
        let before = *read.borrow_and_update();
        // The sender lives as long as `self`.
        if tokio::time::timeout(STALL, read.changed()).await.is_err() {
            self.lock().stalled_at = Some(before);
        }
    }

    /// A reader has read everything up to event `after`.
    fn note(&self, charged: u64) {
        self.read.send_if_modified(|read| {
            let more = charged > *read;
            *read = (*read).max(charged);
            more
        });
    }

    /// Reads what follows sequence number `after`, at most `max` events and about [`READ_BYTES`].
    pub fn read(&self, after: u64, max: usize) -> Vec<Numbered> {
        let mut events = Vec::new();
        let mut pieces = Vec::new();
        let charged = {
            let inner = self.lock();
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
            for (index, (piece, _)) in inner.events.iter().enumerate().skip(skip).take(max) {
                bytes += piece.charge();
                if bytes > READ_BYTES && bytes > piece.charge() {
                    break;
                }
                pieces.push((inner.trimmed + 1 + index as u64, piece.clone()));
            }
            inner.charged_before(skip)
        };
        self.note(charged);
        // Rendered outside the lock: the writer does not wait for it.
        events.extend(pieces.into_iter().map(|(sequence, piece)| Numbered { sequence, event: piece.render() }));
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

    /// Reads bytes of one stream and moves the cursor behind them; nothing if there are no more yet.
    ///
    /// # Errors
    /// [`Dropped`] when the next byte wanted is not there any more.
    pub fn read_output(&self, cursor: &mut Cursor) -> Result<Vec<Bytes>, Dropped> {
        let mut pieces = Vec::new();
        let charged = {
            let inner = self.lock();
            if cursor.after < inner.trimmed {
                (cursor.after, cursor.passed) = (inner.trimmed, inner.trimmed_output[cursor.stream as usize]);
                if cursor.passed > cursor.wanted {
                    return Err(Dropped { wanted: cursor.wanted, kept: cursor.passed });
                }
            }
            let skip = (cursor.after - inner.trimmed) as usize;
            let mut length = 0;
            for (piece, _) in inner.events.iter().skip(skip) {
                if length >= READ_BYTES {
                    break;
                }
                cursor.after += 1;
                let Some(bytes) = piece.output(cursor.stream) else { continue };
                let begin = cursor.passed;
                cursor.passed += bytes.len() as u64;
                if cursor.passed > cursor.wanted {
                    // Less than the piece's length, which fits.
                    let piece = bytes.slice((cursor.wanted - begin) as usize..);
                    cursor.wanted = cursor.passed;
                    length += piece.len();
                    pieces.push(piece);
                }
            }
            inner.charged_before(skip)
        };
        self.note(charged);
        Ok(pieces)
    }

    /// Reads bytes of one stream, waiting for the first of them; nothing when the execution has ended and all is read.
    ///
    /// # Errors
    /// As [`Self::read_output`].
    pub async fn next_output(&self, cursor: &mut Cursor) -> Result<Vec<Bytes>, Dropped> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            let closed = self.is_closed();
            let pieces = self.read_output(cursor)?;
            if !pieces.is_empty() || closed {
                return Ok(pieces);
            }
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

impl Inner {
    /// The sum of all charges before the event at `index` of those held.
    fn charged_before(&self, index: usize) -> u64 {
        match index.checked_sub(1) {
            Some(before) => self.events.get(before).map_or(self.charged, |(_, charged)| *charged),
            None => self.charged - self.bytes as u64,
        }
    }
}

fn render(event: &Event) -> Rendered {
    let (name, data) = match event {
        Event::Queued(data) => ("queued", serde_json::to_string(data)),
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
