//! Gemini API and Gemini Code Assist (`v1internal`), as far as gemini-cli uses them.

use serde_json::{Value, json};

use super::script::{Reply, Step, ToolResult, offered, turn_of};
use super::stream::Frame;

/// Text of the last message of the user, without the context that the CLI puts before it; what tools gave is no message
/// of the user. Code Assist wraps the request in `request`.
pub fn prompt(body: &Value) -> Option<String> {
    let contents = request(body)["contents"].as_array()?;
    let of_user = |content: &&Value| content["role"] == "user" && !has(content, "functionResponse");
    let last = contents.iter().rev().find(of_user)?;
    let texts = last["parts"].as_array()?.iter().filter_map(|part| part["text"].as_str());
    Some(texts.filter(|text| !text.starts_with("<session_context>")).collect::<Vec<_>>().join("\n"))
}

fn request(body: &Value) -> &Value {
    body.get("request").unwrap_or(body)
}

fn has(content: &Value, kind: &str) -> bool {
    content["parts"].as_array().is_some_and(|parts| parts.iter().any(|part| part.get(kind).is_some()))
}

/// Names of the tools that were offered.
pub fn tools(body: &Value) -> Vec<String> {
    let tools = request(body)["tools"].as_array().into_iter().flatten();
    let functions = tools.flat_map(|tool| tool["functionDeclarations"].as_array().into_iter().flatten());
    functions.filter_map(|function| function["name"].as_str().map(str::to_owned)).collect()
}

/// How many turns of a script have been made, and what the tools of the last one gave, in the order of the calls.
pub fn results(body: &Value) -> (usize, Vec<ToolResult>) {
    let contents = request(body)["contents"].as_array().into_iter().flatten();
    let parts = contents.flat_map(|content| content["parts"].as_array().into_iter().flatten());
    let responses = parts.filter_map(|part| part.get("functionResponse"));
    let of_script = responses.filter_map(|one| Some((one["id"].as_str().and_then(turn_of)?, one)));
    let mut of_script: Vec<(usize, &Value)> = of_script.collect();
    let turns = of_script.iter().map(|(turn, _)| turn + 1).max().unwrap_or(0);
    of_script.retain(|(turn, _)| turn + 1 == turns);
    of_script.sort_by_key(|(_, one)| one["id"].as_str().map(|id| (id.len(), id.to_owned())));
    let result = |(_, one): (usize, &Value)| match (&one["response"]["output"], &one["response"]["error"]) {
        (Value::String(text), _) => ToolResult::new(text.clone(), false),
        (_, Value::String(error)) => ToolResult::new(error.clone(), true),
        _ => ToolResult::new(one["response"].to_string(), false),
    };
    (turns, of_script.into_iter().map(result).collect())
}

/// A step by the tools that gemini-cli has.
pub fn call(step: &Step, tools: &[String]) -> Result<(String, Value), String> {
    let (wanted, input): (&[&str], Value) = match step {
        Step::Run(command) => {
            (&["run_shell_command"], json!({"command": command, "description": "As the script says"}))
        }
        Step::Read(path) => (&["read_file"], json!({"file_path": path})),
        Step::Write { path, content } => (&["write_file"], json!({"file_path": path, "content": content})),
        Step::Edit { path, old, new } => (
            &["replace"],
            json!({"file_path": path, "instruction": "As the script says", "old_string": old, "new_string": new}),
        ),
        Step::Search { pattern, path } => {
            (&["grep_search", "search_file_content"], json!({"pattern": pattern, "dir_path": path}))
        }
        other => return Err(format!("{other:?} is no call")),
    };
    Ok((offered(tools, wanted)?.to_owned(), input))
}

/// The model: named in Code Assist's body, in the path otherwise (`…/models/NAME:verb`).
pub fn model(path: &str, body: &Value) -> Option<String> {
    if let Some(model) = body["model"].as_str() {
        return Some(model.to_owned());
    }
    let (_, rest) = path.rsplit_once("/models/")?;
    rest.split(':').next().map(str::to_owned)
}

/// The whole answer at once.
pub fn answer(model: &str, reply: &Reply, wrapped: bool) -> Value {
    let mut parts = vec![json!({"text": reply.tokens.concat()})];
    parts.extend(calls(reply));
    wrap(chunk(model, parts, Some(2)), wrapped)
}

fn calls(reply: &Reply) -> impl Iterator<Item = Value> {
    reply.calls.iter().map(|call| json!({"functionCall": {"id": call.id, "name": call.name, "args": call.input}}))
}

/// The stream of one answer. The last chunk must carry a finish reason: the CLI retries without one.
pub fn frames(model: &str, reply: &Reply, wrapped: bool) -> Vec<Frame> {
    let thoughts = reply.thoughts.iter().map(|text| vec![json!({"text": text, "thought": true})]);
    let texts = reply.tokens.iter().map(|token| vec![json!({"text": token})]);
    let mut parts: Vec<Vec<Value>> = thoughts.chain(texts).collect();
    if !reply.calls.is_empty() {
        parts.push(calls(reply).collect());
    }
    let count = parts.len();
    let chunks = parts.into_iter().enumerate().map(|(number, parts)| {
        let chunk = chunk(model, parts, (number + 1 == count).then_some(count));
        Frame::unnamed(&wrap(chunk, wrapped)).token()
    });
    chunks.collect()
}

/// Answers of Code Assist's other methods; unknown ones get an empty object, as the CLI tolerates.
pub fn code_assist(method: &str) -> Value {
    match method {
        "loadCodeAssist" => json!({"currentTier": {"id": "standard-tier", "name": "Offline tier"},
            "cloudaicompanionProject": "offline-project"}),
        "onboardUser" => json!({"name": "operations/offline", "done": true, "response":
            {"cloudaicompanionProject": {"id": "offline-project", "name": "offline-project"}}}),
        "retrieveUserQuota" => json!({"buckets": []}),
        "listExperiments" => json!({"experimentIds": [], "flags": []}),
        "countTokens" => json!({"totalTokens": 11}),
        _ => json!({}),
    }
}

fn chunk(model: &str, parts: Vec<Value>, finished_with_tokens: Option<usize>) -> Value {
    let mut chunk = json!({"candidates": [{"content": {"role": "model", "parts": parts}, "index": 0}],
        "modelVersion": model});
    if let Some(tokens) = finished_with_tokens {
        chunk["candidates"][0]["finishReason"] = json!("STOP");
        chunk["usageMetadata"] = json!({"promptTokenCount": 11, "candidatesTokenCount": tokens,
            "totalTokenCount": 11 + tokens});
    }
    chunk
}

fn wrap(chunk: Value, wrapped: bool) -> Value {
    if wrapped { json!({"response": chunk, "traceId": "offline"}) } else { chunk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_models_of_both_apis() {
        let context = "<session_context>\nThis is the Gemini CLI: 9*9\n</session_context>";
        let contents = json!([{"role": "user", "parts": [{"text": context}, {"text": "3*67"}]}]);
        let plain = json!({"contents": contents});
        assert_eq!(prompt(&plain).as_deref(), Some("3*67"));
        let path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent";
        assert_eq!(model(path, &plain).as_deref(), Some("gemini-2.5-flash"));
        let wrapped = json!({"model": "gemini-2.5-pro", "request": {"contents": contents}});
        assert_eq!(prompt(&wrapped).as_deref(), Some("3*67"));
        assert_eq!(model("/v1internal:generateContent", &wrapped).as_deref(), Some("gemini-2.5-pro"));
    }

    #[test]
    fn only_the_last_chunk_is_finished() {
        let reply = Reply { tokens: vec!["20".into(), "1".into()], ..Reply::default() };
        let text = answer("m", &reply, true);
        assert_eq!(text["response"]["candidates"][0]["finishReason"], "STOP");
        assert_eq!(chunk("m", vec![], None)["candidates"][0].get("finishReason"), None);
        assert_eq!(frames("m", &reply, false).len(), 2);
    }

    #[test]
    fn what_tools_gave_is_no_prompt() {
        let response =
            |id: &str, response: Value| json!({"functionResponse": {"id": id, "name": "x", "response": response}});
        let body = json!({"request": {"contents": [
            {"role": "user", "parts": [{"text": "go"}]},
            {"role": "model", "parts": [{"functionCall": {"id": "call_0_0", "name": "x", "args": {}}}]},
            {"role": "user", "parts": [
                response("call_0_1", json!({"error": "no"})), response("call_0_0", json!({"output": "a"}))
            ]},
        ]}});
        assert_eq!(prompt(&body).as_deref(), Some("go"));
        let (turns, results) = results(&body);
        assert_eq!(turns, 1);
        assert_eq!(results, [ToolResult::new("a".into(), false), ToolResult::new("no".into(), true)]);
    }
}
