//! The output of one execution: numbered events in bounded memory, readable by any number of clients at their own
//! pace, as events or as the bytes that were written.
//!
//! A command that writes faster than anybody reads is slowed down to the pace of its fastest reader, as by a pipe; but
//! readers that take nothing at all for a while ([`Limits::stall`]) slow down nobody any more: the oldest events are
//! dropped, and those who miss them are told so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::followers::{Followers, Position};
use super::output;
use crate::types::{Event, Gap};

/// Charged per event besides its data, bytes: queue slot, positions, allocation.
const EVENT_OVERHEAD: usize = 160;

/// Most that one read takes out, bytes, unless a single event is larger; what a reader that stalls keeps alive, and
/// what one that is slow has to take in the time after which it counts as stalled.
const READ_BYTES: usize = 64 * 1024;

/// Most pieces of output that one read takes out.
const READ_PIECES: usize = 64;

/// Most output in one event, bytes.
const EVENT_BYTES: usize = 64 * 1024;

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

/// How much is kept, and how long a command waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of events.
    pub bytes: usize,
    /// How long a command waits for readers that take nothing.
    pub stall: Duration,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Last sequence number written.
    last: watch::Sender<u64>,
    /// Counts whatever readers do that a waiting command may go on for.
    moves: watch::Sender<u64>,
    limits: Limits,
}

#[derive(Debug, Default)]
struct Inner {
    /// With the position behind each.
    events: VecDeque<(Piece, Position)>,
    /// How many events were dropped; the first one held has this number plus one.
    trimmed: u64,
    /// The position behind those, and how many bytes of each stream were in them.
    trimmed_position: Position,
    trimmed_output: [u64; 2],
    bytes: usize,
    /// The position at the end.
    end: Position,
    closed: bool,
    followers: Followers,
}

impl Log {
    /// An empty log.
    pub fn new(limits: Limits) -> Self {
        Self { inner: Mutex::default(), last: watch::Sender::new(0), moves: watch::Sender::new(0), limits }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most that may be written at once without a reader who pays attention losing something, bytes.
    pub fn gulp(&self) -> usize {
        self.limits.bytes / 8
    }

    /// Appends an event; `Exit` closes the log, and nothing can follow it.
    pub fn push(&self, event: &Event) {
        self.append([Piece::Other(render(event))], matches!(event, Event::Exit(_)));
    }

    /// Appends output, in events of at most [`EVENT_BYTES`] and an eighth of the log's limit.
    pub fn push_output(&self, stream: Stream, bytes: Bytes) {
        let most = EVENT_BYTES.min(self.gulp());
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
                if let Piece::Output(stream, _) = piece {
                    inner.end[stream as usize] += piece.charge() as u64;
                }
                let end = inner.end;
                inner.events.push_back((piece, end));
            }
            // The newest event stays even if it alone is over the limit: the exit must be readable.
            while inner.bytes > self.limits.bytes && inner.events.len() > 1 {
                if let Some((dropped, position)) = inner.events.pop_front() {
                    inner.bytes -= dropped.charge();
                    inner.trimmed += 1;
                    inner.trimmed_position = position;
                    if let Piece::Output(stream, bytes) = dropped {
                        inner.trimmed_output[stream as usize] += bytes.len() as u64;
                    }
                }
            }
            inner.trimmed + inner.events.len() as u64
        };
        self.last.send_replace(number);
    }

    /// Somebody begins to read; see [`Followers`].
    pub fn join(&self) -> u64 {
        self.lock().followers.join()
    }

    /// Somebody reads no more.
    pub fn leave(&self, follower: u64) {
        self.lock().followers.leave(follower);
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// A number to call [`Self::progress`] with, taken before [`Self::is_ahead`] is asked.
    pub fn moves(&self) -> u64 {
        *self.moves.borrow()
    }

    /// Whether so much of a stream is unread by its fastest reader that the command should wait: a quarter of the limit.
    pub fn is_ahead(&self, stream: Stream) -> bool {
        let inner = self.lock();
        let end = inner.end[stream as usize];
        let limit = self.limits.bytes as u64 / 4;
        inner.followers.fastest(stream as usize).is_some_and(|taken| end.saturating_sub(taken) > limit)
    }

    /// Waits until somebody has read something since `seen` was [`Self::moves`]; or for [`Limits::stall`], and then
    /// nobody is waited for until that happens.
    pub async fn progress(&self, seen: u64) {
        let mut moves = self.moves.subscribe();
        // The sender lives as long as `self`.
        if tokio::time::timeout(self.limits.stall, moves.wait_for(|moves| *moves != seen)).await.is_err() {
            self.lock().followers.stall();
        }
    }

    /// Reads what follows sequence number `after`, at most `max` events and about [`READ_BYTES`]; `follower` has taken
    /// everything before.
    pub fn read(&self, follower: Option<u64>, after: u64, max: usize) -> Vec<Numbered> {
        let mut events = Vec::new();
        let mut pieces = Vec::new();
        let moved = {
            let mut inner = self.lock();
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
            inner.took(follower, skip, |position| position.map(Some))
        };
        if moved {
            self.moves.send_modify(|moves| *moves += 1);
        }
        // Rendered outside the lock: the writer does not wait for it.
        events.extend(pieces.into_iter().map(|(sequence, piece)| Numbered { sequence, event: piece.render() }));
        events
    }

    /// Reads what follows `after`, waiting for the first of it; empty when the log is closed and read to its end.
    pub async fn next(&self, follower: Option<u64>, after: u64, max: usize) -> Vec<Numbered> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            // Asked first: what is written in between is read, and told to be the last by the next call.
            let closed = self.is_closed();
            let events = self.read(follower, after, max);
            if !events.is_empty() || closed {
                return events;
            }
            // The sender lives as long as `self`.
            let _ = last.changed().await;
        }
    }

    /// Reads bytes of one stream and moves the cursor behind them; nothing if there are no more yet. `follower` has
    /// taken everything before.
    ///
    /// # Errors
    /// [`Dropped`] when the next byte wanted is not there any more.
    pub fn read_output(&self, follower: Option<u64>, cursor: &mut Cursor) -> Result<Vec<Bytes>, Dropped> {
        let mut pieces = Vec::new();
        let stream = cursor.stream as usize;
        let moved = {
            let mut inner = self.lock();
            if cursor.after < inner.trimmed {
                (cursor.after, cursor.passed) = (inner.trimmed, inner.trimmed_output[stream]);
                if cursor.passed > cursor.wanted {
                    return Err(Dropped { wanted: cursor.wanted, kept: cursor.passed });
                }
            }
            let skip = (cursor.after - inner.trimmed) as usize;
            let mut length = 0;
            for (piece, _) in inner.events.iter().skip(skip) {
                if length >= READ_BYTES || pieces.len() >= READ_PIECES {
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
            // An offset that is still to come says nothing about who reads how fast.
            let future = cursor.wanted > cursor.passed;
            inner.took(follower, skip, |position| {
                let mut taken = [None; 2];
                taken[stream] = (!future).then_some(position[stream]);
                taken
            })
        };
        if moved {
            self.moves.send_modify(|moves| *moves += 1);
        }
        Ok(pieces)
    }

    /// Reads bytes of one stream, waiting for the first of them; nothing when the execution has ended and all is read.
    ///
    /// # Errors
    /// As [`Self::read_output`].
    pub async fn next_output(&self, follower: Option<u64>, cursor: &mut Cursor) -> Result<Vec<Bytes>, Dropped> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            let closed = self.is_closed();
            let pieces = self.read_output(follower, cursor)?;
            // One read stops at its limits, which may lie before the end of a closed log.
            let all = cursor.after >= *last.borrow();
            if !pieces.is_empty() || (closed && all) {
                return Ok(pieces);
            }
            if all {
                let _ = last.changed().await;
            }
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
    /// Notes that `follower` has taken the first `index` of the events held, and whatever came before those. Returns
    /// whether that is new.
    fn took(&mut self, follower: Option<u64>, index: usize, of: impl FnOnce(Position) -> [Option<u64>; 2]) -> bool {
        let position = match index.checked_sub(1) {
            None => Some(self.trimmed_position),
            // None: a number that is still to come.
            Some(before) => self.events.get(before).map(|(_, position)| *position),
        };
        // Who waits for what is still to come says nothing about how fast it will be read.
        let taken = position.map_or([None; 2], of);
        follower.is_some_and(|follower| self.followers.took(follower, taken))
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
    use std::time::Duration;

    use super::{Cursor, Limits, Log, Stream};
    use crate::types::{Delta, Event, Exit, ExitReason};

    fn log(bytes: usize) -> Log {
        Log::new(Limits { bytes, stall: Duration::from_secs(1) })
    }

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
            request_id: None,
        })
    }

    #[test]
    fn events_are_numbered_from_one_and_resumable() {
        let log = log(1 << 20);
        for text in ["a", "b", "c"] {
            log.push(&delta(text));
        }
        let all: Vec<u64> = log.read(None, 0, 10).iter().map(|event| event.sequence).collect();
        assert_eq!(all, [1, 2, 3]);
        let rest = log.read(None, 2, 10);
        assert_eq!((rest.len(), rest[0].sequence, &*rest[0].event.data), (1, 3, r#"{"text":"c"}"#));
        assert!(log.read(None, 3, 10).is_empty());
        for future in [99, u64::MAX] {
            assert!(log.read(None, future, 10).is_empty(), "a number from the future is no reason to panic");
        }
    }

    #[test]
    fn the_limit_trims_the_oldest_and_says_so() {
        let log = log(1000);
        for index in 0..100 {
            log.push(&delta(&format!("{index:0100}")));
        }
        let events = log.read(None, 0, 1000);
        assert_eq!(events[0].event.name, "gap");
        let gap: serde_json::Value = serde_json::from_str(&events[0].event.data).unwrap();
        assert_eq!(gap["from"], 1);
        assert_eq!(gap["to"], events[0].sequence);
        assert_eq!(events[1].sequence, events[0].sequence + 1);
        assert_eq!(events.last().unwrap().sequence, 100);
        assert!(events.len() < 10, "{} events held", events.len());
        let resumed = log.read(None, events[0].sequence, 1000);
        assert_eq!(resumed[0].sequence, events[1].sequence, "no second gap after the first was read");
    }

    #[test]
    fn a_read_is_bounded_in_bytes_but_never_empty() {
        let log = log(16 << 20);
        log.push(&delta(&"x".repeat(2 * super::READ_BYTES)));
        for _ in 0..64 {
            log.push(&delta(&"y".repeat(super::READ_BYTES / 4)));
        }
        assert_eq!(log.read(None, 0, 64).len(), 1, "a large event comes alone");
        assert_eq!(log.read(None, 1, 64).len(), 3);
    }

    #[tokio::test]
    async fn readers_wait_for_events_and_end_with_exit() {
        let log = Arc::new(log(1 << 20));
        let reader = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                let (mut after, mut names) = (0, Vec::new());
                loop {
                    let events = log.next(None, after, 2).await;
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

    /// 1 KiB of standard output or standard error.
    fn write(log: &Log, stream: Stream, times: usize) {
        for _ in 0..times {
            log.push_output(stream, vec![b'x'; 1024].into());
        }
    }

    #[test]
    fn a_reader_of_one_stream_says_nothing_about_the_other() {
        let log = log(64 << 10);
        let (out, err) = (log.join(), log.join());
        let mut cursors = [Cursor::new(Stream::Stdout, 0), Cursor::new(Stream::Stderr, 0)];
        log.read_output(Some(out), &mut cursors[0]).unwrap();
        write(&log, Stream::Stdout, 20);
        assert!(log.is_ahead(Stream::Stdout) && !log.is_ahead(Stream::Stderr));
        // It skims all that is not its own.
        log.read_output(Some(err), &mut cursors[1]).unwrap();
        log.read_output(Some(err), &mut cursors[1]).unwrap();
        assert!(log.is_ahead(Stream::Stdout), "nobody has read it");
        log.read_output(Some(out), &mut cursors[0]).unwrap();
        log.read_output(Some(out), &mut cursors[0]).unwrap();
        assert!(!log.is_ahead(Stream::Stdout), "now it is read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_waits_for_who_is_left_and_for_nobody_that_stalls() {
        let log = log(64 << 10);
        let (fast, slow) = (log.join(), log.join());
        log.read(Some(slow), 0, 64);
        write(&log, Stream::Stdout, 20);
        log.read(Some(fast), 20, 64);
        assert!(!log.is_ahead(Stream::Stdout), "the fast one has read all");
        log.leave(fast);
        assert!(log.is_ahead(Stream::Stdout), "the slow one is alone now");
        let seen = log.moves();
        log.read(Some(slow), 1, 64);
        log.progress(seen).await;
        assert!(log.is_ahead(Stream::Stdout), "it moved before anybody waited, and has not stalled");
        let begun = tokio::time::Instant::now();
        log.progress(log.moves()).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        assert!(!log.is_ahead(Stream::Stdout), "it has stalled");
        log.read(Some(slow), 2, 64);
        assert!(log.is_ahead(Stream::Stdout), "it reads again");
    }

    #[test]
    fn places_that_are_still_to_come_hold_up_nobody_and_let_nobody_pass() {
        let log = log(64 << 10);
        let (reader, dreamer) = (log.join(), log.join());
        log.read(Some(reader), 0, 64);
        log.read(Some(dreamer), u64::MAX, 64);
        let mut cursor = Cursor::new(Stream::Stdout, u64::MAX);
        log.read_output(Some(dreamer), &mut cursor).unwrap();
        write(&log, Stream::Stdout, 20);
        log.read_output(Some(dreamer), &mut cursor).unwrap();
        assert!(log.is_ahead(Stream::Stdout), "who waits for the future has read nothing");
        log.leave(reader);
        assert!(!log.is_ahead(Stream::Stdout));
    }

    #[test]
    fn one_read_is_bounded_in_pieces_too() {
        let log = log(1 << 20);
        for _ in 0..1000 {
            log.push_output(Stream::Stdout, "x".into());
        }
        let mut cursor = Cursor::new(Stream::Stdout, 0);
        let mut count = 0;
        loop {
            let pieces = log.read_output(None, &mut cursor).unwrap();
            assert!(pieces.len() <= super::READ_PIECES);
            if pieces.is_empty() {
                break;
            }
            count += pieces.len();
        }
        assert_eq!(count, 1000);
    }
}
