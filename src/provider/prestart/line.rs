//! Writes lines of JSON for a CLI.

use std::io::{self, Write};

use serde::Serialize;

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
    /// One line for each of `messages`. No copy of a message stays in memory.
    pub(super) fn lines<T: Serialize>(messages: &[T]) -> Self {
        // Count first: a vector that grows would leave its former content in freed memory.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_exact_and_is_not_printed() {
        let input = Input::lines(&["se\"cret", "x"]);
        assert_eq!(&*input, b"\"se\\\"cret\"\n\"x\"\n");
        assert_eq!(input.0.len(), input.0.capacity(), "a grown vector leaves copies behind");
        assert_eq!(format!("{input:?}"), "[15 bytes]");
    }
}
