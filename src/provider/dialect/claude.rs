//! `claude -p --output-format stream-json --verbose --include-partial-messages`.

use serde_json::Value;

use super::{LEFT_OUT, LINE_LIMIT, words};

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Claude {
    /// Whether text was passed on.
    spoke: bool,
    /// Whether the next text begins a paragraph, since another block came before.
    new_block: bool,
    /// Text of the current block as streamed so far, to be compared with the whole block that follows.
    block: String,
    /// Outcome of the last `result` line.
    result: Option<Result<(), String>>,
    /// Last reason for which a request was repeated.
    last_retry: Option<String>,
    /// Whether the model said anything: text, a thought, a call of a tool.
    #[serde(default)]
    acted: bool,
    /// Whether the CLI found that the login is not taken.
    #[serde(default)]
    refused: bool,
}

/// The CLI's word for a login that the provider does not take, or that is over.
const NOT_TAKEN: &str = "authentication_failed";

/// HTTP status of a login that is not taken (RFC 9110, section 15.5.2).
const UNAUTHORIZED: u64 = 401;

impl Claude {
    pub(super) fn read(&mut self, line: &Value) -> Option<String> {
        // Sub-agents print too, but their text is not the answer.
        let own = line["parent_tool_use_id"].is_null();
        self.refused |= line["error"] == NOT_TAKEN || line["api_error_status"] == UNAUTHORIZED;
        self.acted |= match line["type"].as_str() {
            Some("stream_event") => true,
            Some("assistant") => line["message"]["model"] != "<synthetic>",
            _ => false,
        };
        match line["type"].as_str()? {
            "stream_event" if own => return self.event(&line["event"]),
            // An error text comes as a message of a made-up model; the error is part of the verdict.
            "assistant" if own && line["error"].is_null() && line["message"]["model"] != "<synthetic>" => {
                return self.message(&line["message"]["content"]);
            }
            "system" if line["subtype"] == "api_retry" => {
                let status = words(&line["error_status"]).unwrap_or_default();
                self.last_retry = Some(format!("{} {status}", words(&line["error"]).unwrap_or_default()));
            }
            "result" => {
                // `subtype` stays `success` when the request itself was refused; `is_error` has the truth.
                let subtype = line["subtype"].as_str().unwrap_or_default();
                let failed = line["is_error"] == true || subtype != "success";
                let error = || {
                    let text = words(&line["result"]).or_else(|| words(&line["errors"]));
                    text.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("claude ended with {subtype}"))
                };
                self.result = Some(if failed { Err(error()) } else { Ok(()) });
                // The CLI answers some prompts itself, such as /help: then the result line holds the whole answer.
                if !failed && !self.spoke {
                    return self.say(line["result"].as_str()?);
                }
            }
            _ => {}
        }
        None
    }

    fn event(&mut self, event: &Value) -> Option<String> {
        match event["type"].as_str()? {
            "content_block_start" => {
                self.block.clear();
                self.new_block = self.spoke;
                None
            }
            "content_block_delta" if event["delta"]["type"] == "text_delta" => {
                self.say(event["delta"]["text"].as_str()?)
            }
            _ => None,
        }
    }

    /// Passes on what was not streamed of a finished message. Everything was streamed, unless the CLI fell back to
    /// requests without streaming.
    fn message(&mut self, content: &Value) -> Option<String> {
        let texts = content.as_array()?.iter().filter(|block| block["type"] == "text");
        let text: String = texts.filter_map(|block| block["text"].as_str()).collect();
        if text.contains(LEFT_OUT) && !self.block.is_empty() {
            // Too long to be compared, and already streamed.
            self.new_block = true;
            self.block.clear();
            return None;
        }
        if let Some(rest) = text.strip_prefix(self.block.as_str()) {
            let rest = rest.to_owned();
            return self.say(&rest);
        }
        self.new_block = true;
        self.block.clear();
        self.say(&text)
    }

    fn say(&mut self, text: &str) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        // Beyond this limit, the whole message would be shortened and could not be compared anyway.
        if self.block.len() + text.len() <= LINE_LIMIT {
            self.block.push_str(text);
        }
        let separator = if std::mem::take(&mut self.new_block) && self.spoke { "\n\n" } else { "" };
        self.spoke = true;
        Some(format!("{separator}{text}"))
    }

    pub(super) fn was_refused(&self) -> bool {
        self.refused && !self.acted && matches!(self.result, Some(Err(_)))
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
