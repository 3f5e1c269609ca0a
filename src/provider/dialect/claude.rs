//! `claude -p --output-format stream-json --verbose --include-partial-messages`.

use serde_json::Value;

use super::words;

#[derive(Debug, Default)]
pub(super) struct Claude {
    /// Whether text was handed out.
    spoke: bool,
    /// Whether the next text begins a paragraph, since another block came before it.
    new_block: bool,
    /// Outcome of the last `result` line.
    result: Option<Result<(), String>>,
    /// Last reason for which a request was repeated.
    last_retry: Option<String>,
}

impl Claude {
    pub(super) fn read(&mut self, line: &Value) -> Option<String> {
        match line["type"].as_str()? {
            // Sub-agents stream too; their text is not the answer.
            "stream_event" if line["parent_tool_use_id"].is_null() => return self.event(&line["event"]),
            "system" if line["subtype"] == "api_retry" => {
                let status = words(&line["error_status"]).unwrap_or_default();
                self.last_retry = Some(format!("{} {status}", words(&line["error"]).unwrap_or_default()));
            }
            "result" => {
                // `subtype` stays `success` when the request itself was refused; `is_error` says so.
                let subtype = line["subtype"].as_str().unwrap_or_default();
                let failed = line["is_error"] == true || subtype != "success";
                let error = || {
                    let text = words(&line["result"]).or_else(|| words(&line["errors"]));
                    text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("claude ended with {subtype}"))
                };
                self.result = Some(if failed { Err(error()) } else { Ok(()) });
            }
            _ => {}
        }
        None
    }

    fn event(&mut self, event: &Value) -> Option<String> {
        match event["type"].as_str()? {
            "content_block_start" if event["content_block"]["type"] == "text" => self.new_block = self.spoke,
            "content_block_delta" if event["delta"]["type"] == "text_delta" => {
                let text = event["delta"]["text"].as_str().filter(|text| !text.is_empty())?;
                self.spoke = true;
                let separator = if std::mem::take(&mut self.new_block) { "\n\n" } else { "" };
                return Some(format!("{separator}{text}"));
            }
            _ => {}
        }
        None
    }

    pub(super) fn verdict(self) -> Result<(), String> {
        self.result.unwrap_or_else(|| {
            Err(match self.last_retry {
                Some(reason) => format!("claude ended without a result; its last request was refused: {reason}"),
                None => "claude ended without a result".to_owned(),
            })
        })
    }
}
