//! The prestart drivers against what the real CLIs printed, cut down to what matters.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use thaw_client::types::Secret;
use thawd::provider::{
    self, Verdict,
    prestart::{Action, Dialogue, Driver, Input, LateRequest, Refusal},
};

type Names = BTreeMap<String, Secret>;

fn named(name: &str, value: &str) -> Names {
    [(name.to_owned(), Secret::new(value.to_owned()))].into()
}

const PROMPT: &str = "What is 3*67?\nOnly \"the number\".";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

/// A process of the shipped manifest, and what it is asked.
struct Bench {
    driver: Driver,
    files: Names,
    variables: Names,
    effort: Option<&'static str>,
    cwd: Option<&'static str>,
    model: Option<&'static str>,
}

impl Bench {
    fn new(provider: &str, files: Names, variables: Names) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers");
        let plan = provider::load_dir(&dir).unwrap()[provider].prestart(None, None).unwrap().unwrap();
        Self { driver: Driver::new(Arc::new(plan)), files, variables, effort: None, cwd: None, model: None }
    }

    fn key(provider: &str, name: &str) -> Self {
        Self::new(provider, Names::new(), named(name, "sk-secret"))
    }

    fn claim(&mut self) -> Result<Vec<Value>, Refusal> {
        let env = BTreeMap::new();
        let model = self.driver.plan().model.clone();
        let request = LateRequest {
            prompt: PROMPT,
            model: self.model.unwrap_or(&model),
            effort: self.effort,
            cwd: self.cwd,
            files: &self.files,
            variables: &self.variables,
            env: &env,
            now: now(),
        };
        self.driver.claim(&request).map(|input| lines(&input))
    }

    /// Output of the CLI, one message a line.
    fn says(&mut self, messages: &[Value]) -> Vec<Action> {
        let text: String = messages.iter().map(|message| format!("{message}\n")).collect();
        self.driver.on_stdout(text.as_bytes())
    }

    /// What it writes in answer to `message`, and nothing else.
    fn answers(&mut self, message: Value) -> Vec<Value> {
        match self.says(&[message]).as_slice() {
            [Action::Write(input)] => lines(input),
            other => panic!("{other:?}"),
        }
    }

    /// Text and verdict of `messages`.
    fn ends(&mut self, messages: &[Value]) -> (String, Verdict) {
        let mut text = String::new();
        let mut end = None;
        for action in self.says(messages) {
            match action {
                Action::Delta(delta) => text.push_str(&delta),
                Action::Done(verdict) => assert!(end.replace(verdict).is_none(), "one verdict"),
                other => panic!("{other:?}"),
            }
        }
        (text, end.expect("a verdict"))
    }

    fn fails(&mut self, messages: &[Value]) -> String {
        let (_, verdict) = self.ends(messages);
        assert_eq!(verdict.success, Some(false));
        verdict.error.expect("a failure has a reason")
    }
}

fn lines(input: &Input) -> Vec<Value> {
    let text = std::str::from_utf8(input).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "whole lines");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn success() -> Verdict {
    Verdict { success: Some(true), error: None }
}

fn codex(bench: &mut Bench) {
    let first = lines(&bench.driver.start());
    assert_eq!(first[0]["method"], "initialize");
    let next = bench.answers(json!({"id": 0, "result": {"userAgent": "thawd/0.169.0"}}));
    assert_eq!(next[0], json!({"method": "initialized"}));
    assert_eq!(next[1]["params"]["model"], "gpt-5-codex");
    assert!(!bench.driver.is_ready());
    let ready = bench.says(&[
        json!({"method": "remoteControl/status/changed", "params": {"status": "disabled"}}),
        json!({"id": 1, "result": {"thread": {"id": "t1"}}}),
        json!({"method": "thread/started", "params": {"thread": {"id": "t1"}}}),
    ]);
    assert_eq!(ready, [Action::Ready]);
}

fn delta(item: &str, text: &str) -> Value {
    json!({"method": "item/agentMessage/delta", "params": {"threadId": "t1", "itemId": item, "delta": text}})
}

fn message(item: &str, text: &str) -> Value {
    json!({"method": "item/completed", "params": {"threadId": "t1",
        "item": {"type": "agentMessage", "id": item, "text": text}}})
}

fn turn(status: &str, error: &Value) -> Value {
    json!({"method": "turn/completed", "params": {"threadId": "t1", "turn": {"status": status, "error": error}}})
}

fn codex_turn(bench: &mut Bench) -> Value {
    codex(bench);
    bench.claim().unwrap();
    let turn = bench.answers(json!({"id": 2, "result": {"type": "apiKey"}}));
    assert_eq!(turn.len(), 1);
    turn[0].clone()
}

#[test]
fn codex_takes_a_key_model_and_effort_late() {
    let mut bench = Bench::key("openai", "CODEX_API_KEY");
    (bench.model, bench.effort) = (Some("gpt-5.1"), Some("high"));
    codex(&mut bench);
    let claim = bench.claim().unwrap();
    assert_eq!(
        claim,
        [json!({"id": 2, "method": "account/login/start",
        "params": {"type": "apiKey", "apiKey": "sk-secret"}})]
    );
    let turn = bench.answers(json!({"id": 2, "result": {"type": "apiKey"}}));
    assert_eq!(
        turn,
        [json!({"id": 3, "method": "turn/start", "params": {"threadId": "t1", "model": "gpt-5.1",
        "effort": "high", "input": [{"type": "text", "text": "What is 3*67?\nOnly \"the number\"."}]}})]
    );
    let login = json!({"method": "account/login/completed", "params": {"success": true, "error": null}});
    assert!(bench.says(&[login]).is_empty(), "the turn is begun once");
}

#[test]
fn codex_answers() {
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    assert_eq!(codex_turn(&mut bench)["params"].get("effort"), None, "codex has its own default");
    let (text, verdict) = bench.ends(&[
        json!({"method": "item/completed", "params": {"threadId": "t1", "item": {"type": "userMessage"}}}),
        delta("m1", "20"),
        json!({"method": "item/agentMessage/delta", "params": {"threadId": "t2", "itemId": "x", "delta": "other"}}),
        delta("m1", "1"),
        message("m1", "201"),
        message("m2", "whole"),
        delta("m3", "beg"),
        message("m3", "begun"),
        turn("completed", &Value::Null),
        turn("failed", &json!({"message": "too late"})),
    ]);
    assert_eq!((text.as_str(), verdict), ("201\n\nwhole\n\nbegun", success()));
}

#[test]
fn codex_begins_the_turn_when_the_account_is_known() {
    let jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
    let file = |refresh: &str| {
        json!({"OPENAI_API_KEY": null, "tokens": {"id_token": jwt, "access_token": jwt, "refresh_token": refresh,
            "account_id": "acct"}})
        .to_string()
    };
    let mut bench = Bench::new("openai", named("auth.json", &file("rt-secret")), Names::new());
    codex(&mut bench);
    let login = bench.claim().unwrap();
    assert_eq!(
        login[0]["params"],
        json!({"type": "chatgptAuthTokens", "accessToken": jwt, "chatgptAccountId": "acct",
        "chatgptPlanType": null})
    );
    // A turn that begins now would end with "application network permission was revoked".
    assert!(bench.says(&[json!({"id": 2, "result": {"type": "chatgptAuthTokens"}})]).is_empty());
    let done = json!({"method": "account/login/completed", "params": {"success": false, "error": "no workspace"}});
    assert_eq!(bench.answers(done)[0]["method"], "turn/start");

    // The provider refuses the token; codex asks for another one and must not wait for it.
    let asked = json!({"id": 0, "method": "account/chatgptAuthTokens/refresh", "params": {"reason": "unauthorized"}});
    let answer = bench.answers(asked);
    assert_eq!((&answer[0]["id"], &answer[0]["error"]["code"]), (&json!(0), &json!(-32601)));
    let reason = bench.fails(&[
        json!({"method": "error", "params": {"threadId": "t1", "willRetry": false, "error": {"message": "refresh failed"}}}),
        turn("failed", &json!({"message": "auth refresh request failed: code=-32601"})),
    ]);
    assert_eq!(reason, "the provider refused the access token (401 Unauthorized)");
    assert!(bench.driver.dialogue().wants_renewal(), "the file has what is needed to renew it");
}

#[test]
fn codex_and_claude_say_that_a_token_was_refused_before_anything_was_done() {
    let jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
    // As the vault hands out a login that the daemon renews.
    let file = json!({"tokens": {"id_token": jwt, "access_token": jwt, "refresh_token": "", "account_id": "acct"}});
    let asked = json!({"id": 0, "method": "account/chatgptAuthTokens/refresh", "params": {"reason": "unauthorized"}});
    let item = |kind: &str| json!({"method": "item/started", "params": {"threadId": "t1", "item": {"type": kind, "id": "i1"}}});
    for (kind, is_repeatable) in [("userMessage", true), ("reasoning", true), ("commandExecution", false)] {
        let mut bench = Bench::new("openai", named("auth.json", &file.to_string()), Names::new());
        codex(&mut bench);
        bench.claim().unwrap();
        bench.says(&[json!({"method": "account/login/completed", "params": {"success": true}}), item(kind)]);
        bench.answers(asked.clone());
        bench.fails(&[turn("failed", &json!({"message": "auth refresh request failed"}))]);
        let dialogue = bench.driver.dialogue();
        assert_eq!((dialogue.was_refused(), dialogue.wants_renewal()), (is_repeatable, false), "{kind}");
    }
    let mut bench = Bench::key("anthropic-node", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    assert!(!bench.driver.dialogue().was_refused());
    bench.fails(&[json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": 401,
        "result": "Not logged in"})]);
    assert!(bench.driver.dialogue().was_refused());
}

#[test]
fn codex_fails() {
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex_turn(&mut bench);
    let refused = json!({"message": "unexpected status 401 Unauthorized: Incorrect API key provided."});
    let error = json!({"method": "error", "params": {"threadId": "t1", "willRetry": false, "error": refused}});
    let reason = bench.fails(&[error, turn("failed", &refused)]);
    assert_eq!(reason, "unexpected status 401 Unauthorized: Incorrect API key provided.");
    assert!(!bench.driver.dialogue().wants_renewal());

    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex(&mut bench);
    bench.claim().unwrap();
    let reason = bench.fails(&[json!({"id": 2, "error": {"code": -32600, "message": "API key login is disabled."}})]);
    assert_eq!(reason, "codex did not take the credential: API key login is disabled.");

    // Killed while it waited for the network.
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex_turn(&mut bench);
    bench.says(&[json!({"method": "error", "params": {"threadId": "t1", "willRetry": true,
        "error": {"message": "Reconnecting... waiting for network"}}})]);
    let verdict = bench.driver.into_dialogue().finish();
    assert_eq!(verdict.success, Some(false));
    assert!(verdict.error.unwrap().contains("waiting for network"));
}

fn claude(bench: &mut Bench) {
    let first = lines(&bench.driver.start());
    assert_eq!(first[0]["request"], json!({"subtype": "initialize"}));
    let answer = json!({"type": "control_response", "response": {"subtype": "success", "request_id": "initialize",
        "response": {"commands": []}}});
    assert_eq!(bench.says(&[answer]), [Action::Ready]);
}

#[test]
fn claude_takes_any_credential_late_and_loses_its_placeholder() {
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
        let mut bench = Bench::key("anthropic-node", name);
        claude(&mut bench);
        let claim = bench.claim().unwrap();
        let variables = json!({"CLAUDE_CODE_OAUTH_TOKEN": "", name: "sk-secret"});
        assert_eq!(claim[0], json!({"type": "update_environment_variables", "variables": variables}));
        assert_eq!(claim[1]["message"]["content"], "What is 3*67?\nOnly \"the number\".");
        assert_eq!(claim.len(), 2);
    }
    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    assert_eq!(bench.claim().unwrap()[0]["variables"], json!({"CLAUDE_CODE_OAUTH_TOKEN": "sk-secret"}));

    let mut bench = Bench::new("anthropic", named(".credentials.json", "{}"), Names::new());
    claude(&mut bench);
    assert_eq!(bench.claim().unwrap()[0]["variables"], json!({"CLAUDE_CODE_OAUTH_TOKEN": ""}));
}

#[test]
fn claude_takes_an_effort_late() {
    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    bench.effort = Some("low");
    claude(&mut bench);
    let claim = bench.claim().unwrap();
    assert_eq!(claim[0]["variables"]["CLAUDE_CODE_EFFORT_LEVEL"], "low");
    assert_eq!(claim[1]["request"], json!({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 4096}));
    assert_eq!(claim[2]["type"], "user");
}

#[test]
fn claude_answers_and_fails() {
    let event = |event: Value| json!({"type": "stream_event", "event": event, "parent_tool_use_id": null});
    let piece =
        |text: &str| event(json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}));
    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    let (text, verdict) = bench.ends(&[
        json!({"type": "system", "subtype": "init"}),
        event(json!({"type": "content_block_start"})),
        piece("20"),
        piece("1"),
        json!({"type": "assistant", "message": {"content": [{"type": "text", "text": "201"}]}}),
        json!({"type": "result", "subtype": "success", "is_error": false, "result": "201"}),
        piece("more"),
    ]);
    assert_eq!((text.as_str(), verdict), ("201", success()));

    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    let leave = json!({"type": "control_request", "request_id": "r", "request": {"subtype": "can_use_tool"}});
    assert_eq!(bench.answers(leave)[0]["response"]["subtype"], "error");
    let reason = bench.fails(&[
        json!({"type": "assistant", "message": {"model": "<synthetic>", "content": [{"type": "text", "text": "no"}]}}),
        json!({"type": "result", "subtype": "success", "is_error": true, "result": "Invalid API key"}),
    ]);
    assert_eq!(reason, "Invalid API key");

    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    assert_eq!(bench.driver.into_dialogue().finish().error.as_deref(), Some("claude ended without a result"));
}

fn gemini(bench: &mut Bench) {
    let first = lines(&bench.driver.start());
    assert_eq!((&first[0]["jsonrpc"], &first[0]["method"]), (&json!("2.0"), &json!("initialize")));
    assert_eq!(bench.says(&[json!({"jsonrpc": "2.0", "id": 0, "result": {"protocolVersion": 1}})]), [Action::Ready]);
}

fn gemini_prompt(bench: &mut Bench) {
    gemini(bench);
    bench.claim().unwrap();
    bench.answers(json!({"id": 1, "result": {}}));
    bench.answers(json!({"id": 2, "result": {"sessionId": "s1"}}));
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"method": "session/update", "params": {"sessionId": "s1",
        "update": {"sessionUpdate": kind, "content": {"type": "text", "text": text}}}})
}

fn gemini_end(reason: &str, tokens: u32) -> Value {
    json!({"id": 4, "result": {"stopReason": reason, "_meta": {"quota": {"token_count": {"output_tokens": tokens}}}}})
}

#[test]
fn gemini_takes_a_key_and_a_model_late() {
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    bench.model = Some("gemini-2.5-pro");
    gemini(&mut bench);
    let login = bench.claim().unwrap();
    assert_eq!(login[0]["params"], json!({"methodId": "gemini-api-key", "_meta": {"api-key": "sk-secret"}}));
    let session = bench.answers(json!({"id": 1, "result": {}}));
    assert_eq!(session[0]["params"], json!({"cwd": "/home/runtime", "mcpServers": []}));
    let model = bench.answers(json!({"id": 2, "result": {"sessionId": "s1"}}));
    assert_eq!(model[0]["params"], json!({"sessionId": "s1", "modelId": "gemini-2.5-pro"}));
    let prompt = bench.answers(json!({"id": 3, "result": {}}));
    assert_eq!(prompt[0]["method"], "session/prompt");
    assert_eq!(prompt[0]["params"]["prompt"][0]["text"], "What is 3*67?\nOnly \"the number\".");
}

#[test]
fn gemini_looks_for_its_file_when_told() {
    let mut bench = Bench::new("google", named("oauth_creds.json", "{}"), Names::new());
    gemini(&mut bench);
    assert_eq!(bench.claim().unwrap()[0]["params"], json!({"methodId": "oauth-personal"}));
    bench.answers(json!({"id": 1, "result": {}}));
    let prompt = bench.answers(json!({"id": 2, "result": {"sessionId": "s1"}}));
    assert_eq!(prompt[0]["method"], "session/prompt", "the model is the one that it was started with");
}

#[test]
fn gemini_answers() {
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    gemini_prompt(&mut bench);
    let leave = json!({"id": 7, "method": "session/request_permission", "params": {"options": [
        {"optionId": "always", "kind": "allow_always"}, {"optionId": "once", "kind": "allow_once"}]}});
    assert_eq!(bench.answers(leave)[0]["result"]["outcome"]["optionId"], "once");
    let (text, verdict) = bench.ends(&[
        chunk("agent_thought_chunk", "hm"),
        chunk("agent_message_chunk", "20"),
        chunk("agent_message_chunk", "1"),
        gemini_end("end_turn", 2),
    ]);
    assert_eq!((text.as_str(), verdict), ("201", success()));
}

#[test]
fn gemini_says_end_turn_and_means_failure() {
    for (messages, expected) in [
        (vec![gemini_end("end_turn", 5)], "no answer"),
        (vec![chunk("agent_message_chunk", "2"), gemini_end("end_turn", 0)], "broke off"),
        (vec![chunk("agent_message_chunk", "2"), gemini_end("max_turn_requests", 2)], "max_turn_requests"),
        (vec![json!({"id": 4, "error": {"code": 401, "message": "UNAUTHENTICATED"}})], "UNAUTHENTICATED"),
    ] {
        let mut bench = Bench::key("google", "GEMINI_API_KEY");
        gemini_prompt(&mut bench);
        let reason = bench.fails(&messages);
        assert!(reason.contains(expected), "{reason}");
    }
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    gemini(&mut bench);
    bench.claim().unwrap();
    let reason = bench.fails(&[json!({"id": 1, "error": {"code": -32000, "message": "no"}})]);
    assert_eq!(reason, "gemini did not take the credential: no");
}

#[test]
fn output_may_be_cut_anywhere_and_mixed_with_garbage() {
    let messages = [delta("m1", "20"), delta("m1", "1"), turn("completed", &Value::Null)];
    let mut text = "not json\n{\"id\":99,\"result\":null}\n[1]\nnull\n\"x\"\n\u{1b}[2J{\n".to_owned();
    text.extend(messages.iter().map(|message| format!("{message}\n")));
    text.push_str("after the end\n");
    for size in [1, 7, 64, 4096] {
        let mut bench = Bench::key("openai", "OPENAI_API_KEY");
        codex_turn(&mut bench);
        let actions: Vec<Action> = text.as_bytes().chunks(size).flat_map(|c| bench.driver.on_stdout(c)).collect();
        let expected = [Action::Delta("20".into()), Action::Delta("1".into()), Action::Done(success())];
        assert_eq!(actions, expected, "by {size}");
    }
}

#[test]
fn before_the_claim_anything_wrong_is_final() {
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    assert_eq!(bench.claim().unwrap_err(), Refusal::NotReady);
    let refused = bench.says(&[json!({"id": 0, "error": {"message": "Not initialized"}})]);
    assert_eq!(refused, [Action::Failed("codex refused to begin: Not initialized".into())]);
    assert!(bench.says(&[json!({"id": 1, "result": {"thread": {"id": "t1"}}})]).is_empty());
    assert_eq!(bench.claim().unwrap_err(), Refusal::NotReady);

    // It answers a question that nobody asked: it may have spent somebody's tokens.
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex(&mut bench);
    let actions = bench.says(&[delta("m1", "20"), turn("completed", &Value::Null)]);
    assert!(matches!(actions.as_slice(), [Action::Failed(_)]), "{actions:?}");
}

#[test]
fn a_driver_is_claimed_once_and_prints_no_secret() {
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    gemini(&mut bench);
    bench.claim().unwrap();
    assert_eq!(bench.claim().unwrap_err(), Refusal::NotReady);
    let jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
    let file = json!({"tokens": {"access_token": jwt, "account_id": "acct"}}).to_string();
    for mut bench in
        [Bench::key("openai", "OPENAI_API_KEY"), Bench::new("openai", named("auth.json", &file), Names::new())]
    {
        codex(&mut bench);
        bench.claim().unwrap();
        let printed = format!("{:?}", bench.driver);
        assert!(!printed.contains("sk-secret") && !printed.contains("c2ln"), "{printed}");
        assert!(!printed.contains("3*67"), "nor the prompt: {printed}");
    }
}

/// Another daemon's view of a conversation: written down, read again, with the prompt from elsewhere.
fn handed_on(dialogue: Dialogue) -> Dialogue {
    let json = serde_json::to_vec(&dialogue).unwrap();
    let text = String::from_utf8_lossy(&json);
    assert!(!text.contains("3*67") && !text.contains("sk-secret"), "neither prompt nor credential: {text}");
    let mut dialogue: Dialogue = serde_json::from_slice(&json).unwrap();
    dialogue.set_prompt(PROMPT);
    dialogue
}

/// Wherever the daemon dies, the next one says and hears the same as if it had been there from the beginning.
#[test]
fn a_conversation_that_is_handed_on_anywhere_goes_on_as_if_it_had_not_been() {
    let login = json!({"method": "account/login/completed", "params": {"success": true}});
    let codex_turn = vec![
        json!({"id": 2, "result": {"type": "apiKey"}}),
        login,
        json!({"id": 9, "method": "item/commandExecution/requestApproval", "params": {}}),
        delta("m1", "20"),
        message("m1", "201"),
        message("m2", "whole"),
        turn("completed", &Value::Null),
    ];
    let gemini_turn = vec![
        json!({"id": 1, "result": {}}),
        json!({"id": 2, "result": {"sessionId": "s1"}}),
        json!({"id": 7, "method": "session/request_permission", "params": {"options": [
            {"optionId": "once", "kind": "allow_once"}]}}),
        chunk("agent_message_chunk", "20"),
        chunk("agent_message_chunk", "1"),
        gemini_end("end_turn", 2),
    ];
    let piece = |text: &str| {
        json!({"type": "stream_event", "parent_tool_use_id": null,
            "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}})
    };
    let claude_turn = vec![
        json!({"type": "control_request", "request_id": "r", "request": {"subtype": "can_use_tool"}}),
        piece("20"),
        piece("1"),
        json!({"type": "assistant", "message": {"content": [{"type": "text", "text": "201"}]}}),
        json!({"type": "result", "subtype": "success", "is_error": false, "result": "201"}),
    ];
    type Begin = fn(&mut Bench);
    let cases: [(&str, &str, Begin, Vec<Value>); 3] = [
        ("openai", "OPENAI_API_KEY", codex, codex_turn),
        ("anthropic", "CLAUDE_CODE_OAUTH_TOKEN", claude, claude_turn),
        ("google", "GEMINI_API_KEY", gemini, gemini_turn),
    ];
    for (provider, key, begin, messages) in cases {
        let text: String = messages.iter().map(|message| format!("{message}\n")).collect();
        let claimed = || {
            let mut bench = Bench::key(provider, key);
            begin(&mut bench);
            // Also one that waits is handed on.
            bench.driver =
                Driver::resume(Arc::new(bench.driver.plan().clone()), handed_on(bench.driver.into_dialogue()));
            bench.claim().unwrap();
            bench.driver.into_dialogue()
        };
        let expected = claimed().on_stdout(text.as_bytes());
        assert!(matches!(expected.last(), Some(Action::Done(verdict)) if *verdict == success()), "{expected:?}");
        assert!(expected.iter().any(|action| matches!(action, Action::Write(_))), "something is asked: {expected:?}");
        let begun = serde_json::to_vec(&claimed()).unwrap();
        for cut in 0..=text.len() {
            let mut dialogue: Dialogue = serde_json::from_slice(&begun).unwrap();
            dialogue.set_prompt(PROMPT);
            let mut actions = dialogue.on_stdout(&text.as_bytes()[..cut]);
            let mut dialogue = handed_on(dialogue);
            actions.extend(dialogue.on_stdout(&text.as_bytes()[cut..]));
            assert_eq!(actions, expected, "{provider}: cut at {cut}");
        }
    }
}

/// A tool's result of 3 MiB in the middle does not matter; an answer in a line of 1.2 MiB is no success, and that is said.
#[test]
fn long_lines_are_read_as_far_as_they_matter() {
    let (huge, long) = ("x".repeat(3 << 20), "y".repeat(1_200_000));
    let piece = json!({"type": "stream_event", "parent_tool_use_id": null,
        "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "201"}}});
    let result = |text: &str| json!({"type": "result", "subtype": "success", "is_error": false, "result": text});
    let tool = json!({"type": "user", "message": {"content": [{"type": "tool_result", "content": huge}]}});

    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    assert_eq!(bench.ends(&[tool.clone(), piece.clone(), result("201")]), ("201".to_owned(), success()));
    // The answer was streamed, so that what is left out of the line is known.
    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    assert_eq!(bench.ends(&[piece, result(&long)]), ("201".to_owned(), success()));
    let mut bench = Bench::key("anthropic", "CLAUDE_CODE_OAUTH_TOKEN");
    claude(&mut bench);
    bench.claim().unwrap();
    let reason = bench.fails(&[tool, result(&long)]);
    assert!(reason.contains("more than 1 MiB"), "{reason}");

    let item = |text: &str| {
        json!({"method": "item/completed", "params": {"threadId": "t1",
            "item": {"type": "commandExecution", "id": "c1", "aggregatedOutput": text}}})
    };
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex_turn(&mut bench);
    let ended = bench.ends(&[item(&huge), message("m1", "201"), turn("completed", &Value::Null)]);
    assert_eq!(ended, ("201".to_owned(), success()));
    let mut bench = Bench::key("openai", "OPENAI_API_KEY");
    codex_turn(&mut bench);
    let reason = bench.fails(&[message("m1", &long), turn("completed", &Value::Null)]);
    assert!(reason.contains("more than 1 MiB"), "{reason}");

    let tool = json!({"method": "session/update", "params": {"sessionId": "s1",
        "update": {"sessionUpdate": "tool_call_update", "rawOutput": huge}}});
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    gemini_prompt(&mut bench);
    let ended = bench.ends(&[tool, chunk("agent_message_chunk", "201"), gemini_end("end_turn", 2)]);
    assert_eq!(ended, ("201".to_owned(), success()));
    let mut bench = Bench::key("google", "GEMINI_API_KEY");
    gemini_prompt(&mut bench);
    let reason = bench.fails(&[chunk("agent_message_chunk", &long), gemini_end("end_turn", 2)]);
    assert!(reason.contains("more than 1 MiB"), "{reason}");
}
