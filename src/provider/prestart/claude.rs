//! `claude -p --input-format stream-json --output-format stream-json`. The CLI is ready once it has answered
//! `initialize`. The claim sets variables, the thinking budget if an effort asks for one, and sends the one message.
//!
//! The output is that of the one-shot dialect, whose decoder is used here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Input, Step, Turn, credential::Credential, plan::Plan};
use crate::provider::dialect::{Dialect, DialectParser, Verdict, words};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claude {
    /// `None` once the verdict was taken from the decoder.
    parser: Option<DialectParser>,
    /// Whether the provider refused the credential before anything was said.
    #[serde(default)]
    refused: bool,
}

impl Default for Claude {
    fn default() -> Self {
        Self { parser: Some(DialectParser::new(Dialect::ClaudeStreamJson)), refused: false }
    }
}

impl Claude {
    pub(super) fn start(&self) -> Input {
        Input::line(&control("initialize", &json!({"subtype": "initialize"})))
    }

    pub(super) fn claim(&self, turn: &Turn, credential: &Credential<'_>, plan: &Plan) -> Input {
        // Clear the placeholders of the start, so that the CLI does not find them beside, or instead of, the real
        // credential.
        let mut variables: BTreeMap<&str, &str> = plan.placeholders.iter().map(|name| (name.as_str(), "")).collect();
        if let Credential::Variable(name, value) = credential {
            variables.insert(name, value);
        }
        let effort = turn.effort.as_ref();
        if let Some(effort) = effort {
            variables.insert("CLAUDE_CODE_EFFORT_LEVEL", &effort.name);
        }
        let budget = effort.and_then(|effort| effort.thinking_tokens);

        #[derive(serde::Serialize)]
        #[serde(untagged)]
        enum Message<'a> {
            Variables { r#type: &'static str, variables: BTreeMap<&'a str, &'a str> },
            Control(Value),
            User { r#type: &'static str, message: Content<'a>, parent_tool_use_id: (), session_id: &'static str },
        }
        #[derive(serde::Serialize)]
        struct Content<'a> {
            role: &'static str,
            content: &'a str,
        }
        let mut messages = Vec::new();
        if !variables.is_empty() {
            messages.push(Message::Variables { r#type: "update_environment_variables", variables });
        }
        if let Some(tokens) = budget {
            // The CLI reads the variable MAX_THINKING_TOKENS only at its start.
            let request = json!({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": tokens});
            messages.push(Message::Control(control("thinking", &request)));
        }
        messages.push(Message::User {
            r#type: "user",
            message: Content { role: "user", content: &turn.prompt },
            parent_tool_use_id: (),
            session_id: "",
        });
        Input::lines(&messages)
    }

    pub(super) fn read(&mut self, message: &Value, is_shortened: bool) -> Vec<Step> {
        match message["type"].as_str() {
            Some("control_response") => return answered(&message["response"]),
            // The CLI asks for permission, or for a tool of the daemon, which has none. Without any answer it would
            // wait.
            Some("control_request") => {
                let response = json!({"subtype": "error", "request_id": message["request_id"],
                    "error": "not available here"});
                return vec![Step::Write(Input::line(&json!({"type": "control_response", "response": response})))];
            }
            _ => {}
        }
        let Some(parser) = &mut self.parser else { return Vec::new() };
        let delta = parser.read_value(message, is_shortened);
        let mut steps: Vec<Step> = delta.into_iter().map(Step::Delta).collect();
        if message["type"] == "result"
            && let Some(parser) = self.parser.take()
        {
            self.refused = parser.was_refused();
            let verdict = parser.finish();
            steps.push(Step::Done(match verdict.success {
                Some(true) => Ok(()),
                _ => Err(verdict.error.unwrap_or_else(|| "claude failed without saying why".to_owned())),
            }));
        }
        steps
    }

    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn finish(self) -> Verdict {
        // Without a parser the verdict has been given already.
        self.parser.map(DialectParser::finish).unwrap_or_default()
    }
}

fn control(id: &str, request: &Value) -> Value {
    json!({"type": "control_request", "request_id": id, "request": request})
}

fn answered(response: &Value) -> Vec<Step> {
    let id = response["request_id"].as_str().unwrap_or_default();
    let refused = response["subtype"] != "success";
    match (id, refused) {
        ("initialize", false) => vec![Step::Ready],
        ("initialize", true) => {
            vec![Step::Failed(format!("claude refused to begin: {}", words(&response["error"]).unwrap_or_default()))]
        }
        ("thinking", true) => {
            let error = words(&response["error"]).unwrap_or_default();
            vec![Step::Done(Err(format!("claude did not take the thinking budget: {error}")))]
        }
        _ => Vec::new(),
    }
}
