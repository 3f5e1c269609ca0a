//! OpenAI Responses API, as far as codex uses it.

use serde_json::{Value, json};

use super::script::{Reply, Step, ToolCall, ToolResult, offered, turn_of};
use super::stream::Frame;

/// Text of the last message of the user.
pub fn prompt(body: &Value) -> Option<String> {
    if let Some(text) = body["input"].as_str() {
        return Some(text.to_owned());
    }
    let messages = body["input"].as_array()?;
    let last = messages.iter().rev().find(|item| item["role"] == "user")?;
    let text = match &last["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => return None,
    };
    Some(text)
}

/// Names of the tools that were offered.
pub fn tools(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().into_iter().flatten();
    tools.filter_map(|tool| tool["name"].as_str().or(tool["type"].as_str()).map(str::to_owned)).collect()
}

/// How many turns of a script have been made, and what the tools of the last one gave, in the order of the calls.
pub fn results(body: &Value) -> (usize, Vec<ToolResult>) {
    let items = body["input"].as_array().cloned().unwrap_or_default();
    let done = |item: &Value| item["call_id"].as_str().and_then(turn_of).map_or(0, |turn| turn + 1);
    let turns = items.iter().map(done).max().unwrap_or(0);
    let outputs = items.iter().filter(|item| item["type"].as_str().is_some_and(|kind| kind.ends_with("_output")));
    let mut last: Vec<&Value> = outputs.filter(|item| turns > 0 && done(item) == turns).collect();
    // By number: of two ids of one turn, the shorter has the smaller one.
    last.sort_by_key(|item| item["call_id"].as_str().map(|id| (id.len(), id.to_owned())));
    let results = last.into_iter().map(|item| {
        let output = &item["output"];
        let text = match output {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            other => other["content"].as_str().map_or_else(|| other.to_string(), str::to_owned),
        };
        ToolResult::new(text, output["success"] == json!(false))
    });
    (turns, results.collect())
}

/// A step by the tools that codex has: a shell, and patches.
pub fn call(step: &Step, tools: &[String]) -> Result<(String, Value), String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let run = |command: &str| {
        let name = offered(tools, &["exec_command", "shell_command", "shell"])?;
        let input = match name {
            "exec_command" => json!({"cmd": command}),
            "shell_command" => json!({"command": command}),
            _ => json!({"command": ["bash", "-c", command]}),
        };
        Ok((name.to_owned(), input))
    };
    // Not every model is offered the tool; codex knows the command as well.
    let patch = |text: String| match offered(tools, &["apply_patch"]) {
        Ok(name) => Ok((name.to_owned(), Value::String(text))),
        Err(_) => run(&format!("apply_patch <<'PATCH'\n{text}PATCH\n")),
    };
    let lines = |sign: char, text: &str| text.lines().map(|line| format!("{sign}{line}\n")).collect::<String>();
    match step {
        Step::Run(command) => run(command),
        Step::Read(path) => run(&format!("cat {}", quoted(path))),
        Step::Search { pattern, path } => run(&format!("rg -n {} {}", quoted(pattern), quoted(path))),
        Step::Write { path, content } => {
            patch(format!("*** Begin Patch\n*** Add File: {path}\n{}*** End Patch\n", lines('+', content)))
        }
        Step::Edit { path, old, new } => patch(format!(
            "*** Begin Patch\n*** Update File: {path}\n@@\n{}{}*** End Patch\n",
            lines('-', old),
            lines('+', new)
        )),
        other => Err(format!("{other:?} is no call")),
    }
}

/// The stream of one answer. codex shows nothing without `output_item.done` and retries without
/// `response.completed`.
pub fn frames(model: &str, reply: &Reply) -> Vec<Frame> {
    let response = |status: &str, output: Value| {
        json!({"id": "resp_offline", "object": "response", "created_at": 0, "model": model, "status": status,
            "output": output})
    };
    let mut frames = vec![Frame::named(&json!({"type": "response.created", "sequence_number": 0,
        "response": response("in_progress", json!([]))}))];
    let mut output = Vec::new();
    let mut number = 0;
    let mut next = |mut payload: Value| {
        number += 1;
        payload["sequence_number"] = json!(number);
        Frame::named(&payload)
    };
    for thought in &reply.thoughts {
        let item = json!({"id": format!("rs_{}", output.len()), "type": "reasoning",
            "summary": [{"type": "summary_text", "text": thought}], "encrypted_content": "offline"});
        frames.push(next(json!({"type": "response.output_item.done", "output_index": output.len(), "item": item})));
        output.push(item);
    }
    if !reply.tokens.is_empty() || reply.calls.is_empty() {
        let item = |status: &str, content: Value| json!({"id": "msg_offline", "type": "message", "status": status, "role": "assistant", "content": content});
        let at = output.len();
        frames.push(next(json!({"type": "response.output_item.added", "output_index": at,
            "item": item("in_progress", json!([]))})));
        frames.extend(reply.tokens.iter().map(|token| {
            next(json!({"type": "response.output_text.delta", "item_id": "msg_offline", "output_index": at,
                "content_index": 0, "delta": token}))
            .token()
        }));
        let text = reply.tokens.concat();
        let done = item("completed", json!([{"type": "output_text", "text": text, "annotations": []}]));
        frames.push(next(json!({"type": "response.output_item.done", "output_index": at, "item": done})));
        output.push(done);
    }
    for call in &reply.calls {
        let item = called(call);
        frames.push(next(json!({"type": "response.output_item.added", "output_index": output.len(), "item": item})));
        frames.push(next(json!({"type": "response.output_item.done", "output_index": output.len(), "item": item})));
        output.push(item);
    }
    let tokens = reply.tokens.len() + reply.calls.len();
    let mut completed = response("completed", json!(output));
    completed["usage"] = json!({"input_tokens": 11, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11 + tokens});
    frames.push(next(json!({"type": "response.completed", "response": completed})));
    frames
}

fn called(call: &ToolCall) -> Value {
    match &call.input {
        Value::String(text) => json!({"id": format!("ct_{}", call.id), "type": "custom_tool_call", "call_id": call.id,
            "name": call.name, "input": text, "status": "completed"}),
        input => json!({"id": format!("fc_{}", call.id), "type": "function_call", "call_id": call.id,
            "name": call.name, "arguments": input.to_string(), "status": "completed"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_the_last_user_message() {
        let body = json!({"input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "3*67"}]},
        ]});
        assert_eq!(prompt(&body).as_deref(), Some("3*67"));
        assert_eq!(prompt(&json!({"input": "hi"})).as_deref(), Some("hi"));
        assert_eq!(prompt(&json!({"input": []})), None);
    }

    #[test]
    fn the_stream_has_what_codex_needs() {
        let reply = Reply { tokens: vec!["20".into(), "1".into()], ..Reply::default() };
        assert_eq!(frames("gpt-5-codex", &reply).len(), 6);
    }

    #[test]
    fn results_of_the_last_turn_come_back_in_the_order_of_its_calls() {
        let output = |id: &str, text: &str| json!({"type": "function_call_output", "call_id": id, "output": text});
        let body = json!({"input": [
            {"role": "user", "content": "go"},
            {"type": "function_call", "call_id": "call_0_0"}, output("call_0_0", "old"),
            {"type": "function_call", "call_id": "call_1_0"}, {"type": "custom_tool_call", "call_id": "call_1_1"},
            output("call_1_1", "b"), output("call_1_0", "a"),
        ]});
        let (turns, results) = results(&body);
        assert_eq!(turns, 2);
        assert_eq!(results.iter().map(|result| result.text.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn steps_become_calls_of_the_tools_that_codex_offers() {
        let tools = ["shell_command".to_owned(), "apply_patch".to_owned()];
        let read = call(&Step::Read("a'b".into()), &tools).unwrap();
        assert_eq!(read, ("shell_command".into(), json!({"command": r"cat 'a'\''b'"})));
        let write = call(&Step::Write { path: "f".into(), content: "x\ny\n".into() }, &tools).unwrap();
        assert_eq!(write.1, "*** Begin Patch\n*** Add File: f\n+x\n+y\n*** End Patch\n");
        assert!(call(&Step::Run("ls".into()), &[]).is_err());
    }
}
