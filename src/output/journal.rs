//! Journal of an execution: what was published and in which order, in a file in memory. The journal is written before
//! any reader sees an event, so that the next daemon gives every event the same number.
//!
//! The file begins with a [`Head`], which a single write replaces. Records follow from [`FIRST`]: length, kind,
//! content. An incomplete record at the end was being written when the daemon was killed, and was not published.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::followers::Position;
use super::positioned::read_at;

/// Offset of the first record: after one page for the head.
const FIRST: u64 = 4096;

/// Length of an encoded [`Head`], bytes. Fields that an earlier version did not write read as 0.
const HEAD: usize = 14 * 8;

/// Length of a record's prefix (length and kind), bytes.
const PREFIX: usize = 5;

/// Largest record, bytes: the largest event, an output line of 1 MiB as JSON, with reserve.
const MAX_RECORD: usize = 16 << 20;

/// Begin of the log, and the state of its execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// Offset of the record of the first event that is kept; 0 for [`FIRST`].
    pub start: u64,
    /// Number of events before that one, which were dropped.
    pub trimmed: u64,
    /// Position after the dropped events.
    pub position: Position,
    /// Bytes of each stream in the dropped events.
    pub output: [u64; 2],
    /// Offset of the last [`Record::Checkpoint`]; 0 for none.
    pub checkpoint: u64,
    /// 1 once the command was passed to the container: it may run from then on.
    pub submitted: u64,
    /// 0, or the reason for which the command has to end, as a number of the execution's task plus 1.
    pub stop: u64,
    /// When that was decided, nanoseconds since boot.
    pub stopped_at: u64,
    /// Number of readers that the command waits for, including those that are away.
    pub readers: u64,
    /// Position up to which all of them have read.
    pub taken: Position,
    /// Time since which no reader is connected, nanoseconds since boot; 0 while one is.
    pub alone_since: u64,
    /// Time of the `exit` event, nanoseconds since boot; 0 before.
    pub ended_at: u64,
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let [o0, o1] = self.output;
        let mut bytes = [0; HEAD];
        // The fourth number is always 0: earlier versions kept a part of the position there.
        let numbers = [
            self.start,
            self.trimmed,
            self.position,
            0,
            o0,
            o1,
            self.checkpoint,
            self.submitted,
            self.stop,
            self.stopped_at,
            self.readers,
            self.taken,
            self.alone_since,
            self.ended_at,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Self {
        let (numbers, _) = bytes.as_chunks::<8>();
        let number = |index: usize| u64::from_ne_bytes(numbers[index]);
        Self {
            start: number(0),
            trimmed: number(1),
            position: number(2).saturating_add(number(3)),
            output: [number(4), number(5)],
            checkpoint: number(6),
            submitted: number(7),
            stop: number(8),
            stopped_at: number(9),
            readers: number(10),
            taken: number(11),
            alone_since: number(12),
            ended_at: number(13),
        }
    }
}

/// State of the decoder of a CLI's output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint<P> {
    /// Bytes of standard output that the decoder has consumed.
    pub offset: u64,
    /// The decoder.
    pub parser: P,
}

/// An entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An event with this many bytes of standard output (0) or standard error (1), and when they came, Unix milliseconds;
    /// 0 if an earlier version wrote it.
    Output(usize, u32, u64),
    /// Another event: its name and its payload as JSON.
    Event(String, String),
    /// A [`Checkpoint`] as JSON.
    Checkpoint(Vec<u8>),
}

impl Record {
    /// Appends the encoded record to `buffer`.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let mut put = |kind: u8, parts: &[&[u8]]| {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            buffer.extend_from_slice(&(length as u32).to_ne_bytes());
            buffer.push(kind);
            parts.iter().for_each(|part| buffer.extend_from_slice(part));
        };
        match self {
            Self::Output(stream, length, at) => {
                put(5 + *stream as u8, &[&length.to_ne_bytes(), &at.to_ne_bytes()]);
            }
            Self::Event(name, data) => put(3, &[&[name.len() as u8], name.as_bytes(), data.as_bytes()]),
            Self::Checkpoint(json) => put(4, &[json]),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Option<Self> {
        Some(match kind {
            // As earlier versions wrote it.
            1 | 2 => Self::Output(usize::from(kind - 1), u32::from_ne_bytes(content.try_into().ok()?), 0),
            3 => {
                let (length, rest) = content.split_first()?;
                let (name, data) = rest.split_at_checked(usize::from(*length))?;
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
                Self::Event(text(name)?, text(data)?)
            }
            4 => Self::Checkpoint(content.to_vec()),
            5 | 6 => {
                let (length, at) = content.split_at_checked(4)?;
                let (length, at) = (length.try_into().ok()?, at.try_into().ok()?);
                Self::Output(usize::from(kind - 5), u32::from_ne_bytes(length), u64::from_ne_bytes(at))
            }
            _ => return None,
        })
    }
}

/// Records with their offsets.
pub type Placed = Vec<(u64, Record)>;

/// The journal's file.
#[derive(Debug)]
pub struct Journal {
    file: Arc<OwnedFd>,
    end: u64,
    punched: u64,
    /// The head as last written.
    head: Head,
    /// Whether a write has failed. Later records are then lost to the next daemon.
    broken: bool,
}

impl Journal {
    /// A new journal in an empty file.
    pub fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, end: FIRST, punched: FIRST, head: Head::default(), broken: false }
    }

    /// Reads the journal of an earlier daemon: head, and records with their offsets, beginning with the first one
    /// needed.
    ///
    /// # Errors
    /// The file cannot be read, or holds what no daemon writes.
    pub fn open(file: Arc<OwnedFd>) -> io::Result<(Self, Head, Placed)> {
        let length = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let mut head = [0; HEAD];
        // An earlier version's head is shorter.
        let written = length.min(HEAD as u64) as usize;
        read_at(&file, &mut head[..written], 0)?;
        let head = Head::decode(&head);
        let needed = [head.start, head.checkpoint].into_iter().filter(|place| *place > 0).min().unwrap_or(FIRST);
        let mut records = Vec::new();
        let mut at = if head.start == 0 { FIRST } else { needed };
        let first = at;
        while at + PREFIX as u64 <= length {
            let mut prefix = [0; PREFIX];
            read_at(&file, &mut prefix, at)?;
            let [l0, l1, l2, l3, kind] = prefix;
            let size = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let next = at + (PREFIX + size) as u64;
            if next > length {
                break;
            }
            let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the journal of an execution is damaged");
            if size > MAX_RECORD {
                return Err(corrupt());
            }
            let mut content = vec![0; size];
            read_at(&file, &mut content, at + PREFIX as u64)?;
            records.push((at, Record::decode(kind, &content).ok_or_else(corrupt)?));
            at = next;
        }
        // Cut off an incomplete record, which was never published, before the next one is written.
        if at < length {
            rustix::fs::ftruncate(&file, at)?;
        }
        Ok((Self { file, end: at.max(FIRST), punched: first, head, broken: false }, head, records))
    }

    /// Appends encoded records; returns the offset of the first. Once this has returned, the records survive the
    /// daemon.
    pub fn append(&mut self, records: &[u8]) -> u64 {
        let place = self.end;
        if self.broken {
            return place;
        }
        let mut rest = records;
        while !rest.is_empty() {
            match rustix::io::pwrite(&self.file, rest, self.end) {
                Ok(written) => {
                    self.end += written as u64;
                    rest = &rest[written..];
                }
                Err(error) => {
                    tracing::error!(%error, "an execution's journal cannot be written: it will not survive the daemon");
                    self.broken = true;
                    let _ = rustix::fs::ftruncate(&self.file, place);
                    break;
                }
            }
        }
        place
    }

    /// Replaces the length of the [`Record::Output`] at offset `place`, which no reader has seen yet. Returns whether
    /// that succeeded.
    pub fn amend(&mut self, place: u64, length: u32) -> bool {
        // A write of four bytes within a page is atomic; both the old and the new length are correct.
        !self.broken && rustix::io::pwrite(&self.file, &length.to_ne_bytes(), place + PREFIX as u64) == Ok(4)
    }

    /// The file, for the keeper.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// The head as last written.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Replaces the head, and frees the records that it makes unnecessary.
    pub fn set_head(&mut self, head: &Head) {
        if self.broken {
            return;
        }
        // Within one page, so the write is atomic.
        if let Err(error) = rustix::io::pwrite(&self.file, &head.encode(), 0) {
            tracing::error!(%error, "an execution's journal cannot be written");
            return;
        }
        self.head = *head;
        let needed = if head.checkpoint > 0 { head.start.min(head.checkpoint) } else { head.start };
        if needed > self.punched {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(&self.file, flags, self.punched, needed - self.punched);
            self.punched = needed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Head, Journal, Record};
    use crate::output::spool::Spools;

    fn records() -> Vec<Record> {
        vec![
            Record::Event("started".to_owned(), r#"{"a":1}"#.to_owned()),
            Record::Output(0, 77, 1_796_004_900_123),
            Record::Output(1, 1, 0),
            Record::Checkpoint(b"{}".to_vec()),
        ]
    }

    fn write(journal: &mut Journal, record: &Record) -> u64 {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        journal.append(&bytes)
    }

    #[test]
    fn what_was_written_is_read_again_whole() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        let places: Vec<u64> = records().iter().map(|record| write(&mut journal, record)).collect();
        let (_, head, read) = Journal::open(file).unwrap();
        assert_eq!(head, Head::default());
        assert_eq!(read, places.into_iter().zip(records()).collect::<Vec<_>>());
    }

    #[test]
    fn a_record_cut_anywhere_is_dropped_and_the_next_one_follows() {
        for cut in 1..12 {
            let file = Spools::default().file().unwrap();
            let mut journal = Journal::new(std::sync::Arc::clone(&file));
            write(&mut journal, &Record::Output(1, 1, 2));
            let end = write(&mut journal, &Record::Event("x".to_owned(), "12345".to_owned()));
            rustix::fs::ftruncate(journal.file(), end + cut).unwrap();
            let (mut journal, _, read) = Journal::open(std::sync::Arc::clone(&file)).unwrap();
            let whole = usize::from(cut >= 12);
            assert_eq!(read.len(), 1 + whole, "{cut}");
            write(&mut journal, &Record::Output(0, 5, 6));
            let (_, _, read) = Journal::open(file).unwrap();
            assert_eq!(read.last().unwrap().1, Record::Output(0, 5, 6), "{cut}");
        }
    }

    #[test]
    fn the_head_says_where_to_begin() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        let places: Vec<u64> = records().iter().map(|record| write(&mut journal, record)).collect();
        let head = Head {
            start: places[2],
            trimmed: 1,
            position: 2,
            output: [3, 4],
            checkpoint: places[3],
            submitted: 1,
            stop: 5,
            stopped_at: 6,
            readers: 7,
            taken: 8,
            alone_since: 9,
            ended_at: 10,
        };
        journal.set_head(&head);
        let (_, read, rest) = Journal::open(file).unwrap();
        assert_eq!(read, head);
        assert_eq!(rest.into_iter().map(|(_, record)| record).collect::<Vec<_>>(), records()[2..]);
    }

    #[test]
    fn the_head_of_an_earlier_version_is_understood() {
        let file = Spools::default().file().unwrap();
        let numbers: Vec<u8> = (0..9u64).flat_map(u64::to_ne_bytes).collect();
        rustix::io::pwrite(&file, &numbers, 0).unwrap();
        let (_, head, _) = Journal::open(file).unwrap();
        // Its position was that of each stream.
        assert_eq!((head.trimmed, head.position, head.output, head.stop), (1, 2 + 3, [4, 5], 8));
        assert_eq!((head.stopped_at, head.readers, head.alone_since, head.ended_at), (0, 0, 0, 0));
    }

    #[test]
    fn output_that_nobody_has_seen_can_grow() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        let place = write(&mut journal, &Record::Output(1, 7, 1));
        write(&mut journal, &Record::Output(0, 8, 2));
        assert!(journal.amend(place, 77));
        let (_, _, read) = Journal::open(file).unwrap();
        assert_eq!(
            read.iter().map(|(_, record)| record).collect::<Vec<_>>(),
            [&Record::Output(1, 77, 1), &Record::Output(0, 8, 2)]
        );
    }

    #[test]
    fn output_of_an_earlier_version_has_no_time() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        journal.append(&[&4u32.to_ne_bytes()[..], &[2], &9u32.to_ne_bytes()[..]].concat());
        let (_, _, read) = Journal::open(file).unwrap();
        assert_eq!(read[0].1, Record::Output(1, 9, 0));
    }

    #[test]
    fn what_no_daemon_writes_is_an_error() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        journal.append(&[1, 0, 0, 0, 99, 0]);
        assert!(Journal::open(file).is_err());
    }
}
