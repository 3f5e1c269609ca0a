//! Anthropic Messages API, as far as claude-code uses it.

use serde_json::{Value, json};

use super::script::{Reply, Step, ToolResult, offered, turn_of};
use super::stream::Frame;

/// Text of the last message of the user, without the reminders that claude-code adds to it; what tools gave is no
/// message of the user.
pub fn prompt(body: &Value) -> Option<String> {
    body["messages"].as_array()?.iter().rev().filter(|message| message["role"] == "user").find_map(text_of)
}

fn text_of(message: &Value) -> Option<String> {
    match &message["content"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) if !blocks.iter().any(|block| block["type"] == "tool_result") => {
            let texts = blocks.iter().filter_map(|block| block["text"].as_str());
            let texts: Vec<_> = texts.filter(|text| !text.starts_with("<system-reminder>")).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}

/// Names of the tools that were offered.
pub fn tools(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().into_iter().flatten();
    tools.filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect()
}

/// How many turns of a script have been made, and what the tools of the last one gave, in the order of the calls.
pub fn results(body: &Value) -> (usize, Vec<ToolResult>) {
    let messages = body["messages"].as_array().into_iter().flatten();
    let blocks = messages.flat_map(|message| message["content"].as_array().into_iter().flatten());
    let results = blocks.filter(|block| block["type"] == "tool_result");
    let of_script = results.filter_map(|block| Some((block["tool_use_id"].as_str().and_then(turn_of)?, block)));
    let mut of_script: Vec<(usize, &Value)> = of_script.collect();
    let turns = of_script.iter().map(|(turn, _)| turn + 1).max().unwrap_or(0);
    of_script.retain(|(turn, _)| turn + 1 == turns);
    of_script.sort_by_key(|(_, block)| block["tool_use_id"].as_str().map(|id| (id.len(), id.to_owned())));
    let result = |(_, block): (usize, &Value)| {
        let text = match &block["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().map(part).collect(),
            _ => String::new(),
        };
        ToolResult::new(text, block["is_error"] == json!(true))
    };
    (turns, of_script.into_iter().map(result).collect())
}

/// A part of a tool's result; of an image its kind and size.
fn part(part: &Value) -> String {
    match part["text"].as_str() {
        Some(text) => text.to_owned(),
        None => {
            let data = part["source"]["data"].as_str().unwrap_or_default();
            format!("[{} of {} base64 digits]", part["source"]["media_type"].as_str().unwrap_or("data"), data.len())
        }
    }
}

/// A step by the tools that claude-code has.
pub fn call(step: &Step, tools: &[String]) -> Result<(String, Value), String> {
    // Where there is no tool for it, as in the native CLI, it is done with the shell.
    let grep = |pattern: &str, path: &str| {
        format!("rg -n '{}' '{}'", pattern.replace('\'', r"'\''"), path.replace('\'', r"'\''"))
    };
    let (wanted, input) = match step {
        Step::Search { pattern, path } if offered(tools, &["Grep"]).is_err() => {
            ("Bash", json!({"command": grep(pattern, path), "description": "As the script says"}))
        }
        Step::Run(command) => ("Bash", json!({"command": command, "description": "As the script says"})),
        Step::Read(path) => ("Read", json!({"file_path": path})),
        Step::Write { path, content } => ("Write", json!({"file_path": path, "content": content})),
        Step::Edit { path, old, new } => ("Edit", json!({"file_path": path, "old_string": old, "new_string": new})),
        Step::Search { pattern, path } => {
            ("Grep", json!({"pattern": pattern, "path": path, "output_mode": "content", "-n": true}))
        }
        other => return Err(format!("{other:?} is no call")),
    };
    Ok((offered(tools, &[wanted])?.to_owned(), input))
}

/// The whole answer at once, for requests without `stream`.
pub fn message(model: &str, reply: &Reply) -> Value {
    let mut content = Vec::new();
    if !reply.tokens.is_empty() || reply.calls.is_empty() {
        content.push(json!({"type": "text", "text": reply.tokens.concat()}));
    }
    for call in &reply.calls {
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}));
    }
    json!({"id": "msg_offline", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": stop_reason(reply), "stop_sequence": null, "usage": {"input_tokens": 11, "output_tokens": 2}})
}

fn stop_reason(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "end_turn" } else { "tool_use" }
}

/// The stream of one answer.
pub fn frames(model: &str, reply: &Reply) -> Vec<Frame> {
    let mut frames = vec![Frame::named(&json!({"type": "message_start", "message": {"id": "msg_offline",
        "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": {"input_tokens": 11, "output_tokens": 1}}}))];
    let mut index = 0;
    let mut block = |start: Value, deltas: Vec<Frame>| {
        frames.push(Frame::named(&json!({"type": "content_block_start", "index": index, "content_block": start})));
        frames.extend(deltas);
        frames.push(Frame::named(&json!({"type": "content_block_stop", "index": index})));
        index += 1;
        index
    };
    let mut at = 0;
    let delta = |index: i32, delta: Value| {
        Frame::named(&json!({"type": "content_block_delta", "index": index, "delta": delta}))
    };
    for thought in &reply.thoughts {
        let deltas = vec![
            delta(at, json!({"type": "thinking_delta", "thinking": thought})),
            delta(at, json!({"type": "signature_delta", "signature": "b2ZmbGluZQ=="})),
        ];
        at = block(json!({"type": "thinking", "thinking": "", "signature": ""}), deltas);
    }
    if !reply.tokens.is_empty() || reply.calls.is_empty() {
        let text = |token: &String| delta(at, json!({"type": "text_delta", "text": token})).token();
        at = block(json!({"type": "text", "text": ""}), reply.tokens.iter().map(text).collect());
    }
    for call in &reply.calls {
        let input = delta(at, json!({"type": "input_json_delta", "partial_json": call.input.to_string()}));
        at = block(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}), vec![input]);
    }
    frames.extend([
        Frame::named(&json!({"type": "message_delta",
            "delta": {"stop_reason": stop_reason(reply), "stop_sequence": null},
            "usage": {"output_tokens": reply.tokens.len() + reply.calls.len()}})),
        Frame::named(&json!({"type": "message_stop"})),
    ]);
    frames
}

#[cfg(test)]
mod tests {
    use super::super::script::ToolCall;
    use super::*;

    #[test]
    fn reminders_are_not_the_prompt() {
        let body = json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>9*9</system-reminder>"},
            {"type": "text", "text": "3*67"},
        ]}]});
        assert_eq!(prompt(&body).as_deref(), Some("3*67"));
        let plain = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]});
        assert_eq!(prompt(&plain).as_deref(), Some("hi"));
    }

    #[test]
    fn both_forms_carry_the_answer() {
        let reply = Reply { tokens: vec!["20".into(), "1".into()], ..Reply::default() };
        assert_eq!(message("m", &reply)["content"][0]["text"], "201");
        assert_eq!(message("m", &reply)["stop_reason"], "end_turn");
        assert_eq!(frames("m", &reply).len(), 7);
    }

    #[test]
    fn both_forms_carry_calls() {
        let calls = vec![ToolCall { id: "call_0_0".into(), name: "Bash".into(), input: json!({"command": "ls"}) }];
        let reply = Reply { thoughts: vec!["hm".into()], calls, ..Reply::default() };
        assert_eq!(message("m", &reply)["content"][0]["input"]["command"], "ls");
        assert_eq!(message("m", &reply)["stop_reason"], "tool_use");
        // Start, a thought (4), a call (3), delta and end.
        assert_eq!(frames("m", &reply).len(), 10);
    }

    #[test]
    fn what_tools_gave_is_no_prompt() {
        let body = json!({"messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "call_0_0"}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_0_1", "content": [{"type": "text", "text": "b"}]},
                {"type": "tool_result", "tool_use_id": "call_0_0", "content": "a", "is_error": true},
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
            ]},
        ]});
        assert_eq!(prompt(&body).as_deref(), Some("go"));
        let (turns, results) = results(&body);
        assert_eq!(turns, 1);
        assert_eq!(results, [ToolResult::new("a".into(), true), ToolResult::new("b".into(), false)]);
    }
}
