//! Cuts output into events, and renders `stdout` and `stderr` events.

use base64::Engine;
use serde::Serialize;

use super::spool::Spool;
use thaw_client::time::Timestamp;
use thaw_client::types::{Encoding, Output};

/// Cuts the bytes of `spool` after `from` into pieces of at most `most` bytes, at character boundaries; returns start
/// and length of each. An incomplete character at the end is left out, unless `all` output has arrived.
pub fn pieces(spool: &Spool, mut from: u64, most: usize, all: bool) -> impl Iterator<Item = (u64, u32)> {
    let length = spool.length();
    let end = if all { length } else { length - unfinished_before(spool, from, length) };
    // Room for any character, so that no piece is empty.
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

/// Number of bytes before `end` that begin an incomplete character.
fn unfinished_before(spool: &Spool, from: u64, end: u64) -> u64 {
    unfinished(&spool.read(end.saturating_sub(3).max(from), end)) as u64
}

/// Number of bytes at the end that begin an incomplete character (RFC 3629, section 4).
fn unfinished(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let start = &bytes[bytes.len() - length..];
        if start[0] & 0xc0 == 0x80 {
            continue;
        }
        // Only bytes that can still become a character are held back.
        let open = std::str::from_utf8(start).is_err_and(|error| error.error_len().is_none());
        return if open { length } else { 0 };
    }
    0
}

/// Payload of an event: [`Output`] as JSON.
pub fn json(bytes: &[u8], at: Timestamp) -> String {
    /// [`Output`] that borrows its text.
    #[derive(Serialize)]
    struct Text<'a> {
        data: &'a str,
        at: Timestamp,
    }
    match std::str::from_utf8(bytes) {
        Ok(data) => serde_json::to_string(&Text { data, at }),
        Err(_) => serde_json::to_string(&Output {
            data: base64::engine::general_purpose::STANDARD.encode(bytes),
            encoding: Some(Encoding::Base64),
            at: Some(at),
        }),
    }
    .expect("strings always serialize")
}

#[cfg(test)]
mod tests {
    use super::super::spool::Spools;
    use super::*;

    fn spool() -> Spool {
        Spool::new(Spools::default().file().unwrap(), 1 << 20).unwrap()
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
        let at = Timestamp::from_unix_ms(1_796_004_900_123);
        let is = r#","at":"2026-11-30T02:15:00.123Z"}"#;
        assert_eq!(json("a\n\"€".as_bytes(), at), format!(r#"{{"data":"a\n\"€"{is}"#));
        assert_eq!(json(&[0xff, 0, b'\r'], at), format!(r#"{{"data":"/wAN","encoding":"base64"{is}"#));
    }
}
