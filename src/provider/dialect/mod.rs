//! What the CLIs print, read as it comes: pieces of the answer, and at the end whether it was one.
//!
//! Exit codes lie (gemini-cli leaves with 145, or with 0, on a 401; claude-code says `success` beside
//! `is_error: true`), so that the verdict is read from the JSON lines.

mod claude;
mod codex;
mod gemini;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest line that is looked at, bytes; a longer one is skipped whole. The three CLIs put a whole answer on one
/// line, and an answer of 64 000 tokens is about 300 kB.
pub const LINE_LIMIT: usize = 1024 * 1024;

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
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// Whether that line was too long and is being skipped.
    skipping: bool,
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
        Self { state, line: Vec::new(), skipping: false }
    }

    /// Takes the next bytes of output, cut anywhere, and gives the pieces of the answer that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut deltas = Vec::new();
        match &mut self.state {
            State::Plain => return deltas,
            State::Text(state) => {
                deltas.extend(Some(state.push(bytes)).filter(|text| !text.is_empty()));
                return deltas;
            }
            State::Codex(_) | State::Claude(_) | State::Gemini(_) => {}
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.append(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            if !std::mem::take(&mut self.skipping) {
                deltas.extend(self.read(&line));
            }
        }
        self.append(bytes);
        deltas
    }

    /// The verdict, once the output has ended. A last line without its newline counts.
    pub fn finish(mut self) -> Verdict {
        let line = std::mem::take(&mut self.line);
        if !self.skipping {
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
            Ok(()) => Verdict { success: Some(true), error: None },
            Err(error) => Verdict { success: Some(false), error: Some(error.chars().take(ERROR_CHARS).collect()) },
        }
    }

    fn append(&mut self, part: &[u8]) {
        if self.skipping || self.line.len() + part.len() > LINE_LIMIT {
            self.skipping = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(part);
        }
    }

    fn read(&mut self, line: &[u8]) -> Option<String> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let text = match &mut self.state {
            State::Codex(state) => state.read(&value),
            State::Claude(state) => state.read(&value),
            State::Gemini(state) => state.read(&value),
            State::Text(_) | State::Plain => None,
        };
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
