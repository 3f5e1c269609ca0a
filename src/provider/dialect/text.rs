//! Decodes programs that print the answer and nothing else.

/// Splits bytes at whole UTF-8 characters.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Text {
    /// First bytes of a character whose other bytes have not arrived, at most 3.
    rest: Vec<u8>,
}

impl Text {
    /// The text that `bytes` complete; invalid UTF-8 becomes U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_beginning(invalid) {
                self.rest = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

/// Whether more bytes could complete these to a character.
fn is_beginning(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stay_whole_wherever_the_bytes_are_cut() {
        let whole = "3 × 67 = 201 🧮\n";
        for cut in 0..=whole.len() {
            let mut text = Text::default();
            let parts = [text.push(&whole.as_bytes()[..cut]), text.push(&whole.as_bytes()[cut..])];
            assert_eq!(parts.concat(), whole, "cut at {cut}");
            assert!(text.rest.is_empty());
        }
    }

    #[test]
    fn other_bytes_are_replaced_and_never_pile_up() {
        let mut text = Text::default();
        assert_eq!(text.push(b"a\xffb\xf0\x9f"), "a\u{fffd}b");
        assert_eq!(text.push(b"c"), "\u{fffd}c");
        for _ in 0..100 {
            text.push(b"\xf0");
            assert!(text.rest.len() <= 3);
        }
    }
}
