//! What a CLI prints while it logs in: the address that the user has to open, the code to enter there, and its last words.

use crate::provider::matches_pattern;

/// Output of one stream that is kept, bytes: what a CLI prints until the user can act is a screenful.
const KEPT: usize = 64 << 10;

/// Longest address, bytes: those of the three CLIs have up to 800.
const MAX_URL: usize = 4 << 10;

/// Length of a code that a user enters, characters.
const CODE: std::ops::RangeInclusive<usize> = 6..=32;

/// Longest last words, characters.
const MAX_WORDS: usize = 300;

/// Reads the two streams of a CLI.
#[derive(Debug)]
pub struct Recogniser {
    /// How the address begins.
    prefix: String,
    /// How the code looks, if there is one.
    code: Option<String>,
    streams: [Text; 2],
    /// The last line that is no address.
    last: String,
}

/// Text of one stream without what talks to a terminal.
#[derive(Debug, Default)]
struct Text {
    kept: String,
    /// A line that has not ended.
    line: String,
    escape: Escape,
    /// Bytes of a character that is not whole yet.
    rest: Vec<u8>,
}

/// Where in an escape sequence (ECMA-48) the output is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// Behind ESC.
    Begun,
    /// In a control sequence, which ends with a letter or the like.
    Control,
    /// In a command to the terminal's window, which ends with BEL or ESC \.
    Command,
}

impl Recogniser {
    /// For a CLI whose address begins so, and whose code looks so if it prints one.
    pub fn new(prefix: &str, code: Option<&str>) -> Self {
        let (prefix, code) = (prefix.to_owned(), code.map(str::to_owned));
        Self { prefix, code, streams: Default::default(), last: String::new() }
    }

    /// Takes the next bytes of standard output (0) or standard error (1).
    pub fn push(&mut self, stream: usize, bytes: &[u8]) {
        let Some(text) = self.streams.get_mut(stream) else { return };
        for line in text.push(bytes) {
            let line = line.trim();
            if !line.is_empty() && !line.contains("://") {
                self.last = line.chars().take(MAX_WORDS).collect();
            }
        }
    }

    /// The address, once it is whole.
    pub fn url(&self) -> Option<&str> {
        self.found().map(|(url, _)| url)
    }

    /// The code that stands behind the address.
    pub fn code(&self) -> Option<&str> {
        let pattern = self.code.as_deref()?;
        let (_, behind) = self.found()?;
        let is_code = |word: &&str| {
            let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-';
            CODE.contains(&word.len()) && word.bytes().all(is_plain) && matches_pattern(pattern, word)
        };
        // The last word may not be whole.
        let whole = behind.rfind(char::is_whitespace).map_or("", |end| &behind[..end]);
        whole.split_whitespace().find(is_code)
    }

    fn found(&self) -> Option<(&str, &str)> {
        self.streams.iter().find_map(|text| {
            let text = &text.kept;
            text.match_indices(&self.prefix).find_map(|(at, _)| {
                let end = text[at..].find(|c: char| c.is_whitespace() || "\"'<>".contains(c))?;
                (end <= MAX_URL).then(|| (&text[at..at + end], &text[at + end..]))
            })
        })
    }

    /// What the CLI said last, for whoever wants to know why it failed. Contains no address, which may hold a code.
    pub fn last_words(&self) -> Option<&str> {
        Some(self.last.as_str()).filter(|last| !last.is_empty())
    }
}

impl Text {
    /// Takes the next bytes; returns the lines that they complete.
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let taken = std::mem::take(&mut self.rest);
        let valid = match std::str::from_utf8(&taken) {
            Ok(_) => taken.len(),
            // What is only cut off waits for the rest.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => taken.len(),
        };
        self.rest = taken[valid..].to_vec();
        let mut lines = Vec::new();
        for c in String::from_utf8_lossy(&taken[..valid]).chars() {
            let Some(c) = self.plain(c) else { continue };
            self.kept.push(c);
            match c {
                '\n' => lines.push(std::mem::take(&mut self.line)),
                c if self.line.len() < KEPT => self.line.push(c),
                _ => {}
            }
        }
        if self.kept.len() > KEPT {
            let from = (self.kept.len() - KEPT..).find(|at| self.kept.is_char_boundary(*at)).unwrap_or(0);
            self.kept.drain(..from);
        }
        lines
    }

    /// The character, if it is no part of an escape sequence and no control character; a return of the carriage ends a line.
    fn plain(&mut self, c: char) -> Option<char> {
        self.escape = match (self.escape, c) {
            (Escape::None, '\u{1b}') => Escape::Begun,
            (Escape::None, '\r') => return Some('\n'),
            (Escape::None, c) if c.is_control() && c != '\n' => return Some(' '),
            (Escape::None, c) => return Some(c),
            (Escape::Begun, '[') => Escape::Control,
            (Escape::Begun, ']') => Escape::Command,
            (Escape::Begun, _) => Escape::None,
            (Escape::Control, '\u{40}'..='\u{7e}') => Escape::None,
            (Escape::Control, _) => Escape::Control,
            (Escape::Command, '\u{7}') => Escape::None,
            (Escape::Command, '\u{1b}') => Escape::Begun,
            (Escape::Command, _) => Escape::Command,
        };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://auth.test/authorize?client_id=c&state=s%2F1";

    #[test]
    fn an_address_is_taken_when_it_is_whole() {
        let mut cli = Recogniser::new("https://auth.test/authorize?", None);
        let text = format!("Starting local server.\r\nIf it did not open, visit:\x1b[94m {URL}\x1b[0m\nLogging in\n");
        for (at, byte) in text.bytes().enumerate() {
            cli.push(1, &[byte]);
            let whole = at > text.find(URL).unwrap() + URL.len();
            assert!(cli.url().is_none() || whole, "{at}");
        }
        assert_eq!((cli.url(), cli.code()), (Some(URL), None));
        assert_eq!(cli.last_words(), Some("Logging in"));
        // In JSON, and only there where it begins so.
        let mut cli = Recogniser::new("https://auth.test/authorize?", None);
        cli.push(0, format!("https://auth.test/other?x {{\"url\":\"{URL}\"}}").as_bytes());
        assert_eq!(cli.url(), Some(URL));
        assert_eq!(Recogniser::new("https://auth.test/", None).last_words(), None);
    }

    #[test]
    fn a_code_stands_behind_its_address() {
        let mut cli = Recogniser::new("https://auth.test/codex/device", Some("*-*"));
        cli.push(0, b"Welcome ABCD-0000\n1. Open https://auth.test/codex/device\n2. Enter this one-time code\n   \x1b[94mWXYZ-12");
        assert_eq!(cli.url(), Some("https://auth.test/codex/device"));
        assert_eq!(cli.code(), None, "it may go on");
        cli.push(0, b"345\x1b[0m\n\nNever share it. A-B CD-EFGH-\xc3");
        assert_eq!(cli.code(), Some("WXYZ-12345"));
        cli.push(0, b"\xa9\xff\n");
        assert!(cli.last_words().unwrap().ends_with("CD-EFGH-\u{e9}\u{fffd}"), "{:?}", cli.last_words());
    }

    #[test]
    fn a_flood_takes_no_memory_and_hides_nothing_that_comes_behind_it() {
        let mut cli = Recogniser::new("https://auth.test/", None);
        for _ in 0..100 {
            cli.push(0, "é\u{1b}]0;title\u{7}".repeat(10_000).as_bytes());
        }
        cli.push(0, format!("\n{URL} \n").as_bytes());
        assert_eq!(cli.url(), Some(URL));
        assert!(cli.streams[0].kept.len() <= KEPT && cli.streams[0].line.len() <= KEPT + 4);
        let mut cli = Recogniser::new("https://auth.test/", None);
        cli.push(0, format!("https://auth.test/{} ", "x".repeat(MAX_URL)).as_bytes());
        assert_eq!(cli.url(), None, "an address that long is none");
    }
}
