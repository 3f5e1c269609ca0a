//! What was published of an execution, and in which order, in a file in memory: written before anybody is shown it, so
//! that the next daemon numbers everything as this one did.
//!
//! The file begins with a [`Head`], which a single write replaces. Records follow from [`FIRST`]: length, kind, content.
//! A record that is not whole was being written when the daemon was killed; it was not published.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::followers::Position;

/// Where the first record is: behind a page for the head.
const FIRST: u64 = 4096;

/// Length of an encoded [`Head`], bytes. What an earlier version did not write yet reads as 0.
const HEAD: usize = 14 * 8;

/// Length of what stands before a record's content, bytes.
const PREFIX: usize = 5;

/// Largest record, bytes: the largest event, an output line of 1 MiB as JSON, and some more.
const MAX_RECORD: usize = 16 << 20;

/// Where the log begins that the journal tells of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// Place of the record of the first event that is kept; 0 for [`FIRST`].
    pub start: u64,
    /// Events before that one.
    pub trimmed: u64,
    /// Position behind those.
    pub position: Position,
    /// Bytes of output in them.
    pub output: [u64; 2],
    /// Place of the last [`Record::Checkpoint`]; 0 when there is none.
    pub checkpoint: u64,
    /// 1 once the command has been handed over: from then on it may run.
    pub submitted: u64,
    /// Not 0 once it was decided that the command has to end: why, in numbers of the execution's task.
    pub stop: u64,
    /// When that was, nanoseconds since the machine started.
    pub stopped_at: u64,
    /// Readers for whom the command waits, those that are away included.
    pub readers: u64,
    /// What all of them have taken.
    pub taken: Position,
    /// Since when there has been no reader, nanoseconds since the machine started; 0 while there is one.
    pub alone_since: u64,
    /// When the `exit` event was written, nanoseconds since the machine started; 0 before.
    pub ended_at: u64,
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let [o0, o1] = self.output;
        let mut bytes = [0; HEAD];
        // The second 0 was a part of the position once.
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

/// Where the reader of a CLI's output is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint<P> {
    /// Bytes of standard output that it has been given.
    pub offset: u64,
    /// The reader.
    pub parser: P,
}

/// One step of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// An event with this many bytes of standard output (0) or standard error (1).
    Output(usize, u32),
    /// Another event: its name and its payload as JSON.
    Event(String, String),
    /// A [`Checkpoint`] as JSON.
    Checkpoint(Vec<u8>),
}

impl Record {
    /// Adds it to `buffer` as it is written.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let mut put = |kind: u8, parts: &[&[u8]]| {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            buffer.extend_from_slice(&(length as u32).to_ne_bytes());
            buffer.push(kind);
            parts.iter().for_each(|part| buffer.extend_from_slice(part));
        };
        match self {
            Self::Output(stream, length) => put(1 + *stream as u8, &[&length.to_ne_bytes()]),
            Self::Event(name, data) => put(3, &[&[name.len() as u8], name.as_bytes(), data.as_bytes()]),
            Self::Checkpoint(json) => put(4, &[json]),
        }
    }

    fn decode(kind: u8, content: &[u8]) -> Option<Self> {
        Some(match kind {
            1 | 2 => Self::Output(usize::from(kind - 1), u32::from_ne_bytes(content.try_into().ok()?)),
            3 => {
                let (length, rest) = content.split_first()?;
                let (name, data) = rest.split_at_checked(usize::from(*length))?;
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
                Self::Event(text(name)?, text(data)?)
            }
            4 => Self::Checkpoint(content.to_vec()),
            _ => return None,
        })
    }
}

/// Records with their places.
pub type Placed = Vec<(u64, Record)>;

/// The file.
#[derive(Debug)]
pub struct Journal {
    file: Arc<OwnedFd>,
    end: u64,
    punched: u64,
    /// As written the last time.
    head: Head,
    /// It could not be written: whatever comes now will not be known to the next daemon.
    broken: bool,
}

impl Journal {
    /// An empty one in an empty file.
    pub fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, end: FIRST, punched: FIRST, head: Head::default(), broken: false }
    }

    /// Reads what an earlier daemon wrote: head, and records with their places, from the first that is needed on.
    ///
    /// # Errors
    /// It cannot be read, or holds what no daemon writes.
    pub fn open(file: Arc<OwnedFd>) -> io::Result<(Self, Head, Placed)> {
        let length = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let mut head = [0; HEAD];
        // An earlier version's is shorter.
        let written = length.min(HEAD as u64) as usize;
        read_exact(&file, &mut head[..written], 0)?;
        let head = Head::decode(&head);
        let needed = [head.start, head.checkpoint].into_iter().filter(|place| *place > 0).min().unwrap_or(FIRST);
        let mut records = Vec::new();
        let mut at = if head.start == 0 { FIRST } else { needed };
        let first = at;
        while at + PREFIX as u64 <= length {
            let mut prefix = [0; PREFIX];
            read_exact(&file, &mut prefix, at)?;
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
            read_exact(&file, &mut content, at + PREFIX as u64)?;
            records.push((at, Record::decode(kind, &content).ok_or_else(corrupt)?));
            at = next;
        }
        // Half a record that was never published must not stand before the next one.
        if at < length {
            rustix::fs::ftruncate(&file, at)?;
        }
        Ok((Self { file, end: at.max(FIRST), punched: first, head, broken: false }, head, records))
    }

    /// Writes encoded records; returns the place of the first. Once it has returned, they survive the daemon.
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

    /// Replaces the length of the [`Record::Output`] at `place`, which nobody has been shown yet. Returns whether it is
    /// written.
    pub fn amend(&mut self, place: u64, length: u32) -> bool {
        // Four bytes within a page are written whole or not at all, and either length is true.
        !self.broken && rustix::io::pwrite(&self.file, &length.to_ne_bytes(), place + PREFIX as u64) == Ok(4)
    }

    /// The file, for the keeper.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// The head as it was written the last time.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Replaces the head, and throws away the records that it makes unnecessary.
    pub fn set_head(&mut self, head: &Head) {
        if self.broken {
            return;
        }
        // Within one page, hence whole or not at all.
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

fn read_exact(file: &OwnedFd, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                at += read as u64;
                buffer = &mut buffer[read..];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Head, Journal, Record};
    use crate::output::spool::Spools;

    fn records() -> Vec<Record> {
        vec![
            Record::Event("started".to_owned(), r#"{"a":1}"#.to_owned()),
            Record::Output(0, 77),
            Record::Output(1, 1),
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
            write(&mut journal, &Record::Output(1, 1));
            let end = write(&mut journal, &Record::Event("x".to_owned(), "12345".to_owned()));
            rustix::fs::ftruncate(journal.file(), end + cut).unwrap();
            let (mut journal, _, read) = Journal::open(std::sync::Arc::clone(&file)).unwrap();
            let whole = usize::from(cut >= 12);
            assert_eq!(read.len(), 1 + whole, "{cut}");
            write(&mut journal, &Record::Output(0, 5));
            let (_, _, read) = Journal::open(file).unwrap();
            assert_eq!(read.last().unwrap().1, Record::Output(0, 5), "{cut}");
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
        let place = write(&mut journal, &Record::Output(1, 7));
        write(&mut journal, &Record::Output(0, 8));
        assert!(journal.amend(place, 77));
        let (_, _, read) = Journal::open(file).unwrap();
        assert_eq!(
            read.iter().map(|(_, record)| record).collect::<Vec<_>>(),
            [&Record::Output(1, 77), &Record::Output(0, 8)]
        );
    }

    #[test]
    fn what_no_daemon_writes_is_an_error() {
        let file = Spools::default().file().unwrap();
        let mut journal = Journal::new(std::sync::Arc::clone(&file));
        journal.append(&[1, 0, 0, 0, 99, 0]);
        assert!(Journal::open(file).is_err());
    }
}
