//! Output cut into lines of JSON, in bounded memory.
//!
//! Of a line that is too long, long texts are left out and the rest is kept, so that it can still be told what kind of line
//! it was: a tool's result of several mebibytes does not matter, an answer or a verdict does.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Longest line that is kept, bytes. The three CLIs put a whole answer on one line, and an answer of 64 000 tokens is
/// about 300 kB.
pub const LINE_LIMIT: usize = 1024 * 1024;

/// Longest text that is kept of a longer line, bytes.
const TEXT_LIMIT: usize = 64 * 1024;

/// Stands for each longer one.
pub const LEFT_OUT: &str = "(a text in a line of the CLI's output that was longer than 1 MiB)";

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it says, without its newline.
    pub bytes: Vec<u8>,
    /// It was too long, and [`LEFT_OUT`] stands for each long text in it.
    pub is_shortened: bool,
}

/// The line that has not ended yet.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lines {
    line: Vec<u8>,
    /// It is too long in spite of everything, and what is to come of it is passed over.
    skipping: bool,
    /// Where its texts begin and end, once it is too long.
    #[serde(default)]
    shortening: Option<Shortening>,
    /// Whether any line was passed over.
    #[serde(default)]
    skipped: bool,
}

/// Where in a line of JSON the scanner is.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Shortening {
    /// Where the text began that it is in, in what is kept of the line.
    text: Option<usize>,
    /// Behind a backslash.
    escaped: bool,
    /// What is to come of the text is left out.
    leaving_out: bool,
}

impl Lines {
    /// The lines that `bytes` complete.
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

    /// What has come of the line that has not ended yet, as if it had.
    pub fn rest(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.line);
        let is_shortened = self.shortening.take().is_some();
        if std::mem::take(&mut self.skipping) {
            self.skipped = true;
            return None;
        }
        Some(Line { bytes, is_shortened })
    }

    /// Whether there was a line that could not be read in part either.
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
        // It may hold what a provider answered about a credential.
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
