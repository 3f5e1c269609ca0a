//! `codex app-server`: JSON-RPC without the `jsonrpc` field. The thread is started ahead of time. The claim sends the login
//! and, once that is done, the one turn with its model and effort.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Input, Step, Turn, credential::Credential, subject::Subject};
use crate::provider::dialect::{LEFT_OUT, words};

const INITIALIZE: u64 = 0;
const THREAD: u64 = 1;
const LOGIN: u64 = 2;
const TURN: u64 = 3;

/// Items of a turn that change nothing, and that are no part of the answer by themselves.
const WITHOUT_EFFECT: [&str; 4] = ["userMessage", "agentMessage", "reasoning", "error"];

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Codex {
    thread: String,
    login: Login,
    /// What to ask once the login is done.
    pub(super) turn: Option<Turn>,
    answer: Answer,
    /// Whether a codex that has the file could renew the token.
    renewable: bool,
    /// Whether codex asked for another token because the provider refused this one.
    refused: bool,
    /// Whether codex did anything besides answering: a command, a change of a file.
    #[serde(default)]
    acted: bool,
    /// Last error that codex reported.
    last_error: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Login {
    #[default]
    None,
    /// The login ends with the response.
    Key,
    /// The login ends with the notification: codex looks up the account first, and a turn begun before that fails.
    Tokens,
    Done,
}

/// The answer as far as it was handed out.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    spoke: bool,
    /// Id of the message whose pieces are arriving.
    item: String,
    /// Bytes of that message passed on so far.
    streamed: usize,
}

impl Answer {
    /// Passes on a piece of the message `item`.
    fn piece(&mut self, item: &str, text: &str) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        let mut separator = "";
        if self.item != item || self.streamed == 0 {
            item.clone_into(&mut self.item);
            self.streamed = 0;
            separator = if self.spoke { "\n\n" } else { "" };
        }
        self.streamed += text.len();
        self.spoke = true;
        Some(format!("{separator}{text}"))
    }

    /// Passes on what did not come in pieces of the whole message `item`.
    fn whole(&mut self, item: &str, text: &str) -> Option<String> {
        let from = if self.item == item { self.streamed } else { 0 };
        if from > 0 && text == LEFT_OUT {
            // Too long to be compared.
            return None;
        }
        let rest = text.get(from..)?.to_owned();
        self.piece(item, &rest)
    }
}

impl Codex {
    pub(super) fn start(&self) -> Input {
        Input::line(&json!({"id": INITIALIZE, "method": "initialize", "params": {
            "clientInfo": {"name": "thawd", "title": "thawd", "version": env!("CARGO_PKG_VERSION")},
            // Logins with tokens are an experimental feature of codex.
            "capabilities": {"experimentalApi": true},
        }}))
    }

    pub(super) fn claim(&mut self, turn: Turn, credential: &Credential<'_>) -> Input {
        self.turn = Some(turn);
        // The fields borrow, so that no copy of the secret is made.
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase", tag = "type")]
        enum Account<'a> {
            #[serde(rename_all = "camelCase")]
            ApiKey { api_key: &'a str },
            #[serde(rename_all = "camelCase")]
            ChatgptAuthTokens { access_token: &'a str, chatgpt_account_id: &'a str, chatgpt_plan_type: Option<&'a str> },
        }
        #[derive(serde::Serialize)]
        struct Request<'a> {
            id: u64,
            method: &'static str,
            params: Account<'a>,
        }
        let params = match credential {
            Credential::Tokens(tokens) => {
                self.login = Login::Tokens;
                self.renewable = tokens.renewable;
                Account::ChatgptAuthTokens {
                    access_token: tokens.access,
                    chatgpt_account_id: &tokens.account,
                    chatgpt_plan_type: tokens.plan.as_deref(),
                }
            }
            Credential::Key(key) | Credential::Variable(_, key) => {
                self.login = Login::Key;
                Account::ApiKey { api_key: key }
            }
            // Validation allows no mounted file for codex. Without a login, the provider refuses the turn.
            Credential::File => {
                self.login = Login::Done;
                return self.begin_turn();
            }
        };
        Input::line(&Request { id: LOGIN, method: "account/login/start", params })
    }

    pub(super) fn read(&mut self, message: &Value, subject: &Subject) -> Vec<Step> {
        match (message["method"].as_str(), &message["id"]) {
            (Some(method), id) if !id.is_null() => self.request(method, id),
            (Some(method), _) => self.notification(method, &message["params"]),
            (None, id) => self.response(id.as_u64(), message, subject),
        }
    }

    fn response(&mut self, id: Option<u64>, message: &Value, subject: &Subject) -> Vec<Step> {
        let error = &message["error"];
        if !error.is_null() {
            let words = words(&error["message"]).or_else(|| words(error)).unwrap_or_default();
            let what = match id {
                Some(INITIALIZE) => "codex refused to begin",
                Some(THREAD) => "codex started no thread",
                Some(LOGIN) => return vec![Step::Done(Err(format!("codex did not take the credential: {words}")))],
                Some(TURN) => return vec![Step::Done(Err(format!("codex did not begin the turn: {words}")))],
                _ => return Vec::new(),
            };
            return vec![Step::Failed(format!("{what}: {words}"))];
        }
        match id {
            Some(INITIALIZE) => vec![Step::Write(Input::lines(&[
                json!({"method": "initialized"}),
                json!({"id": THREAD, "method": "thread/start", "params": {
                    "model": subject.model, "cwd": subject.cwd, "ephemeral": true,
                    // The container is the sandbox.
                    "approvalPolicy": "never", "sandbox": "danger-full-access",
                }}),
            ]))],
            Some(THREAD) => match message["result"]["thread"]["id"].as_str() {
                Some(thread) => {
                    thread.clone_into(&mut self.thread);
                    vec![Step::Ready]
                }
                None => vec![Step::Failed("codex started a thread without an id".to_owned())],
            },
            Some(LOGIN) if self.login == Login::Key => self.logged_in(),
            _ => Vec::new(),
        }
    }

    fn logged_in(&mut self) -> Vec<Step> {
        self.login = Login::Done;
        vec![Step::Write(self.begin_turn())]
    }

    fn begin_turn(&mut self) -> Input {
        let Some(turn) = self.turn.take() else { return Input::default() };
        #[derive(serde::Serialize)]
        struct Text<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            text: &'a str,
        }
        #[derive(serde::Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Params<'a> {
            thread_id: &'a str,
            model: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            effort: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            cwd: Option<&'a str>,
            input: [Text<'a>; 1],
        }
        #[derive(serde::Serialize)]
        struct Request<'a> {
            id: u64,
            method: &'static str,
            params: Params<'a>,
        }
        Input::line(&Request {
            id: TURN,
            method: "turn/start",
            params: Params {
                thread_id: &self.thread,
                model: &turn.model,
                effort: turn.effort.as_ref().map(|effort| effort.name.as_str()),
                cwd: turn.cwd.as_deref(),
                input: [Text { kind: "text", text: &turn.prompt }],
            },
        })
    }

    /// Answers a request of codex, for another token or for permission, with an error. Without any answer codex would
    /// wait.
    fn request(&mut self, method: &str, id: &Value) -> Vec<Step> {
        if method == "account/chatgptAuthTokens/refresh" {
            self.refused = true;
        }
        let error = json!({"code": -32601, "message": "not available here"});
        vec![Step::Write(Input::line(&json!({"id": id, "error": error})))]
    }

    fn notification(&mut self, method: &str, params: &Value) -> Vec<Step> {
        // Threads of codex's helpers are not the answer; notices of the process have no thread.
        if params["threadId"].as_str().is_some_and(|thread| thread != self.thread) {
            return Vec::new();
        }
        if method.starts_with("item/")
            && params["item"]["type"].as_str().is_some_and(|kind| !WITHOUT_EFFECT.contains(&kind))
        {
            self.acted = true;
        }
        match method {
            "account/login/completed" => {
                // codex continues when it could not look up the account, and reports more in the turn if that matters.
                if params["success"] == false {
                    self.last_error = words(&params["error"]);
                }
                if self.login == Login::Tokens { self.logged_in() } else { Vec::new() }
            }
            "item/agentMessage/delta" => {
                let item = params["itemId"].as_str().unwrap_or_default();
                let piece = params["delta"].as_str().and_then(|text| self.answer.piece(item, text));
                piece.map(Step::Delta).into_iter().collect()
            }
            "item/completed" if params["item"]["type"] == "agentMessage" => {
                let item = params["item"]["id"].as_str().unwrap_or_default();
                let rest = params["item"]["text"].as_str().and_then(|text| self.answer.whole(item, text));
                rest.map(Step::Delta).into_iter().collect()
            }
            "error" => {
                self.last_error = words(&params["error"]["message"]);
                Vec::new()
            }
            "turn/completed" => vec![Step::Done(self.outcome(&params["turn"]))],
            _ => Vec::new(),
        }
    }

    fn outcome(&mut self, turn: &Value) -> Result<(), String> {
        if turn["status"] == "completed" {
            return Ok(());
        }
        if self.refused {
            return Err("the provider refused the access token (401 Unauthorized)".to_owned());
        }
        let error = words(&turn["error"]["message"]).or_else(|| words(&turn["error"]));
        Err(match (error, self.last_error.take()) {
            (Some(error), Some(last)) if error != last => format!("{error} ({last})"),
            (Some(error), _) | (None, Some(error)) => error,
            (None, None) => format!("codex says that the turn is {}", words(&turn["status"]).unwrap_or_default()),
        })
    }

    pub(super) fn may_want_renewal(&self) -> bool {
        self.renewable
    }

    pub(super) fn wants_renewal(&self) -> bool {
        self.was_refused() && self.renewable
    }

    pub(super) fn was_refused(&self) -> bool {
        self.refused && !self.answer.spoke && !self.acted
    }

    pub(super) fn last_error(self) -> Option<String> {
        self.last_error
    }
}
