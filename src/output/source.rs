//! Moves one output of a command from its pipe into its spool.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::time::{Duration, Instant, sleep_until};

use super::pipe::PIPE_BYTES;
use super::spool::Spool;
use super::transit::{Shelter, Transit};
use thaw_os::kernel::Watched;

/// One output of a command, with the pipe it comes from.
#[derive(Debug)]
pub struct Source {
    /// `None` after the end of the output.
    pipe: Option<Watched>,
    spool: Arc<Spool>,
    amounts: Amounts,
    /// Once the command has written faster than this was read.
    transit: Option<Transit>,
    shelter: Shelter,
    pace: Pace,
}

/// How much output is moved, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Amounts {
    /// At once, at most.
    pub most: usize,
    /// So much at once tells that a command writes faster than it is read.
    pub fast: usize,
}

/// Pieces of less than [`SMALL`] bytes that are read as they come, in a second. A command that writes more of them than
/// that, one line at a time, would keep the daemon busy for each: it is read [`PAUSE`] later, and then more at once.
const SMALL_PIECES: u32 = 1000;

/// What a small piece is, bytes.
const SMALL: usize = 4096;

/// Time between two readings of a command that writes many small pieces.
const PAUSE: Duration = Duration::from_millis(2);

/// What the daemon may spend on understanding one command's output: one part in so many of a processor.
const UNDERSTANDING_PART: u32 = 10;

/// What it may spend on it at once before the command has to wait for its next reading.
const UNDERSTANDING_BURST: Duration = Duration::from_millis(100);

/// How often a command's output may still be read piece by piece.
#[derive(Debug)]
struct Pace {
    /// What was spent on understanding it, in the time that began at `working_since`.
    worked: Duration,
    working_since: Instant,
    /// Small pieces so far, in the second that began then.
    pieces: u32,
    since: Instant,
    /// When the next reading is due.
    due: Option<Instant>,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self { worked: Duration::ZERO, working_since: now, pieces: 0, since: now, due: None }
    }

    /// A piece of that many bytes came.
    fn took(&mut self, length: usize) {
        let now = Instant::now();
        if now - self.since >= Duration::from_secs(1) {
            (self.pieces, self.since) = (0, now);
        }
        self.pieces += u32::from(length < SMALL);
        self.due = (self.pieces > SMALL_PIECES && length < SMALL).then(|| now + PAUSE);
    }

    /// So much of a processor was spent on understanding the last piece.
    fn spent(&mut self, time: Duration) {
        let now = Instant::now();
        let paid = self.working_since + self.worked * UNDERSTANDING_PART;
        if now >= paid.max(self.working_since + Duration::from_secs(1)) {
            (self.worked, self.working_since) = (Duration::ZERO, now);
        }
        self.worked += time;
        if self.worked > UNDERSTANDING_BURST {
            self.due = self.due.max(Some(self.working_since + self.worked * UNDERSTANDING_PART));
        }
    }
}

impl Source {
    /// From `pipe`, which does not block, into `spool`.
    ///
    /// # Errors
    /// The pipe cannot be polled.
    pub fn new(pipe: OwnedFd, spool: Arc<Spool>, amounts: Amounts, shelter: Shelter) -> io::Result<Self> {
        Ok(Self {
            pipe: Some(Watched::new(pipe, Interest::READABLE)?),
            spool,
            amounts,
            transit: None,
            shelter,
            pace: Pace::new(),
        })
    }

    /// Whether more output may come.
    pub fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Tells how much processor time it took to understand the last piece. A command that writes what takes long waits.
    pub fn spent(&mut self, time: Duration) {
        self.pace.spent(time);
    }

    /// Moves what the pipe holds now, and reads no further: others may still have its other end. Returns whether there
    /// was anything.
    pub fn take_rest(&mut self) -> bool {
        let Some(pipe) = self.pipe.take() else { return false };
        // A command may have made it larger (fcntl(2), F_SETPIPE_SZ).
        let mut left = rustix::pipe::fcntl_getpipe_size(pipe.fd()).unwrap_or(PIPE_BYTES);
        let mut any = false;
        // A pipe holds no more than that, and what is written from now on is not wanted.
        while left > 0 {
            let moved = match &self.transit {
                Some(transit) => transit.pass(pipe.fd(), &self.spool, left),
                None => self.spool.take(pipe.fd(), left),
            };
            match moved {
                Ok(0) => break,
                Ok(length) => (left, any) = (left.saturating_sub(length), true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::error!(%error, "the rest of a command's output cannot be read");
                    break;
                }
            }
        }
        self.transit = None;
        self.spool.settle();
        any
    }

    /// Moves the next piece. Returns `false` at the end; then pending for ever. Dropping the future loses no output.
    pub async fn read(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        if let Some(due) = self.pace.due {
            sleep_until(due).await;
            self.pace.due = None;
        }
        let Amounts { most, fast } = self.amounts;
        let moved = pipe.run(Interest::READABLE, |pipe| match &self.transit {
            Some(transit) => transit.pass(pipe, &self.spool, most),
            None => self.spool.take(pipe, most),
        });
        match moved.await {
            Ok(length) if length > 0 => {
                self.pace.took(length);
                if length >= fast && self.transit.is_none() {
                    // Without one it is slower, and nothing else.
                    self.transit = Transit::new(&self.shelter).ok();
                }
                true
            }
            ended => {
                if let Err(error) = ended {
                    // A pipe that cannot be read is treated as ended.
                    tracing::error!(%error, "a command's output cannot be read");
                }
                (self.pipe, self.transit) = (None, None);
                self.spool.settle();
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::spool::Spools;
    use super::super::stream::Stream;
    use super::super::text::pieces;
    use super::*;

    fn spool() -> Arc<Spool> {
        Arc::new(Spool::new(Spools::default().file().unwrap(), 1 << 20).unwrap())
    }

    const AMOUNTS: Amounts = Amounts { most: 256 * 1024, fast: 128 * 1024 };

    fn source(spool: &Arc<Spool>) -> (Source, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader: OwnedFd = reader.into();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let shelter = Shelter::new(None, "e-1", Stream::Stdout);
        (Source::new(reader, Arc::clone(spool), AMOUNTS, shelter).unwrap(), writer)
    }

    #[tokio::test]
    async fn a_split_character_is_held_back_until_it_is_whole() {
        let spool = spool();
        let (mut source, mut writer) = source(&spool);
        let euro = "€".as_bytes();
        let cut = |from, all| pieces(&spool, from, 100, all).collect::<Vec<_>>();
        writer.write_all(&[b'a', euro[0]]).unwrap();
        assert!(source.read().await);
        assert_eq!(cut(0, false), [(0, 1)]);
        writer.write_all(&euro[1..2]).unwrap();
        assert!(source.read().await);
        assert_eq!(cut(1, false), []);
        writer.write_all(&[euro[2], b'b', euro[0]]).unwrap();
        assert!(source.read().await);
        assert_eq!(cut(1, false), [(1, 4)]);
        drop(writer);
        assert!(!source.read().await && !source.is_open());
        assert_eq!(cut(5, true), [(5, 1)], "an unfinished character is not lost at the end");
        assert_eq!(cut(6, true), []);
        assert_eq!(*spool.read(0, 6), [b"a", euro, b"b", &euro[..1]].concat());
    }

    #[tokio::test]
    async fn the_rest_is_taken_although_somebody_could_still_write() {
        let spool = spool();
        let (mut source, mut writer) = source(&spool);
        writer.write_all(b"said before the end").unwrap();
        assert!(source.take_rest() && !source.is_open());
        assert_eq!(&*spool.read(0, spool.length()), b"said before the end");
        assert!(!source.take_rest(), "only once");
        assert_eq!(writer.write_all(b"too late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn large_and_small_pieces_arrive_whole() {
        let spool = spool();
        let (mut source, mut writer) = source(&spool);
        let text: Vec<u8> = (0..768 * 1024).map(|index| b'a' + (index % 23) as u8).collect();
        let expected = text.clone();
        let feeder = std::thread::spawn(move || {
            for piece in text.chunks(64 * 1024 - 1) {
                let (small, large) = piece.split_at(piece.len().min(7));
                writer.write_all(small).unwrap();
                writer.write_all(large).unwrap();
            }
        });
        while source.read().await {}
        feeder.join().unwrap();
        assert!(*spool.read(0, spool.length()) == expected);
        spool.punch(100_000);
        assert!(spool.read(100_000, spool.length()) == expected[100_000..], "what is thrown away is what comes before");
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_pieces_are_read_together() {
        let mut pace = Pace::new();
        for _ in 0..SMALL_PIECES {
            pace.took(2);
            assert_eq!(pace.due, None);
        }
        pace.took(2);
        assert_eq!(pace.due, Some(Instant::now() + PAUSE), "and from here on some at a time");
        // Who writes much at once is read as fast as can be.
        pace.took(SMALL);
        assert_eq!(pace.due, None);
        tokio::time::advance(Duration::from_secs(1)).await;
        pace.took(2);
        assert_eq!(pace.due, None, "the next second begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_to_understand_is_read_as_fast_as_a_part_of_a_processor_can() {
        let mut pace = Pace::new();
        let begun = Instant::now();
        let mut work = Duration::ZERO;
        while begun.elapsed() < Duration::from_secs(20) {
            // Each piece takes 5 ms to understand and comes at once.
            pace.spent(Duration::from_millis(5));
            work += Duration::from_millis(5);
            match pace.due.take() {
                Some(due) => tokio::time::sleep_until(due).await,
                None => tokio::time::advance(Duration::from_millis(5)).await,
            }
        }
        let share = work.as_secs_f64() / begun.elapsed().as_secs_f64();
        assert!((0.08..=0.12).contains(&share), "{share}");
        // Who pauses may be understood at once again.
        tokio::time::advance(Duration::from_secs(2)).await;
        pace.spent(UNDERSTANDING_BURST);
        assert_eq!(pace.due, None);
    }

    #[tokio::test]
    async fn much_output_takes_room_in_advance_and_gives_it_back() {
        let file = Spools::default().file().unwrap();
        let spool = Arc::new(Spool::new(Arc::clone(&file), 1 << 20).unwrap());
        let (mut source, mut writer) = source(&spool);
        let text: Vec<u8> = (0..3_000_001).map(|index| b'a' + (index % 23) as u8).collect();
        let expected = text.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&text).unwrap());
        let size = || rustix::fs::fstat(&file).unwrap().st_size as u64;
        let mut in_advance = false;
        while source.read().await {
            in_advance |= size() > spool.length();
            // Whoever is given the file at any time knows how much has come, whatever its size.
            assert_eq!(Spool::new(Arc::clone(&file), 1 << 20).unwrap().length(), spool.length());
        }
        feeder.join().unwrap();
        assert!(in_advance, "large pages are taken for what is within the size");
        assert_eq!(size(), 3_000_001);
        assert!(*spool.read(0, spool.length()) == expected);
    }

    #[tokio::test]
    async fn a_second_pipe_is_there_from_the_configured_amount_on() {
        for (bytes, expected) in [(9_999, false), (10_000, true)] {
            let spool = spool();
            let (mut source, mut writer) = source(&spool);
            source.amounts.fast = 10_000;
            writer.write_all(&vec![b'a'; bytes]).unwrap();
            assert!(source.read().await);
            assert_eq!((source.transit.is_some(), spool.length()), (expected, bytes as u64));
            writer.write_all(b"more").unwrap();
            assert!(source.read().await);
            assert_eq!(&*spool.read(bytes as u64, spool.length()), b"more");
        }
    }

    #[tokio::test]
    async fn large_pages_are_taken_from_the_configured_amount_on() {
        for (bytes, expected) in [(99_999, false), (100_000, true)] {
            let file = Spools::default().file().unwrap();
            let spool = Arc::new(Spool::new(Arc::clone(&file), 100_000).unwrap());
            let (mut source, mut writer) = source(&spool);
            let feeder = std::thread::spawn(move || {
                writer.write_all(&vec![b'a'; bytes]).unwrap();
                writer
            });
            while spool.length() < bytes as u64 {
                assert!(source.read().await);
            }
            let mut writer = feeder.join().unwrap();
            writer.write_all(b"more").unwrap();
            assert!(source.read().await);
            let size = rustix::fs::fstat(&file).unwrap().st_size as u64;
            assert_eq!(size > spool.length(), expected, "{size}");
        }
    }
}
