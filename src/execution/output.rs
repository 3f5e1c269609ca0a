//! Bytes from a pipe: where they are cut, and how they look in `stdout` and `stderr` events.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use base64::Engine;
use serde::Serialize;
use tokio::io::Interest;

use super::spool::Spool;
use super::transit::{Shelter, Transit};
use crate::container::PIPE_BYTES;
use thaw_client::types::{Encoding, Output};
use thaw_os::kernel::Watched;

/// One output of a command, moved into its spool as it comes.
#[derive(Debug)]
pub struct Source {
    /// `None` when it has ended.
    pipe: Option<Watched>,
    spool: Arc<Spool>,
    /// Most that is moved at once, bytes.
    most: usize,
    /// Once the command has written faster than this was read.
    transit: Option<Transit>,
    shelter: Shelter,
}

/// What comes at once tells that a command writes faster than it is read, bytes: half of its pipe.
const FAST: usize = PIPE_BYTES / 2;

impl Source {
    /// From `pipe`, which does not block, into `spool`, at most `most` bytes at once.
    ///
    /// # Errors
    /// The pipe cannot be polled.
    pub fn new(pipe: OwnedFd, spool: Arc<Spool>, most: usize, shelter: Shelter) -> io::Result<Self> {
        Ok(Self { pipe: Some(Watched::new(pipe, Interest::READABLE)?), spool, most, transit: None, shelter })
    }

    /// Whether there may be more.
    pub fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Moves the next piece; whether there was one: `false` at the end, and never again after it. Cancelling it loses
    /// nothing.
    pub async fn read(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        let moved = pipe.run(Interest::READABLE, |pipe| match &self.transit {
            Some(transit) => transit.pass(pipe, &self.spool, self.most),
            None => self.spool.take(pipe, self.most),
        });
        match moved.await {
            Ok(length) if length > 0 => {
                if length >= FAST && self.transit.is_none() {
                    // Without one it is slower, and nothing else.
                    self.transit = Transit::new(&self.shelter).ok();
                }
                true
            }
            ended => {
                if let Err(error) = ended {
                    // One that cannot be read says nothing more either.
                    tracing::error!(%error, "a command's output cannot be read");
                }
                (self.pipe, self.transit) = (None, None);
                self.spool.settle();
                false
            }
        }
    }
}

/// Cuts what `spool` has from `from` on into pieces of at most `most` bytes, between characters: where each begins, and
/// how long it is. The start of a character at the end is left out, unless `all` has come.
pub fn pieces(spool: &Spool, mut from: u64, most: usize, all: bool) -> impl Iterator<Item = (u64, u32)> {
    let length = spool.length();
    let end = if all { length } else { length - unfinished_before(spool, from, length) };
    // Room for any character, so that each piece has something in it.
    let most = most.clamp(4, u32::MAX as usize) as u64;
    std::iter::from_fn(move || {
        let whole = (end - from).min(most);
        let cut = from + whole;
        let cut = if cut < end { cut - unfinished_before(spool, from, cut) } else { cut };
        let piece = (from, (cut - from) as u32);
        from = cut;
        (piece.1 > 0).then_some(piece)
    })
}

/// How many of the last bytes before `end` are the start of a character.
fn unfinished_before(spool: &Spool, from: u64, end: u64) -> u64 {
    unfinished(&spool.read(end.saturating_sub(3).max(from), end)) as u64
}

/// How many bytes at the end are the start of a character (RFC 3629, section 4).
fn unfinished(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let start = &bytes[bytes.len() - length..];
        if start[0] & 0xc0 == 0x80 {
            continue;
        }
        // A whole character, or nothing that could become one, is not held back.
        let open = std::str::from_utf8(start).is_err_and(|error| error.error_len().is_none());
        return if open { length } else { 0 };
    }
    0
}

/// The payload of an event, [`Output`] as JSON.
pub fn json(bytes: &[u8]) -> String {
    /// As [`Output`], without a copy of the text.
    #[derive(Serialize)]
    struct Text<'a> {
        data: &'a str,
    }
    match std::str::from_utf8(bytes) {
        Ok(data) => serde_json::to_string(&Text { data }),
        Err(_) => serde_json::to_string(&Output {
            data: base64::engine::general_purpose::STANDARD.encode(bytes),
            encoding: Some(Encoding::Base64),
        }),
    }
    .expect("strings always serialize")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::{Source, json, pieces, unfinished};
    use crate::execution::log::Stream;
    use crate::execution::spool::{Spool, Spools};
    use crate::execution::transit::Shelter;

    fn spool() -> Arc<Spool> {
        Arc::new(Spool::new(Spools::default().file().unwrap()).unwrap())
    }

    fn source(spool: &Arc<Spool>) -> (Source, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader: OwnedFd = reader.into();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let shelter = Shelter::new(None, "e-1", Stream::Stdout);
        (Source::new(reader, Arc::clone(spool), 256 * 1024, shelter).unwrap(), writer)
    }

    #[test]
    fn what_may_become_a_character_is_unfinished() {
        let euro = "€".as_bytes();
        for (bytes, expected) in [
            (&b""[..], 0),
            (b"a", 0),
            (euro, 0),
            (&euro[..1], 1),
            (&euro[..2], 2),
            (&[b'a', euro[0]], 1),
            ("😀".as_bytes(), 0),
            (&"😀".as_bytes()[..3], 3),
            (&[0xff], 0),
            (&[0xe2, 0xff], 0),
            (&[0x80, 0x80, 0x80, 0x80], 0),
            // Overlong, hence never a character.
            (&[0xc0], 0),
        ] {
            assert_eq!(unfinished(bytes), expected, "{bytes:x?}");
        }
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

    #[tokio::test]
    async fn much_output_takes_room_in_advance_and_gives_it_back() {
        let file = Spools::default().file().unwrap();
        let spool = Arc::new(Spool::new(Arc::clone(&file)).unwrap());
        let (mut source, mut writer) = source(&spool);
        let text: Vec<u8> = (0..3_000_001).map(|index| b'a' + (index % 23) as u8).collect();
        let expected = text.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&text).unwrap());
        let size = || rustix::fs::fstat(&file).unwrap().st_size as u64;
        let mut in_advance = false;
        while source.read().await {
            in_advance |= size() > spool.length();
            // Whoever is given the file at any time knows how much has come, whatever its size.
            assert_eq!(Spool::new(Arc::clone(&file)).unwrap().length(), spool.length());
        }
        feeder.join().unwrap();
        assert!(in_advance, "large pages are taken for what is within the size");
        assert_eq!(size(), 3_000_001);
        assert!(*spool.read(0, spool.length()) == expected);
    }

    #[test]
    fn pieces_end_between_characters() {
        let text = "a€€😀b";
        let cut = |text: &[u8], most| -> Vec<u32> {
            let spool = spool();
            spool.write(text).unwrap();
            pieces(&spool, 0, most, true).map(|(_, length)| length).collect()
        };
        assert_eq!(cut(text.as_bytes(), 1), [4, 3, 4, 1], "at least a character");
        assert_eq!(cut(text.as_bytes(), 6), [4, 3, 5]);
        assert_eq!(cut(text.as_bytes(), 100), [12]);
        assert_eq!(cut(b"", 5), [] as [u32; 0]);
        assert_eq!(cut(&[0x80; 10], 4), [4, 4, 2]);
    }

    #[test]
    fn text_is_text_and_other_bytes_survive_as_base64() {
        assert_eq!(json("a\n\"€".as_bytes()), r#"{"data":"a\n\"€"}"#);
        assert_eq!(json(&[0xff, 0, b'\r']), r#"{"data":"/wAN","encoding":"base64"}"#);
    }
}
