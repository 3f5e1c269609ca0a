//! `gemini -o stream-json`.

use serde_json::Value;

use super::words;

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Gemini {
    /// Whether text was passed on.
    spoke: bool,
    /// Outcome of the last `result` line.
    result: Option<Result<(), String>>,
    /// Text of the last `error` line.
    last_error: Option<String>,
}

impl Gemini {
    pub(super) fn read(&mut self, line: &Value) -> Option<String> {
        match line["type"].as_str()? {
            "message" if line["role"] == "assistant" => {
                let text = line["content"].as_str()?;
                self.spoke |= !text.is_empty();
                return Some(text.to_owned());
            }
            "error" if line["severity"] != "warning" => self.last_error = words(&line["message"]),
            "result" => self.result = Some(self.outcome(line)),
            _ => {}
        }
        None
    }

    fn outcome(&self, line: &Value) -> Result<(), String> {
        if line["status"] != "success" {
            let error = words(&line["error"]["message"]).or_else(|| words(&line["error"]));
            return Err(error.unwrap_or_else(|| "gemini says that it failed".to_owned()));
        }
        // Old versions print success, and exit with 0, when the first request was refused: no text, no tokens.
        if !self.spoke && line["stats"]["output_tokens"].as_u64().unwrap_or(0) == 0 {
            return Err("gemini says success, but there is no answer; the provider may have refused the request".into());
        }
        Ok(())
    }

    pub(super) fn verdict(self) -> Result<(), String> {
        self.result.unwrap_or_else(|| {
            Err(match self.last_error {
                Some(error) => format!("gemini ended without a result; its last error: {error}"),
                None => "gemini ended without a result; its standard error says why".to_owned(),
            })
        })
    }
}
