//! Bytes from a pipe: where they are cut, and how they look in `stdout` and `stderr` events.

use std::io;

use base64::Engine;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use tokio::net::unix::pipe;

use crate::types::{Encoding, Output};

/// Output is read into slabs of this size, bytes, piece behind piece: so a slab that is kept is nearly full.
const SLAB: usize = 256 * 1024;

/// Least room for a piece, bytes; with less a new slab is begun.
const ROOM: usize = 64 * 1024;

/// A shorter piece is copied, bytes: a line of output must not keep a slab alive.
const COPIED: usize = 16 * 1024;

/// Reads one output of a command, in pieces that are valid UTF-8 where the output is: a character that arrives in two
/// reads is held back until it is whole.
#[derive(Debug)]
pub struct Source {
    /// `None` when it has ended.
    pipe: Option<pipe::Receiver>,
    buffer: BytesMut,
    /// Most that is read at once, bytes.
    most: usize,
    /// Start of a character, at most 3 bytes.
    pending: Bytes,
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// The bytes as they came.
    pub bytes: Bytes,
    /// What can be shown of them, and of what was held back before.
    pub shown: Option<Bytes>,
}

impl Source {
    /// Of this pipe, at most `most` bytes at once.
    pub fn new(pipe: pipe::Receiver, most: usize) -> Self {
        Self { pipe: Some(pipe), buffer: BytesMut::new(), most, pending: Bytes::new() }
    }

    /// Whether there may be more.
    pub fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reads the next piece; `None` at the end, and never again after it. Cancelling it loses nothing.
    pub async fn read(&mut self) -> Option<Read> {
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        let read: io::Result<usize> = loop {
            if let Err(error) = pipe.readable().await {
                break Err(error);
            }
            // Not before there is something: most executions write nothing to one of the two.
            if self.buffer.capacity() < ROOM {
                self.buffer = BytesMut::with_capacity(SLAB);
            }
            match pipe.try_read_buf(&mut (&mut self.buffer).limit(self.most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => break read,
            }
        };
        match read {
            Ok(length) if length > 0 => {}
            // A pipe that cannot be read says nothing more either.
            _ => {
                self.pipe = None;
                return None;
            }
        }
        let bytes = if self.buffer.len() < COPIED {
            let bytes = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            bytes
        } else {
            self.buffer.split().freeze()
        };
        let shown = self.cut(bytes.clone());
        Some(Read { bytes, shown })
    }

    fn cut(&mut self, bytes: Bytes) -> Option<Bytes> {
        let mut all = if self.pending.is_empty() { bytes } else { [&*self.pending, &*bytes].concat().into() };
        self.pending = all.split_off(all.len() - unfinished(&all));
        (!all.is_empty()).then_some(all)
    }

    /// What was held back when the output ended.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then_some(rest)
    }
}

/// Cuts output into pieces of at most `most` bytes, between characters.
pub fn pieces(mut bytes: Bytes, most: usize) -> impl Iterator<Item = Bytes> {
    // Room for any character, so that each piece has something in it.
    let most = most.max(4);
    std::iter::from_fn(move || {
        let length = bytes.len().min(most);
        let cut = if length < bytes.len() { length - unfinished(&bytes[..length]) } else { length };
        (length > 0).then(|| bytes.split_to(cut))
    })
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

    use bytes::Bytes;
    use tokio::net::unix::pipe;

    use super::{ROOM, SLAB, Source, json, pieces, unfinished};

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
        let (reader, writer) = std::io::pipe().unwrap();
        let mut writer = writer;
        let reader: std::os::fd::OwnedFd = reader.into();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut source = Source::new(pipe::Receiver::from_owned_fd(reader).unwrap(), SLAB);
        let euro = "€".as_bytes();
        writer.write_all(&[b'a', euro[0]]).unwrap();
        assert_eq!(source.read().await.unwrap().shown.unwrap(), "a");
        writer.write_all(&euro[1..2]).unwrap();
        let read = source.read().await.unwrap();
        assert_eq!((&*read.bytes, read.shown), (&euro[1..2], None));
        writer.write_all(&[euro[2], b'b', euro[0]]).unwrap();
        assert_eq!(source.read().await.unwrap().shown.unwrap(), "€b");
        drop(writer);
        assert!(source.read().await.is_none() && !source.is_open());
        assert_eq!(source.rest().unwrap(), &euro[..1], "an unfinished character is not lost at the end");
        assert!(source.rest().is_none());
    }

    #[tokio::test]
    async fn large_and_small_pieces_arrive_whole() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader: std::os::fd::OwnedFd = reader.into();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut source = Source::new(pipe::Receiver::from_owned_fd(reader).unwrap(), SLAB);
        let text: Vec<u8> = (0..SLAB * 3).map(|index| b'a' + (index % 23) as u8).collect();
        let expected = text.clone();
        let feeder = std::thread::spawn(move || {
            for piece in text.chunks(ROOM - 1) {
                let (small, large) = piece.split_at(piece.len().min(7));
                writer.write_all(small).unwrap();
                writer.write_all(large).unwrap();
            }
        });
        let mut all = Vec::new();
        while let Some(read) = source.read().await {
            all.extend_from_slice(&read.bytes);
        }
        feeder.join().unwrap();
        assert!(all == expected);
    }

    #[test]
    fn pieces_end_between_characters() {
        let text = "a€€😀b";
        let cut = |most| -> Vec<_> { pieces(text.into(), most).collect() };
        assert_eq!(cut(1), ["a€", "€", "😀", "b"], "at least a character");
        assert_eq!(cut(6), ["a€", "€", "😀b"]);
        assert_eq!(cut(100), [text]);
        assert_eq!(pieces(Default::default(), 5).count(), 0);
        let binary = [0x80u8; 10];
        assert_eq!(pieces(Bytes::copy_from_slice(&binary), 4).map(|piece| piece.len()).collect::<Vec<_>>(), [4, 4, 2]);
    }

    #[test]
    fn text_is_text_and_other_bytes_survive_as_base64() {
        assert_eq!(json("a\n\"€".as_bytes()), r#"{"data":"a\n\"€"}"#);
        assert_eq!(json(&[0xff, 0, b'\r']), r#"{"data":"/wAN","encoding":"base64"}"#);
    }
}
