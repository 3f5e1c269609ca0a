//! What the CLIs print, read as it comes: pieces of the answer, and at the end whether it was one.
//!
//! Exit codes lie (gemini-cli leaves with 145, or with 0, on a 401; claude-code says `success` beside
//! `is_error: true`), so that the verdict is read from the JSON lines.

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

/// What is said when a part of the answer was in a line that was too long.
pub const ANSWER_TOO_LONG: &str =
    "a part of the answer was in a line of more than 1 MiB, too long to be read; the raw output has it";

/// Longest error text that is kept, characters.
const ERROR_CHARS: usize = 1000;

/// How a CLI's standard output is to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `codex exec --json`: whole messages, no tokens.
    CodexExecJson,
    /// `claude -p --output-format stream-json --verbose --include-partial-messages`: tokens.
    ClaudeStreamJson,
    /// `gemini -o stream-json`: tokens.
    GeminiStreamJson,
    /// The answer and nothing else: pieces as they come, and the exit code tells whether it is whole.
    Text,
    /// Nothing to be read: no pieces, no verdict.
    #[default]
    Plain,
}

/// Whether the CLI did its job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Read from its output; `None` for [`Dialect::Text`] and [`Dialect::Plain`], where only the exit code tells.
    pub success: Option<bool>,
    /// What went wrong, in the CLI's words, shortened to 1000 characters.
    pub error: Option<String>,
}

/// Reads one CLI's standard output. Bounded in memory by [`LINE_LIMIT`], and indifferent to garbage: lines that are
/// not JSON, or of unknown types, are passed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct DialectParser {
    state: State,
    #[serde(flatten)]
    lines: Lines,
    /// A part of the answer was in a line that was too long.
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
    /// A parser for one process's output.
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

    /// Takes the next bytes of output, cut anywhere, and gives the pieces of the answer that they complete.
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

    /// The verdict, once the output has ended. A last line without its newline counts.
    pub fn finish(mut self) -> Verdict {
        let has_skipped = self.lines.has_skipped();
        if let Some(line) = self.lines.rest() {
            // Its text was not handed out, but what it says about success is heard.
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
