//! Lines of JSON, in and out.

use std::io::{self, Write};

use serde::Serialize;
use zeroize::Zeroize;

use crate::provider::dialect::LINE_LIMIT;

/// Bytes for a CLI's standard input. They may hold credentials: wiped when dropped, and never printed.
#[derive(Clone, Default, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
pub struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl std::ops::Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Input {
    /// One line for each of `messages`, without any copy of them left behind.
    pub(super) fn lines<T: Serialize>(messages: &[T]) -> Self {
        // Counted first: a vector that grows would leave its former contents in freed memory.
        let mut length = Length(0);
        messages.iter().for_each(|message| write_line(&mut length, message));
        let mut bytes = Vec::with_capacity(length.0);
        messages.iter().for_each(|message| write_line(&mut bytes, message));
        Self(bytes)
    }

    /// One line.
    pub(super) fn line<T: Serialize>(message: &T) -> Self {
        Self::lines(&[message])
    }
}

fn write_line<T: Serialize>(writer: &mut impl Write, message: &T) {
    // Neither sink fails, and the messages have no maps with keys other than strings.
    let written = serde_json::to_writer(&mut *writer, message);
    debug_assert!(written.is_ok());
    let _ = writer.write_all(b"\n");
}

struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts output into lines; one longer than [`LINE_LIMIT`] is passed over.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// The lines that `bytes` complete, without their newlines.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.append(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            if !std::mem::take(&mut self.skipping) {
                lines.push(line);
            }
        }
        self.append(bytes);
        lines
    }

    fn append(&mut self, part: &[u8]) {
        if self.skipping || self.line.len() + part.len() > LINE_LIMIT {
            self.skipping = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.line.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_passed_over_and_the_next_ones_read() {
        let mut lines = Lines::default();
        for _ in 0..3 {
            assert!(lines.push(&vec![b'x'; LINE_LIMIT / 2 + 1]).is_empty());
            assert!(lines.line.len() <= LINE_LIMIT);
        }
        assert_eq!(lines.push(b"x\nab"), Vec::<Vec<u8>>::new());
        assert_eq!(lines.push(b"c\n\nd\n"), [b"abc".to_vec(), Vec::new(), b"d".to_vec()]);
    }

    #[test]
    fn input_is_exact_and_is_not_printed() {
        let input = Input::lines(&["se\"cret", "x"]);
        assert_eq!(&*input, b"\"se\\\"cret\"\n\"x\"\n");
        assert_eq!(input.0.len(), input.0.capacity(), "a grown vector leaves copies behind");
        assert_eq!(format!("{input:?}"), "[15 bytes]");
    }
}
