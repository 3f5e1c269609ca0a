//! Log of one execution's output: numbered events in bounded memory. Any number of clients read it at their own pace,
//! as events or as the bytes that were written.
//!
//! A command that writes faster than it is read is slowed down to the pace of its slowest reader, as by a pipe. A
//! reader that reads nothing for a while, or went away and does not come back ([`Patience`]), no longer slows down the
//! command: the oldest events are dropped, and a reader that misses them gets a `gap` event. A command that nobody
//! reads is never slowed down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::event::{EXIT, NAMES, Numbered, Rendered, render};
use super::followers::{Followers, Patience, Position, Reads, Tail};
use super::journal::{Head, Journal, Record};
use super::piece::{Piece, Taken, Written};
use super::source::Amounts;
use super::spool::{Files, Spool};
use super::stream::Stream;
use super::text;
use thaw_client::time::Timestamp;
use thaw_client::types::{Delta, Event, Exit, Gap};
use thaw_os::kernel;

/// Most that one read returns, bytes, unless a single event is larger. This bounds the memory of a stalled reader, and
/// is what a slow reader has to consume within the time after which it counts as stalled.
const READ_BYTES: usize = 64 * 1024;

/// Most output in one event, bytes.
const EVENT_BYTES: usize = 64 * 1024;

/// Bytes that a reader wanted were dropped before it read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes {wanted} to {kept} are gone: the limit of the log was passed before they were read")]
pub struct Dropped {
    /// First byte that the reader wanted.
    pub wanted: u64,
    /// First byte that is kept.
    pub kept: u64,
}

/// Position of a reader in the bytes of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    stream: Stream,
    /// Next byte that the reader wants.
    wanted: u64,
    /// Sequence number up to which events were examined; they hold the stream's bytes up to `passed`.
    after: u64,
    passed: u64,
}

impl Cursor {
    /// A cursor at byte `offset` of `stream`.
    pub fn new(stream: Stream, offset: u64) -> Self {
        Self { stream, wanted: offset, after: 0, passed: 0 }
    }
}

/// Limits of a log.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of events that are kept.
    pub bytes: usize,
    /// See [`Amounts`].
    pub fast: usize,
    /// See [`Spool`].
    pub large: u64,
    /// How long a command waits for readers.
    pub patience: Patience,
}

/// The readers' progress is written to the journal whenever it has grown by this fraction of the limit.
const TOLD_PART: u64 = 16;

/// The log of one execution.
#[derive(Debug)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Bytes of standard output and standard error.
    spools: [Arc<Spool>; 2],
    /// Sequence number of the last event.
    last: watch::Sender<u64>,
    /// Counts what readers do, so that a waiting command can check whether to continue.
    moves: watch::Sender<u64>,
    limits: Limits,
}

/// An event that is kept.
#[derive(Debug)]
struct Held {
    piece: Piece,
    /// Position after the event.
    position: Position,
    /// Offset of the event's record in the journal.
    place: u64,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    events: VecDeque<Held>,
    /// The journal's head as it will be written at the next [`Inner::tidy`].
    head: Head,
    /// Bytes dropped since the last [`Inner::tidy`].
    untidy: usize,
    /// First byte of standard output that the decoder still needs; see [`Log::keep_for_parser`].
    parser_needs: Option<u64>,
    bytes: usize,
    tail: Tail,
    /// Bytes of each stream that are in events.
    output: [u64; 2],
    /// Sequence number of the last event that a reader has seen. A later event of output may still grow.
    shown: u64,
    followers: Followers,
}

/// The decision that a command has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// Reason, as a number of the execution's task.
    pub reason: u8,
    /// Time of the decision, by the clock of [`kernel::since_boot`].
    pub at: Duration,
}

/// State of an execution that an earlier daemon left in the log, besides its events.
#[derive(Debug)]
pub struct Recovered {
    /// Whether the command was passed to the container.
    pub submitted: bool,
    /// Whether `started` was published.
    pub announced: bool,
    /// The decision recorded by [`Log::note_stop`].
    pub stop: Option<Noted>,
    /// The `exit` event, if there is one already.
    pub exit: Option<Exit>,
    /// The last checkpoint of the decoder, as JSON.
    pub checkpoint: Option<Vec<u8>>,
    /// Bytes of text in the `delta` events published after the checkpoint.
    pub delta_bytes: usize,
}

impl Log {
    /// A new log in empty files.
    ///
    /// # Errors
    /// A descriptor is not a file.
    pub fn new(limits: Limits, files: Files) -> io::Result<Self> {
        Self::with(limits, Journal::new(files.journal), files.output, Head::default())
    }

    fn with(limits: Limits, journal: Journal, output: [Arc<OwnedFd>; 2], head: Head) -> io::Result<Self> {
        let [stdout, stderr] = output;
        let inner = Inner {
            journal,
            events: VecDeque::new(),
            untidy: 0,
            parser_needs: None,
            bytes: 0,
            tail: Tail { end: head.position, streams: [head.position; 2] },
            output: head.output,
            shown: 0,
            followers: Followers::default(),
            head,
        };
        Ok(Self {
            inner: Mutex::new(inner),
            spools: [Arc::new(Spool::new(stdout, limits.large)?), Arc::new(Spool::new(stderr, limits.large)?)],
            last: watch::Sender::new(head.trimmed),
            moves: watch::Sender::new(0),
            limits,
        })
    }

    /// Opens the log that an earlier daemon wrote to these files. Its readers find the same events under the same
    /// numbers.
    ///
    /// # Errors
    /// The files hold something else.
    pub fn recover(limits: Limits, files: Files) -> io::Result<(Self, Recovered)> {
        let (journal, head, records) = Journal::open(files.journal)?;
        let mut recovered = Recovered {
            submitted: head.submitted > 0,
            announced: head.trimmed > 0,
            stop: head.noted(),
            exit: None,
            checkpoint: None,
            delta_bytes: 0,
        };
        let this = Self::with(limits, journal, files.output, head)?;
        let mut inner = this.lock();
        for (place, record) in records {
            let piece = match record {
                Record::Checkpoint(json) if place == head.checkpoint => {
                    recovered.checkpoint = Some(json);
                    recovered.delta_bytes = 0;
                    continue;
                }
                Record::Checkpoint(_) => continue,
                Record::Output(stream, length, at) => {
                    let stream = if stream == 0 { Stream::Stdout } else { Stream::Stderr };
                    let (from, at) = (inner.output[stream as usize], Timestamp::from_unix_ms(at));
                    Piece::Output(Written { stream, from, length, at })
                }
                Record::Event(name, data) => {
                    let Some(rendered) = recovered.note(&name, data) else {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown event {name:?}")));
                    };
                    Piece::Other(rendered)
                }
            };
            // Records before the start were read for the decoder only.
            if place >= head.start {
                inner.hold(piece, place);
            }
        }
        inner.trim(&this.limits);
        inner.shown = inner.number();
        if head.readers > 0 {
            // No reader is connected yet; those of the earlier daemon may come back.
            if head.alone_since == 0 {
                inner.head.alone_since = nanoseconds(kernel::since_boot());
                inner.write_flags();
            }
            let alone_since = Duration::from_nanos(inner.head.alone_since);
            inner.followers.restore(head.readers, head.taken, instant(alone_since) + this.limits.patience.away);
        }
        this.last.send_replace(inner.number());
        drop(inner);
        Ok((this, recovered))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spool that holds the bytes of a stream before they are published.
    pub fn spool(&self, stream: Stream) -> &Arc<Spool> {
        &self.spools[stream as usize]
    }

    /// Files of the log, for the keeper: journal, standard output, standard error.
    pub fn files(&self) -> [Arc<OwnedFd>; 3] {
        let [stdout, stderr] = &self.spools;
        [Arc::clone(self.lock().journal.file()), Arc::clone(stdout.file()), Arc::clone(stderr.file())]
    }

    /// Most bytes that may be published at once without an attentive reader losing events.
    pub fn chunk_size(&self) -> usize {
        self.limits.bytes / 8
    }

    /// How its output is moved.
    pub fn amounts(&self) -> Amounts {
        Amounts { most: self.chunk_size(), fast: self.limits.fast }
    }

    /// Appends an event, which happens now unless it says when; `Exit` closes the log, and nothing can follow it.
    pub fn push(&self, event: &Event) {
        let last = matches!(event, Event::Exit(_));
        let mut event = event.clone();
        event.stamp(Timestamp::now());
        self.append(&mut self.lock(), vec![Piece::Other(render(&event))], last);
    }

    /// Publishes what has arrived in the spool of a stream, in events of at most [`EVENT_BYTES`] and an eighth of the
    /// log's limit. An incomplete character at the end is left for the next call, unless `all` output has arrived.
    pub fn publish(&self, stream: Stream, all: bool) {
        let most = EVENT_BYTES.min(self.chunk_size());
        let spool = self.spool(stream);
        let mut inner = self.lock();
        let from = inner.output[stream as usize];
        let pieces = text::pieces(spool, from, most, all);
        let at = Timestamp::now();
        let pieces: Vec<_> = pieces.map(|(from, length)| Piece::Output(Written { stream, from, length, at })).collect();
        if !pieces.is_empty() {
            self.append(&mut inner, pieces, false);
        }
    }

    /// Publishes bytes that the daemon itself adds to a stream.
    pub fn push_output(&self, stream: Stream, bytes: &[u8]) {
        if let Err(error) = self.spool(stream).write(bytes) {
            tracing::error!(%error, "output cannot be kept");
        }
        self.publish(stream, true);
    }

    fn append(&self, inner: &mut Inner, pieces: Vec<Piece>, last: bool) {
        if inner.is_closed() {
            return;
        }
        if last {
            inner.head.ended_at = nanoseconds(kernel::since_boot());
            inner.write_flags();
        }
        let most = EVENT_BYTES.min(self.chunk_size());
        let pieces = inner.grow(pieces, most);
        // Write the journal first: what a reader has seen must be there for the next daemon too.
        let mut records = Vec::new();
        let mut places = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            places.push(records.len() as u64);
            piece.record().encode(&mut records);
        }
        let begin = inner.journal.append(&records);
        for (piece, place) in pieces.into_iter().zip(places) {
            inner.hold(piece, begin + place);
        }
        inner.trim(&self.limits);
        if inner.untidy > self.limits.bytes / 8 {
            inner.tidy(&self.spools);
        }
        self.last.send_replace(inner.number());
    }

    /// Records that the command was passed to the container: the next daemon continues the execution.
    pub fn note_submitted(&self) {
        self.set_submitted(1);
    }

    /// Another command is about to be handed over.
    pub fn note_not_submitted(&self) {
        self.set_submitted(0);
    }

    fn set_submitted(&self, submitted: u64) {
        let mut inner = self.lock();
        // A first command: its file says so without having been written.
        if inner.head.submitted != submitted {
            inner.head.submitted = submitted;
            inner.write_flags();
        }
    }

    /// Records that the command has to end, and why. Once this has returned, the next daemon knows it. Returns the
    /// first decision if there was one before.
    pub fn note_stop(&self, reason: u8) -> Noted {
        let mut inner = self.lock();
        if let Some(noted) = inner.head.noted() {
            return noted;
        }
        let at = kernel::since_boot();
        (inner.head.stop, inner.head.stopped_at) = (u64::from(reason) + 1, nanoseconds(at));
        inner.write_flags();
        Noted { reason, at }
    }

    /// Time since which no reader is connected, by the clock of [`kernel::since_boot`]; `None` while one is, or if none
    /// ever was.
    pub fn alone_since(&self) -> Option<Duration> {
        Some(self.lock().head.alone_since).filter(|since| *since > 0).map(Duration::from_nanos)
    }

    /// Time of the last event, by the clock of [`kernel::since_boot`].
    pub fn ended_at(&self) -> Option<Duration> {
        Some(self.lock().head.ended_at).filter(|at| *at > 0).map(Duration::from_nanos)
    }

    /// Keeps standard output from byte `from` on for the decoder, whether readers need it or not.
    pub fn keep_for_parser(&self, from: u64) {
        self.lock().parser_needs = Some(from);
    }

    /// Whether a checkpoint is due after the decoder has consumed `heard` bytes of standard output.
    pub fn is_checkpoint_due(&self, heard: u64) -> bool {
        self.lock().parser_needs.is_some_and(|from| heard.saturating_sub(from) > self.chunk_size() as u64)
    }

    /// Records the decoder's state. Output before byte `heard` is then no longer kept for it.
    pub fn checkpoint(&self, heard: u64, json: Vec<u8>) {
        let mut record = Vec::new();
        Record::Checkpoint(json).encode(&mut record);
        let mut inner = self.lock();
        inner.head.checkpoint = inner.journal.append(&record);
        inner.parser_needs = Some(heard);
        inner.tidy(&self.spools);
    }

    /// Adds a reader; see [`Followers`].
    pub fn join(&self) -> u64 {
        let mut inner = self.lock();
        let begin = inner.head.position;
        let follower = inner.followers.join(begin);
        inner.head.alone_since = 0;
        inner.note_readers();
        follower
    }

    /// A reader has disconnected, for now or for good.
    pub fn leave(&self, follower: u64) {
        {
            let mut inner = self.lock();
            inner.followers.leave(follower, Instant::now() + self.limits.patience.away);
            if inner.followers.is_alone() {
                inner.head.alone_since = nanoseconds(kernel::since_boot());
            }
            inner.note_readers();
        }
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Counter of readers' actions for [`Self::progress`]; take it before calling [`Self::waits_until`].
    pub fn moves(&self) -> u64 {
        *self.moves.borrow()
    }

    /// Time until which the command has to wait at most, because a reader has more than a quarter of the limit unread;
    /// half of the limit if the command is `ending`, since it may have to write something before it can end.
    pub fn waits_until(&self, ending: bool) -> Option<Instant> {
        let limit = self.limits.bytes as u64 / if ending { 2 } else { 4 };
        let mut inner = self.lock();
        let tail = inner.tail;
        inner.followers.waits_until(Instant::now(), tail, limit, self.limits.patience)
    }

    /// Waits until a reader has acted since `seen` was [`Self::moves`], at most until `until`.
    pub async fn progress(&self, seen: u64, until: Instant) {
        let mut moves = self.moves.subscribe();
        // The sender lives as long as `self`.
        let _ = tokio::time::timeout_at(until, moves.wait_for(|moves| *moves != seen)).await;
    }

    /// Reads the events after sequence number `after`, at most `max` events and about [`READ_BYTES`]. `follower` has
    /// read everything up to `after`.
    pub fn read(&self, follower: Option<u64>, after: u64, max: usize) -> Vec<Numbered> {
        let mut events = Vec::new();
        let mut pieces = Vec::new();
        let moved = {
            let mut inner = self.lock();
            // Clients choose `after`: the largest number must not overflow.
            let mut next = after.saturating_add(1);
            let trimmed = inner.head.trimmed;
            if next <= trimmed {
                // The gap gets the number of the last missing event, so that resuming after the gap continues with the
                // next event.
                let gap = Event::Gap(Gap { from: next, to: trimmed, at: Some(Timestamp::now()) });
                events.push(Numbered { sequence: trimmed, event: render(&gap) });
                next = trimmed + 1;
            }
            let skip = (next - inner.head.trimmed - 1) as usize;
            let mut bytes = 0;
            for (index, Held { piece, .. }) in inner.events.iter().enumerate().skip(skip).take(max) {
                bytes += piece.charge();
                if bytes > READ_BYTES && bytes > piece.charge() {
                    break;
                }
                // Read under the lock: no event is dropped meanwhile.
                let taken = match piece {
                    Piece::Output(written) => {
                        let bytes = self.spool(written.stream).read(written.from, written.end());
                        Taken::Output(written.stream, bytes, written.at)
                    }
                    Piece::Other(rendered) => Taken::Other(rendered.clone()),
                };
                pieces.push((inner.head.trimmed + 1 + index as u64, taken));
            }
            inner.shown = inner.shown.max(pieces.last().map_or(0, |(sequence, _)| *sequence));
            inner.took(&self.limits, follower, skip, Reads::Events)
        };
        if moved {
            self.moves.send_modify(|moves| *moves += 1);
        }
        // Render outside the lock, so that the writer does not wait.
        events.extend(pieces.into_iter().map(|(sequence, piece)| Numbered { sequence, event: piece.render() }));
        events
    }

    /// Reads the events after `after`; waits for the first one. Empty when the log is closed and read to its end.
    pub async fn next(&self, follower: Option<u64>, after: u64, max: usize) -> Vec<Numbered> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            // Check before reading: an event that arrives in between is read, and the next call sees the end.
            let closed = self.is_closed();
            let events = self.read(follower, after, max);
            if !events.is_empty() || closed {
                return events;
            }
            // The sender lives as long as `self`.
            let _ = last.changed().await;
        }
    }

    /// Reads bytes of one stream and moves the cursor past them; empty if no more have arrived. `follower` has read
    /// everything before.
    ///
    /// # Errors
    /// [`Dropped`] if the next byte wanted is no longer kept.
    pub fn read_output(&self, follower: Option<u64>, cursor: &mut Cursor) -> Result<Bytes, Dropped> {
        let stream = cursor.stream as usize;
        let bytes;
        let moved = {
            let mut inner = self.lock();
            if cursor.after < inner.head.trimmed {
                (cursor.after, cursor.passed) = (inner.head.trimmed, inner.head.output[stream]);
                if cursor.passed > cursor.wanted {
                    return Err(Dropped { wanted: cursor.wanted, kept: cursor.passed });
                }
            }
            let skip = (cursor.after - inner.head.trimmed) as usize;
            let from = cursor.wanted;
            for Held { piece, .. } in inner.events.iter().skip(skip) {
                if cursor.wanted - from >= READ_BYTES as u64 {
                    break;
                }
                cursor.after += 1;
                if let Piece::Output(written) = piece
                    && written.stream == cursor.stream
                {
                    cursor.passed = written.end();
                    cursor.wanted = cursor.wanted.max(cursor.passed);
                }
            }
            // The bytes of a stream are contiguous in the spool, whatever events came between them.
            bytes = self.spools[stream].read(from, cursor.wanted);
            inner.shown = inner.shown.max(cursor.after);
            // An offset in the future does not show how fast the reader reads.
            let reads = if cursor.wanted > cursor.passed { Reads::Future } else { Reads::Stream(stream) };
            inner.took(&self.limits, follower, skip, reads)
        };
        if moved {
            self.moves.send_modify(|moves| *moves += 1);
        }
        Ok(bytes)
    }

    /// Reads bytes of one stream; waits for the first of them. Empty when the execution has ended and all bytes are
    /// read.
    ///
    /// # Errors
    /// As [`Self::read_output`].
    pub async fn next_output(&self, follower: Option<u64>, cursor: &mut Cursor) -> Result<Bytes, Dropped> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            let closed = self.is_closed();
            let bytes = self.read_output(follower, cursor)?;
            // A read may stop at its limit before the end of a closed log.
            let all = cursor.after >= *last.borrow();
            if !bytes.is_empty() || (closed && all) {
                return Ok(bytes);
            }
            if all {
                let _ = last.changed().await;
            }
        }
    }

    /// Throws away all that is kept of a closed log. Readers are told that the rest is gone.
    pub fn erase(&self) {
        let mut inner = self.lock();
        if !inner.is_closed() {
            return;
        }
        inner.head.trimmed = inner.number();
        inner.head.position = inner.tail.end;
        inner.head.output = inner.output;
        inner.events = VecDeque::new();
        inner.bytes = 0;
        for file in [inner.journal.file(), self.spools[0].file(), self.spools[1].file()] {
            if let Err(error) = rustix::fs::ftruncate(file, 0) {
                tracing::error!(%error, "output that was deleted cannot be thrown away");
            }
        }
        self.last.send_replace(inner.number());
    }

    /// Bytes that the log holds, as charged.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Whether the log is closed and has no event after `after`.
    pub fn is_over(&self, after: u64) -> bool {
        let inner = self.lock();
        inner.is_closed() && after >= inner.number()
    }

    /// Total bytes of a stream; `None` until the log is closed.
    pub fn length(&self, stream: Stream) -> Option<u64> {
        let inner = self.lock();
        let last = inner.events.iter().rev().find_map(|held| match &held.piece {
            Piece::Output(written) if written.stream == stream => Some(written.end()),
            _ => None,
        });
        inner.is_closed().then(|| last.unwrap_or(inner.head.output[stream as usize]))
    }

    /// Waits until the last event was written.
    pub async fn closed(&self) {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            if self.is_closed() {
                return;
            }
            // The sender lives as long as `self`.
            let _ = last.changed().await;
        }
    }

    /// Whether the log is closed.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed()
    }
}

impl Recovered {
    /// Records a published event; `None` for an event that no daemon publishes.
    fn note(&mut self, name: &str, data: String) -> Option<Rendered> {
        let name = *NAMES.iter().find(|known| **known == name)?;
        match name {
            "started" => self.announced = true,
            "delta" => {
                self.delta_bytes += serde_json::from_str::<Delta>(&data).ok()?.text.len();
            }
            EXIT => self.exit = Some(serde_json::from_str(&data).ok()?),
            _ => {}
        }
        Some(Rendered { name, data: data.into() })
    }
}

impl Inner {
    /// Sequence number of the last event.
    fn number(&self) -> u64 {
        self.head.trimmed + self.events.len() as u64
    }

    /// Whether its last event is the end of the execution, which only whoever has decided that it ended writes. Nothing
    /// else says so, and the newest event is never dropped.
    fn is_closed(&self) -> bool {
        matches!(self.events.back(), Some(Held { piece: Piece::Other(event), .. }) if event.name == EXIT)
    }

    fn hold(&mut self, piece: Piece, place: u64) {
        self.bytes += piece.charge();
        self.tail.end += piece.charge() as u64;
        if let Piece::Output(written) = &piece {
            self.tail.streams[written.stream as usize] = self.tail.end;
            self.output[written.stream as usize] = written.end();
        }
        let position = self.tail.end;
        self.events.push_back(Held { piece, position, place });
    }

    /// Appends the first of `pieces` to the last event, if that is output of the same stream that no reader has seen.
    /// Output in small pieces would otherwise take several times the memory. Returns the remaining pieces.
    fn grow(&mut self, mut pieces: Vec<Piece>, most: usize) -> Vec<Piece> {
        let is_shown = self.number() <= self.shown;
        let Some(Held { piece: Piece::Output(last), position, place }) = self.events.back_mut() else {
            return pieces;
        };
        let Some(Piece::Output(more)) = pieces.first().cloned() else { return pieces };
        let grown = last.length + more.length;
        let fits = more.stream == last.stream && more.from == last.end() && grown as usize <= most;
        if is_shown || !fits || !self.journal.amend(*place, grown) {
            return pieces;
        }
        let (stream, more) = (more.stream as usize, u64::from(more.length));
        last.length = grown;
        *position += more;
        self.bytes += more as usize;
        self.tail.end += more;
        self.tail.streams[stream] = self.tail.end;
        self.output[stream] += more;
        pieces.remove(0);
        pieces
    }

    /// Drops the oldest events until the rest is within the limit. The newest event stays even if it alone exceeds the
    /// limit: the exit must be readable.
    fn trim(&mut self, limits: &Limits) {
        while self.bytes > limits.bytes && self.events.len() > 1 {
            let Some(Held { piece, position, .. }) = self.events.pop_front() else { return };
            self.bytes -= piece.charge();
            self.untidy += piece.charge();
            self.head.trimmed += 1;
            self.head.position = position;
            if let Piece::Output(written) = piece {
                self.head.output[written.stream as usize] = written.end();
            }
        }
    }

    /// Frees the memory of dropped events.
    fn tidy(&mut self, spools: &[Arc<Spool>; 2]) {
        // Before its first checkpoint, the decoder starts from the beginning.
        if self.parser_needs.is_some() && self.head.checkpoint == 0 {
            return;
        }
        self.untidy = 0;
        if self.head.trimmed > 0
            && let Some(first) = self.events.front()
        {
            self.head.start = first.place;
        }
        self.journal.set_head(&self.head);
        let [stdout, stderr] = self.head.output;
        spools[0].punch(self.parser_needs.map_or(stdout, |needed| needed.min(stdout)));
        spools[1].punch(stderr);
    }

    /// Writes the flags of the head; the other fields stay as they were last written.
    fn write_flags(&mut self) {
        let Head { submitted, stop, stopped_at, readers, taken, alone_since, ended_at, .. } = self.head;
        let written = self.journal.head();
        let head = Head { submitted, stop, stopped_at, readers, taken, alone_since, ended_at, ..written };
        if head != written {
            self.journal.set_head(&head);
        }
    }

    /// Records the readers for the next daemon. Before the command is passed to the container this writes nothing:
    /// there is nothing to continue yet, and the readers are written together with that flag.
    fn note_readers(&mut self) {
        (self.head.readers, self.head.taken) = self.followers.waited_for();
        if self.head.submitted > 0 && !self.is_closed() {
            self.write_flags();
        }
    }

    /// Records that `follower` has read the first `index` of the kept events, and everything before. Returns whether
    /// that is new.
    fn took(&mut self, limits: &Limits, follower: Option<u64>, index: usize, reads: Reads) -> bool {
        let Some(follower) = follower else { return false };
        let position = match index.checked_sub(1) {
            None => Some(self.head.position),
            Some(before) => self.events.get(before).map(|held| held.position),
        };
        // `None` is a number in the future, which does not show how fast the reader reads.
        let (reads, taken) = position.map_or((Reads::Future, 0), |position| (reads, position));
        let moved = self.followers.took(follower, reads, taken);
        if moved {
            let (readers, taken) = self.followers.waited_for();
            let told = self.head.taken.abs_diff(taken) <= limits.bytes as u64 / TOLD_PART;
            if !told || readers != self.head.readers {
                self.note_readers();
            }
        }
        moved
    }
}

impl Head {
    fn noted(&self) -> Option<Noted> {
        let reason = u8::try_from(self.stop).ok()?.checked_sub(1)?;
        Some(Noted { reason, at: Duration::from_nanos(self.stopped_at) })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When that was, or will be, by the clock of this process, given the time since the machine was started.
pub fn instant(since_boot: Duration) -> Instant {
    let (now, since_now) = (Instant::now(), kernel::since_boot());
    match since_now.checked_sub(since_boot) {
        Some(ago) => now.checked_sub(ago).unwrap_or(now),
        None => now + since_boot.saturating_sub(since_now),
    }
}

#[cfg(test)]
mod tests;
