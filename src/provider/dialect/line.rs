//! Splits output into lines of JSON, in bounded memory.
//!
//! In a line beyond the limit, long texts are left out and the rest is kept. So the kind of the line stays known: a
//! tool's result of several mebibytes does not matter, an answer or a verdict does.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Longest line that is kept whole, bytes. The three CLIs put a whole answer on one line; an answer of 64 000 tokens is
/// about 300 kB.
pub const LINE_LIMIT: usize = 1024 * 1024;

/// Longest text that is kept within a longer line, bytes.
const TEXT_LIMIT: usize = 64 * 1024;

/// Replacement for each longer text.
pub const LEFT_OUT: &str = "(a text in a line of the CLI's output that was longer than 1 MiB)";

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Bytes of the line without its newline.
    pub bytes: Vec<u8>,
    /// Whether the line was too long, so that [`LEFT_OUT`] replaces each long text in it.
    pub is_shortened: bool,
}

/// Splitter, which holds the line that has not ended yet.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lines {
    line: Vec<u8>,
    /// Whether the line is too long even without its long texts; the rest of it is skipped.
    skipping: bool,
    /// State of the scanner that leaves texts out, once the line is too long.
    #[serde(default)]
    shortening: Option<Shortening>,
    /// Whether any line was skipped.
    #[serde(default)]
    skipped: bool,
}

/// Position of the scanner in a line of JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Shortening {
    /// Start of the current text, as an index into the kept part of the line; `None` outside a text.
    text: Option<usize>,
    /// Whether the last byte was a backslash that escapes the next.
    escaped: bool,
    /// Whether the rest of the current text is left out.
    leaving_out: bool,
}

impl Lines {
    /// Adds bytes; returns the lines that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.append(&bytes[..end]);
            bytes = &bytes[end + 1..];
            lines.extend(self.rest());
        }
        self.append(bytes);
        lines
    }

    /// Takes the unfinished line as if it had ended.
    pub fn rest(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.line);
        let is_shortened = self.shortening.take().is_some();
        if std::mem::take(&mut self.skipping) {
            self.skipped = true;
            return None;
        }
        Some(Line { bytes, is_shortened })
    }

    /// Whether any line was skipped because it could not be shortened enough.
    pub fn has_skipped(&self) -> bool {
        self.skipped || self.skipping
    }

    fn append(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.shortening.is_none() {
            if self.line.len() + part.len() <= LINE_LIMIT {
                self.line.extend_from_slice(part);
                return;
            }
            let begun = std::mem::take(&mut self.line);
            self.shortening = Some(Shortening::default());
            self.shorten(&begun);
        }
        self.shorten(part);
    }

    fn shorten(&mut self, part: &[u8]) {
        let Some(at) = &mut self.shortening else { return };
        for &byte in part {
            match at.text {
                None if byte == b'"' => {
                    at.text = Some(self.line.len() + 1);
                    self.line.push(byte);
                }
                None => self.line.push(byte),
                Some(_) if byte == b'"' && !at.escaped => {
                    (at.text, at.leaving_out) = (None, false);
                    self.line.push(byte);
                }
                Some(begin) => {
                    at.escaped = byte == b'\\' && !at.escaped;
                    if at.leaving_out {
                        continue;
                    }
                    self.line.push(byte);
                    if self.line.len() - begin > TEXT_LIMIT {
                        self.line.truncate(begin);
                        self.line.extend_from_slice(LEFT_OUT.as_bytes());
                        at.leaving_out = true;
                    }
                }
            }
        }
        if self.line.len() > LINE_LIMIT {
            self.skipping = true;
            self.line = Vec::new();
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // The line may hold what a provider answered about a credential.
        self.line.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: Vec<Line>) -> Vec<(String, bool)> {
        lines.into_iter().map(|line| (String::from_utf8(line.bytes).unwrap(), line.is_shortened)).collect()
    }

    #[test]
    fn long_texts_are_left_out_of_a_line_that_is_too_long_wherever_it_is_cut() {
        let long = r#"a\"\\\u00e9é"#.repeat(100_000);
        let around = |text: &str| format!(r#"{{"long":"{text}","type":"result","\\":["{text}",1,"short \""]}}"#);
        let line = format!("{}\nnext\n", around(&long));
        let expected = around(LEFT_OUT);
        for size in [1 << 30, 1 << 16, 4099] {
            let mut lines = Lines::default();
            let cut = texts(line.as_bytes().chunks(size).flat_map(|part| lines.push(part)).collect());
            assert_eq!(cut, [(expected.clone(), true), ("next".to_owned(), false)], "{size}");
            assert!(!lines.has_skipped());
        }
        serde_json::from_str::<serde_json::Value>(&expected).unwrap();
    }

    #[test]
    fn a_line_that_is_too_long_all_the_same_is_passed_over_and_the_next_one_read() {
        let mut lines = Lines::default();
        for _ in 0..3 {
            assert!(lines.push(&vec![b'x'; LINE_LIMIT / 2 + 1]).is_empty());
            assert!(lines.line.len() <= LINE_LIMIT);
        }
        assert!(lines.has_skipped());
        assert_eq!(texts(lines.push(b"x\nab")), []);
        let next = ["abc", "", "d"].map(|text| (text.to_owned(), false));
        assert_eq!(texts(lines.push(b"c\n\nd\n")), next);
    }

    #[test]
    fn what_an_earlier_version_kept_is_understood() {
        let mut lines: Lines = serde_json::from_str(r#"{"line":[97],"skipping":false}"#).unwrap();
        assert_eq!(texts(lines.push(b"b\n")), [("ab".to_owned(), false)]);
    }
}
