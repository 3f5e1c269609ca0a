//! Gemini API and Gemini Code Assist (`v1internal`), as far as gemini-cli uses them.

use serde_json::{Value, json};

use super::stream::Frame;

/// Text of the last message of the user, without the context that the CLI puts before it; Code Assist wraps the
/// request in `request`.
pub fn prompt(body: &Value) -> Option<String> {
    let request = body.get("request").unwrap_or(body);
    let last = request["contents"].as_array()?.iter().rev().find(|content| content["role"] == "user")?;
    let texts = last["parts"].as_array()?.iter().filter_map(|part| part["text"].as_str());
    Some(texts.filter(|text| !text.starts_with("<session_context>")).collect::<Vec<_>>().join("\n"))
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
pub fn answer(model: &str, text: &str, wrapped: bool) -> Value {
    wrap(chunk(model, text, Some(2)), wrapped)
}

/// The stream of one answer. The last chunk must carry a finish reason: the CLI retries without one.
pub fn frames(model: &str, tokens: &[String], wrapped: bool) -> Vec<Frame> {
    let last = tokens.len().saturating_sub(1);
    let chunks = tokens.iter().enumerate().map(|(number, token)| {
        let chunk = chunk(model, token, (number == last).then_some(tokens.len()));
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

fn chunk(model: &str, text: &str, finished_with_tokens: Option<usize>) -> Value {
    let mut chunk = json!({"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}],
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
        let text = answer("m", "201", true);
        assert_eq!(text["response"]["candidates"][0]["finishReason"], "STOP");
        assert_eq!(chunk("m", "20", None)["candidates"][0].get("finishReason"), None);
        assert_eq!(frames("m", &["20".into(), "1".into()], false).len(), 2);
    }
}
