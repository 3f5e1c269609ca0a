//! Why there is no (whole) answer, in one line, and the exit code that says the same to a program.

use std::fmt::Write as _;

/// Longest text of somebody else that is passed on, characters.
const TEXT_CHARS: usize = 300;

/// A shorter key is none, and would take parts of words with it, bytes.
const SHORTEST_KEY: usize = 6;

/// Why there is no answer, or only a part of one. Codes are those of `sysexits.h` as far as it has them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A variable is missing or cannot be used.
    #[error("{0}")]
    Usage(String),
    /// No key for the provider.
    #[error("no credential: give {0}")]
    NoCredential(&'static str),
    /// The provider does not take the key.
    #[error("the credential was refused: {0}")]
    Refused(String),
    /// The provider has no capacity for this now.
    #[error("try again later: {0}")]
    Busy(String),
    /// There is no way to the provider, or it broke.
    #[error("cannot reach the provider: {0}")]
    Network(String),
    /// The provider says that it failed.
    #[error("the provider failed: {0}")]
    Provider(String),
    /// The stream ended before the answer did, or cannot be read.
    #[error("the answer is not whole: {0}")]
    Incomplete(String),
    /// The reader of the answer is gone.
    #[error("cannot write the answer: {0}")]
    Output(String),
    /// Told to end.
    #[error("ended by signal {0}")]
    Signal(u8),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,        // EX_USAGE
            Self::NoCredential(_) => 78, // EX_CONFIG, as the entrypoints of the other images
            Self::Refused(_) => 77,      // EX_NOPERM
            Self::Busy(_) => 75,         // EX_TEMPFAIL
            Self::Network(_) => 69,      // EX_UNAVAILABLE
            Self::Provider(_) => 70,     // EX_SOFTWARE
            Self::Incomplete(_) => 76,   // EX_PROTOCOL
            Self::Output(_) => 74,       // EX_IOERR
            Self::Signal(number) => number.saturating_add(128),
        }
    }

    /// One line for people: no control characters, not too long, and never the key, which some errors repeat.
    pub fn line(&self, key: Option<&str>) -> String {
        let mut text = self.to_string();
        if let Some(key) = key.filter(|key| key.len() >= SHORTEST_KEY) {
            text = text.replace(key, "[key]");
        }
        let mut line = String::new();
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if line.chars().count() > TEXT_CHARS {
            line = line.chars().take(TEXT_CHARS).collect();
            line.push('…');
        }
        line
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self::Network(causes(error))
    }
}

/// The whole chain of causes, without the URL: a base URL may hold a password.
pub(super) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = if error.is_timeout() { format!("timed out: {error}") } else { error.to_string() };
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_never_the_key() {
        let failure = Failure::Refused("wrong key sk-123\n\x1b[2Jtry sk-1234".to_owned());
        assert_eq!(failure.line(Some("sk-123")), "the credential was refused: wrong key [key] [2Jtry [key]4");
        assert!(Failure::Provider("é".repeat(1000)).line(None).chars().count() <= TEXT_CHARS + 1);
        assert_eq!(Failure::Usage("broke".to_owned()).line(Some("k")), "broke");
    }
}
