//! Decodes the output of CLIs as it arrives: pieces of the answer, and at the end whether the CLI succeeded.
//!
//! Exit codes are not reliable: gemini-cli exits with 145, or with 0, on a 401; claude-code prints `success` beside
//! `is_error: true`. So the verdict is decoded from the JSON lines.

mod claude;
mod codex;
mod gemini;
mod line;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use line::Line;
pub use line::{LEFT_OUT, LINE_LIMIT, Lines};

/// Error of an answer that was partly in a line beyond [`LINE_LIMIT`].
pub const ANSWER_TOO_LONG: &str =
    "a part of the answer was in a line of more than 1 MiB, too long to be read; the raw output has it";

/// Longest error text that is kept, characters.
const ERROR_CHARS: usize = 1000;

/// Decoder for a CLI's standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `codex exec --json`: whole messages, no single tokens.
    CodexExecJson,
    /// `claude -p --output-format stream-json --verbose --include-partial-messages`: single tokens.
    ClaudeStreamJson,
    /// `gemini -o stream-json`: single tokens.
    GeminiStreamJson,
    /// Plain text that is the answer. Pieces are passed on as they arrive; the exit code is the verdict.
    Text,
    /// Not decoded: no pieces, no verdict.
    #[default]
    Plain,
}

impl Dialect {
    /// Whether its output tells that the provider refused the token; see [`DialectParser::was_refused`].
    pub fn tells_refusals(self) -> bool {
        matches!(self, Self::CodexExecJson | Self::ClaudeStreamJson)
    }
}

/// Whether the CLI succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Decoded from the output; `None` for [`Dialect::Text`] and [`Dialect::Plain`], where only the exit code counts.
    pub success: Option<bool>,
    /// The CLI's own error text, shortened to 1000 characters.
    pub error: Option<String>,
}

/// Decodes one CLI's standard output. Memory is bounded by [`LINE_LIMIT`]. Lines that are not JSON or of unknown types
/// are skipped.
#[derive(Debug, Serialize, Deserialize)]
pub struct DialectParser {
    state: State,
    #[serde(flatten)]
    lines: Lines,
    /// Whether a part of the answer was in a line beyond the limit.
    #[serde(default)]
    is_incomplete: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Codex(codex::Codex),
    Claude(claude::Claude),
    Gemini(gemini::Gemini),
    Text(text::Text),
    Plain,
}

impl DialectParser {
    /// A decoder for one process's output.
    pub fn new(dialect: Dialect) -> Self {
        let state = match dialect {
            Dialect::CodexExecJson => State::Codex(codex::Codex::default()),
            Dialect::ClaudeStreamJson => State::Claude(claude::Claude::default()),
            Dialect::GeminiStreamJson => State::Gemini(gemini::Gemini::default()),
            Dialect::Text => State::Text(text::Text::default()),
            Dialect::Plain => State::Plain,
        };
        Self { state, lines: Lines::default(), is_incomplete: false }
    }

    /// Decodes the next bytes of output, cut anywhere; returns the pieces of the answer that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut deltas = Vec::new();
        match &mut self.state {
            State::Plain => return deltas,
            State::Text(state) => {
                deltas.extend(Some(state.push(bytes)).filter(|text| !text.is_empty()));
                return deltas;
            }
            State::Codex(_) | State::Claude(_) | State::Gemini(_) => {}
        }
        for line in self.lines.push(bytes) {
            deltas.extend(self.read(&line));
        }
        deltas
    }

    /// Whether the provider refused the token, before the CLI had said or done anything: then the same may be asked again
    /// with another one. gemini does not say it here: what it prints of a login that is refused is on standard error.
    pub fn was_refused(&self) -> bool {
        match &self.state {
            State::Codex(state) => state.was_refused(),
            State::Claude(state) => state.was_refused(),
            State::Gemini(_) | State::Text(_) | State::Plain => false,
        }
    }

    /// Returns the verdict once the output has ended. A last line without a newline counts.
    pub fn finish(mut self) -> Verdict {
        let has_skipped = self.lines.has_skipped();
        if let Some(line) = self.lines.rest() {
            // The line's text is no longer passed on, but its verdict counts.
            self.read(&line);
        }
        let verdict = match self.state {
            State::Codex(state) => state.verdict(),
            State::Claude(state) => state.verdict(),
            State::Gemini(state) => state.verdict(),
            State::Text(_) | State::Plain => return Verdict::default(),
        };
        match verdict {
            Ok(()) if self.is_incomplete => Verdict { success: Some(false), error: Some(ANSWER_TOO_LONG.to_owned()) },
            Ok(()) => Verdict { success: Some(true), error: None },
            Err(error) => {
                let mut error: String = error.chars().take(ERROR_CHARS).collect();
                if has_skipped {
                    error.push_str("; a line of its output was longer than 1 MiB, too long to be read");
                }
                Verdict { success: Some(false), error: Some(error) }
            }
        }
    }

    fn read(&mut self, line: &Line) -> Option<String> {
        let value: Value = serde_json::from_slice(&line.bytes).ok()?;
        self.read_value(&value, line.is_shortened)
    }

    /// Takes a line that has been read already.
    pub(super) fn read_value(&mut self, value: &Value, is_shortened: bool) -> Option<String> {
        let text = match &mut self.state {
            State::Codex(state) => state.read(value),
            State::Claude(state) => state.read(value),
            State::Gemini(state) => state.read(value),
            State::Text(_) | State::Plain => None,
        };
        if is_shortened && text.as_ref().is_some_and(|text| text.contains(LEFT_OUT)) {
            self.is_incomplete = true;
            return None;
        }
        text.filter(|text| !text.is_empty())
    }
}

/// `value` as text, or as JSON when it is something else; `None` for null.
pub(super) fn words(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
