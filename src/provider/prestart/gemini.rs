//! `gemini --acp`, the Agent Client Protocol (JSON-RPC 2.0). The CLI is ready once it has answered `initialize`. The claim
//! sends the login, then a session, its model if it differs, and the one prompt, each after the answer to the one before.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Input, Step, Turn, credential::Credential, subject::Subject};
use crate::provider::dialect::words;

const INITIALIZE: u64 = 0;
const LOGIN: u64 = 1;
const SESSION: u64 = 2;
const MODEL: u64 = 3;
const PROMPT: u64 = 4;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Gemini {
    /// What to ask once there is a session.
    pub(super) turn: Option<Turn>,
    session: String,
    spoke: bool,
}

impl Gemini {
    pub(super) fn start(&self) -> Input {
        // The daemon offers no file system and no terminal: the CLI uses the container's.
        Input::line(&request(
            INITIALIZE,
            "initialize",
            &json!({
                "protocolVersion": 1,
                "clientCapabilities": {"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false},
                "clientInfo": {"name": "thawd", "version": env!("CARGO_PKG_VERSION")},
            }),
        ))
    }

    pub(super) fn claim(&mut self, turn: Turn, credential: &Credential<'_>) -> Input {
        self.turn = Some(turn);
        // The fields borrow, so that no copy of the secret is made.
        #[derive(serde::Serialize)]
        struct Meta<'a> {
            #[serde(rename = "api-key")]
            api_key: &'a str,
        }
        #[derive(serde::Serialize)]
        struct Login<'a> {
            #[serde(rename = "methodId")]
            method: &'static str,
            #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
            meta: Option<Meta<'a>>,
        }
        let login = match credential {
            Credential::Key(key) | Credential::Variable(_, key) => {
                Login { method: "gemini-api-key", meta: Some(Meta { api_key: key }) }
            }
            _ => Login { method: "oauth-personal", meta: None },
        };
        Input::line(&request(LOGIN, "authenticate", &login))
    }

    pub(super) fn read(&mut self, message: &Value, subject: &Subject) -> Vec<Step> {
        match (message["method"].as_str(), &message["id"]) {
            (Some("session/request_permission"), id) if !id.is_null() => vec![Step::Write(allow(id, message))],
            (Some(_), id) if !id.is_null() => {
                let error = json!({"code": -32601, "message": "not available here"});
                vec![Step::Write(Input::line(&json!({"jsonrpc": "2.0", "id": id, "error": error})))]
            }
            (Some("session/update"), _) => {
                let update = &message["params"]["update"];
                if update["sessionUpdate"] != "agent_message_chunk" {
                    return Vec::new();
                }
                let text = update["content"]["text"].as_str().unwrap_or_default();
                self.spoke |= !text.is_empty();
                vec![Step::Delta(text.to_owned())]
            }
            (Some(_), _) => Vec::new(),
            (None, id) => self.response(id.as_u64(), message, subject),
        }
    }

    fn response(&mut self, id: Option<u64>, message: &Value, subject: &Subject) -> Vec<Step> {
        let error = &message["error"];
        if !error.is_null() {
            let words = words(&error["message"]).or_else(|| words(error)).unwrap_or_default();
            return match id {
                Some(INITIALIZE) => vec![Step::Failed(format!("gemini refused to begin: {words}"))],
                Some(LOGIN) => vec![Step::Done(Err(format!("gemini did not take the credential: {words}")))],
                Some(SESSION) => vec![Step::Done(Err(format!("gemini began no session: {words}")))],
                Some(MODEL) => vec![Step::Done(Err(format!("gemini did not take the model: {words}")))],
                Some(PROMPT) => vec![Step::Done(Err(words))],
                _ => Vec::new(),
            };
        }
        let result = &message["result"];
        match id {
            Some(INITIALIZE) => vec![Step::Ready],
            Some(LOGIN) => {
                let cwd = self.turn.as_ref().and_then(|turn| turn.cwd.as_deref()).unwrap_or(&subject.cwd);
                let params = json!({"cwd": cwd, "mcpServers": []});
                vec![Step::Write(Input::line(&request(SESSION, "session/new", &params)))]
            }
            Some(SESSION) => {
                let Some(session) = result["sessionId"].as_str() else {
                    return vec![Step::Done(Err("gemini began a session without an id".to_owned()))];
                };
                session.clone_into(&mut self.session);
                match &self.turn {
                    Some(turn) if turn.model != subject.model => {
                        let params = json!({"sessionId": session, "modelId": turn.model});
                        vec![Step::Write(Input::line(&request(MODEL, "session/set_model", &params)))]
                    }
                    _ => self.prompt(),
                }
            }
            Some(MODEL) => self.prompt(),
            Some(PROMPT) => vec![Step::Done(self.outcome(result))],
            _ => Vec::new(),
        }
    }

    fn prompt(&mut self) -> Vec<Step> {
        let Some(turn) = self.turn.take() else { return Vec::new() };
        #[derive(serde::Serialize)]
        struct Text<'a> {
            r#type: &'static str,
            text: &'a str,
        }
        #[derive(serde::Serialize)]
        struct Params<'a> {
            #[serde(rename = "sessionId")]
            session: &'a str,
            prompt: [Text<'a>; 1],
        }
        let params = Params { session: &self.session, prompt: [Text { r#type: "text", text: &turn.prompt }] };
        vec![Step::Write(Input::line(&request(PROMPT, "session/prompt", &params)))]
    }

    fn outcome(&self, result: &Value) -> Result<(), String> {
        let reason = words(&result["stopReason"]).unwrap_or_default();
        if reason != "end_turn" {
            return Err(format!("gemini stopped: {reason}"));
        }
        // gemini reports `end_turn` also for an answer that was blocked, empty or cut off, but then counts no tokens.
        // Prompts that it answers itself, such as /about, cost no tokens either.
        if !self.spoke {
            return Err("gemini says that it is done, but there is no answer; it may have been blocked".to_owned());
        }
        if result["_meta"]["quota"]["token_count"]["output_tokens"] == 0 {
            return Err("gemini says that it is done, but counts no tokens; the answer broke off".to_owned());
        }
        Ok(())
    }
}

/// A JSON-RPC request that borrows its parameters, which may be secret.
fn request<'a, P: serde::Serialize>(
    id: u64,
    method: &'static str,
    params: &'a P,
) -> impl serde::Serialize + use<'a, P> {
    #[derive(serde::Serialize)]
    struct Request<'a, P> {
        jsonrpc: &'static str,
        id: u64,
        method: &'static str,
        params: &'a P,
    }
    Request { jsonrpc: "2.0", id, method, params }
}

/// Grants a permission that gemini asks for. It is started so as not to ask; if it does, the container is the sandbox.
fn allow(id: &Value, message: &Value) -> Input {
    let options = message["params"]["options"].as_array();
    let once = options.into_iter().flatten().find(|option| option["kind"] == "allow_once");
    let outcome = match once {
        Some(option) => json!({"outcome": "selected", "optionId": option["optionId"]}),
        None => json!({"outcome": "cancelled"}),
    };
    Input::line(&json!({"jsonrpc": "2.0", "id": id, "result": {"outcome": outcome}}))
}
