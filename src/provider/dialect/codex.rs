//! `codex exec --json`.

use serde_json::Value;

use super::words;

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Codex {
    /// Whether a message was passed on, so that the next one begins a paragraph.
    spoke: bool,
    /// How the last turn ended; `None` while it has not.
    turn: Option<Result<(), String>>,
    /// Text of the last `error` line, for the verdict of a turn that never ended.
    last_error: Option<String>,
    /// Whether it said or did anything: a message, a command, a change of a file.
    #[serde(default)]
    acted: bool,
    /// Whether the provider refused the token of the last turn.
    #[serde(default)]
    refused: bool,
}

/// Whether an error is that the provider did not take the token: its 401, or codex's word for a refresh token that it does
/// not have, or that is of no use.
fn is_refusal(error: &str) -> bool {
    error.contains("401 Unauthorized") || error.starts_with("Your access token could not be refreshed")
}

impl Codex {
    pub(super) fn read(&mut self, line: &Value) -> Option<String> {
        let kind = line["type"].as_str()?;
        if kind.starts_with("item.") && !matches!(line["item"]["type"].as_str(), Some("error" | "reasoning")) {
            self.acted = true;
        }
        match kind {
            // Items of type `error` are warnings, such as a model that codex's catalogue does not know.
            "item.completed" if line["item"]["type"] == "agent_message" => {
                let text = line["item"]["text"].as_str()?;
                let separator = if std::mem::replace(&mut self.spoke, true) { "\n\n" } else { "" };
                return Some(format!("{separator}{text}"));
            }
            "turn.started" => (self.turn, self.refused) = (None, false),
            "turn.completed" => self.turn = Some(Ok(())),
            "turn.failed" => {
                let error = words(&line["error"]["message"]).or_else(|| words(&line["error"]));
                self.refused = error.as_deref().is_some_and(is_refusal);
                self.turn = Some(Err(error.unwrap_or_else(|| "codex says that the turn failed".to_owned())));
            }
            "error" => self.last_error = words(&line["message"]),
            _ => {}
        }
        None
    }

    pub(super) fn was_refused(&self) -> bool {
        self.refused && !self.acted
    }

    pub(super) fn verdict(self) -> Result<(), String> {
        self.turn.unwrap_or_else(|| {
            Err(match self.last_error {
                Some(error) => format!("codex did not finish its turn; its last message: {error}"),
                None => "codex ended without finishing a turn".to_owned(),
            })
        })
    }
}
