//! OpenAI Responses API, as far as codex uses it.

use serde_json::{Value, json};

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

/// The stream of one answer. codex shows nothing without `output_item.done` and retries without
/// `response.completed`.
pub fn frames(model: &str, tokens: &[String]) -> Vec<Frame> {
    let text = tokens.concat();
    let response = |status: &str, output: Value| {
        json!({"id": "resp_offline", "object": "response", "created_at": 0, "model": model, "status": status,
            "output": output})
    };
    let item = |status: &str, content: Value| json!({"id": "msg_offline", "type": "message", "status": status, "role": "assistant", "content": content});
    let mut frames = vec![
        Frame::named(&json!({"type": "response.created", "sequence_number": 0,
            "response": response("in_progress", json!([]))})),
        Frame::named(&json!({"type": "response.output_item.added", "sequence_number": 1, "output_index": 0,
            "item": item("in_progress", json!([]))})),
    ];
    for (number, token) in tokens.iter().enumerate() {
        frames.push(
            Frame::named(&json!({"type": "response.output_text.delta", "sequence_number": 2 + number,
                "item_id": "msg_offline", "output_index": 0, "content_index": 0, "delta": token}))
            .token(),
        );
    }
    let done = item("completed", json!([{"type": "output_text", "text": text, "annotations": []}]));
    frames.push(Frame::named(&json!({"type": "response.output_item.done", "sequence_number": 2 + tokens.len(),
        "output_index": 0, "item": done})));
    let mut completed = response("completed", json!([done]));
    completed["usage"] = json!({"input_tokens": 11, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": tokens.len(), "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11 + tokens.len()});
    frames.push(Frame::named(&json!({"type": "response.completed", "sequence_number": 3 + tokens.len(),
        "response": completed})));
    frames
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
        let frames = frames("gpt-5-codex", &["20".into(), "1".into()]);
        assert_eq!(frames.len(), 6);
    }
}
