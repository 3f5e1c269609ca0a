//! Anthropic Messages API, as far as claude-code uses it.

use serde_json::{Value, json};

use super::stream::Frame;

/// Text of the last message of the user, without the reminders that claude-code adds to it.
pub fn prompt(body: &Value) -> Option<String> {
    let last = body["messages"].as_array()?.iter().rev().find(|message| message["role"] == "user")?;
    match &last["content"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(blocks) => {
            let texts = blocks.iter().filter_map(|block| block["text"].as_str());
            Some(texts.filter(|text| !text.starts_with("<system-reminder>")).collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

/// The whole answer at once, for requests without `stream`.
pub fn message(model: &str, answer: &str) -> Value {
    json!({"id": "msg_offline", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": answer}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 11, "output_tokens": 2}})
}

/// The stream of one answer.
pub fn frames(model: &str, tokens: &[String]) -> Vec<Frame> {
    let mut frames = vec![
        Frame::named(&json!({"type": "message_start", "message": {"id": "msg_offline", "type": "message",
            "role": "assistant", "model": model, "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": 11, "output_tokens": 1}}})),
        Frame::named(&json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""}})),
    ];
    frames.extend(tokens.iter().map(|token| {
        Frame::named(&json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": token}}))
        .token()
    }));
    frames.extend([
        Frame::named(&json!({"type": "content_block_stop", "index": 0})),
        Frame::named(&json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": tokens.len()}})),
        Frame::named(&json!({"type": "message_stop"})),
    ]);
    frames
}

#[cfg(test)]
mod tests {
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
        assert_eq!(message("m", "201")["content"][0]["text"], "201");
        assert_eq!(frames("m", &["20".into(), "1".into()]).len(), 7);
    }
}
