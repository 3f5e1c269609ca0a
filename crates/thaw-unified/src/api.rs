//! The three streaming APIs: what to send, and what each event of the answer means.
//!
//! OpenAI: Responses (`POST /v1/responses`), <https://platform.openai.com/docs/api-reference/responses-streaming>.
//! Anthropic: Messages (`POST /v1/messages`), <https://docs.anthropic.com/en/docs/build-with-claude/streaming>.
//! Google: `streamGenerateContent?alt=sse`, <https://ai.google.dev/api/generate-content>.

use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Failure, Settings};

/// Version of Anthropic's API that the request and the events are those of.
const ANTHROPIC_VERSION: &str = "2023-06-01";
/// Most tokens of an answer. Anthropic wants a number; this one all of its current models take.
const MAX_TOKENS: u32 = 8192;

/// A provider's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// OpenAI Responses.
    Openai,
    /// Anthropic Messages.
    Anthropic,
    /// Google Gemini.
    Google,
}

/// What an event says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The next piece of the answer; empty if it holds none.
    pub text: String,
    /// Whether the answer is over, and whole.
    pub done: bool,
}

impl Api {
    /// What `PROVIDER` can be, for people.
    pub const NAMES: &str = "openai, anthropic or google";

    /// The API of a value of `PROVIDER`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "openai" => Some(Self::Openai),
            "anthropic" => Some(Self::Anthropic),
            "google" => Some(Self::Google),
            _ => None,
        }
    }

    /// Variables that may hold the key; the first is the one to tell people.
    pub fn key_variables(self) -> &'static [&'static str] {
        match self {
            Self::Openai => &["OPENAI_API_KEY"],
            Self::Anthropic => &["ANTHROPIC_API_KEY"],
            Self::Google => &["GOOGLE_API_KEY", "GEMINI_API_KEY"],
        }
    }

    /// Variable with another place of the API, as the providers' own libraries name and read it.
    pub fn base_url_variable(self) -> &'static str {
        match self {
            Self::Openai => "OPENAI_BASE_URL",
            Self::Anthropic => "ANTHROPIC_BASE_URL",
            Self::Google => "GOOGLE_GEMINI_BASE_URL",
        }
    }

    pub(super) fn default_base_url(self) -> &'static str {
        match self {
            Self::Openai => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com",
            Self::Google => "https://generativelanguage.googleapis.com",
        }
    }

    /// The same as in `providers/unified-*.toml`.
    pub(super) fn default_model(self) -> &'static str {
        match self {
            Self::Openai => "gpt-5-codex",
            Self::Anthropic => "claude-sonnet-4-5",
            Self::Google => "gemini-2.5-flash",
        }
    }

    /// The request for one answer, streamed.
    pub(super) fn request(self, http: &reqwest::Client, settings: &Settings) -> Result<RequestBuilder, Failure> {
        let Settings { model, prompt, base_url, .. } = settings;
        let user = settings.user.as_deref().map(pseudonym);
        let (url, body) = match self {
            Self::Openai => {
                let mut body = json!({"model": model, "input": prompt, "stream": true, "store": false});
                if let Some(user) = user {
                    body["safety_identifier"] = user.into();
                }
                (format!("{base_url}/responses"), body)
            }
            Self::Anthropic => {
                let mut body = json!({"model": model, "max_tokens": MAX_TOKENS, "stream": true,
                    "messages": [{"role": "user", "content": prompt}]});
                if let Some(user) = user {
                    body["metadata"] = json!({"user_id": user});
                }
                (format!("{base_url}/v1/messages"), body)
            }
            Self::Google => {
                let body = json!({"contents": [{"role": "user", "parts": [{"text": prompt}]}]});
                (format!("{base_url}/v1beta/models/{model}:streamGenerateContent?alt=sse"), body)
            }
        };
        let (header, value) = self.credential(settings.key.expose())?;
        let mut request = http.post(url).header(header, value).json(&body);
        if self == Self::Anthropic {
            request = request.header("anthropic-version", ANTHROPIC_VERSION);
        }
        Ok(request)
    }

    fn credential(self, key: &str) -> Result<(HeaderName, HeaderValue), Failure> {
        let (name, value) = match self {
            Self::Openai => (AUTHORIZATION, format!("Bearer {key}")),
            Self::Anthropic => (HeaderName::from_static("x-api-key"), key.to_owned()),
            Self::Google => (HeaderName::from_static("x-goog-api-key"), key.to_owned()),
        };
        let unusable = |_| Failure::Usage("the key has characters that no key has".to_owned());
        let mut value = HeaderValue::try_from(value).map_err(unusable)?;
        value.set_sensitive(true);
        Ok((name, value))
    }

    /// Reads one event.
    ///
    /// # Errors
    /// When it says that there is no more, although the answer is not whole.
    pub(super) fn read(self, event: &Value) -> Result<Step, Failure> {
        if event["error"].is_object() {
            return Err(Failure::Provider(message(event)));
        }
        match self {
            Self::Openai => read_openai(event),
            Self::Anthropic => read_anthropic(event),
            Self::Google => read_google(event),
        }
    }
}

fn read_openai(event: &Value) -> Result<Step, Failure> {
    match event["type"].as_str() {
        // A refusal is an answer too, only not the one that was hoped for.
        Some("response.output_text.delta" | "response.refusal.delta") => Ok(Step::text(&event["delta"])),
        Some("response.completed") => Ok(Step::done()),
        Some("response.incomplete") => Err(stopped(&event["response"]["incomplete_details"]["reason"])),
        Some("response.failed") => Err(Failure::Provider(message(&event["response"]))),
        Some("error") => Err(Failure::Provider(words(&event["message"]))),
        _ => Ok(Step::default()),
    }
}

fn read_anthropic(event: &Value) -> Result<Step, Failure> {
    match event["type"].as_str() {
        Some("content_block_delta") if event["delta"]["type"] == "text_delta" => {
            Ok(Step::text(&event["delta"]["text"]))
        }
        Some("message_delta") => match &event["delta"]["stop_reason"] {
            Value::Null => Ok(Step::default()),
            reason if reason == "end_turn" || reason == "stop_sequence" => Ok(Step::done()),
            reason => Err(stopped(reason)),
        },
        Some("message_stop") => Ok(Step::done()),
        _ => Ok(Step::default()),
    }
}

fn read_google(event: &Value) -> Result<Step, Failure> {
    let candidate = &event["candidates"][0];
    if let Some(reason) = event["promptFeedback"]["blockReason"].as_str() {
        return Err(Failure::Provider(format!("the prompt was blocked: {reason}")));
    }
    let parts = candidate["content"]["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = parts.iter().filter(|part| part["thought"] != true).filter_map(|part| part["text"].as_str()).collect();
    let done = match &candidate["finishReason"] {
        Value::Null => false,
        reason if reason == "STOP" => true,
        // What there is of the text is lost with it, which is no more than the end of a piece.
        reason => return Err(stopped(reason)),
    };
    Ok(Step { text, done })
}

impl Step {
    fn text(value: &Value) -> Self {
        Self { text: value.as_str().unwrap_or_default().to_owned(), done: false }
    }

    fn done() -> Self {
        Self { text: String::new(), done: true }
    }
}

fn stopped(reason: &Value) -> Failure {
    Failure::Incomplete(format!("the model stopped because of {}", words(reason)))
}

/// The message of an error, which all three put in the same place.
pub(super) fn message(body: &Value) -> String {
    words(if body["error"]["message"].is_null() { &body["error"] } else { &body["error"]["message"] })
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "no reason given".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The user as the providers want to see them, for tracing abuse: always the same and telling nothing. 64
/// hexadecimal digits, the longest that OpenAI takes.
fn pseudonym(user: &str) -> String {
    Sha256::digest(user).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(api: Api, event: Value) -> Result<Step, Failure> {
        api.read(&event)
    }

    #[test]
    fn text_comes_from_the_events_that_carry_it() {
        let text = |text: &str| Ok(Step { text: text.to_owned(), done: false });
        let nothing = Ok(Step::default());
        assert_eq!(read(Api::Openai, json!({"type": "response.output_text.delta", "delta": "20"})), text("20"));
        assert_eq!(read(Api::Openai, json!({"type": "response.created"})), nothing);
        let delta = |kind: &str| json!({"type": "content_block_delta", "delta": {"type": kind, "text": "20"}});
        assert_eq!(read(Api::Anthropic, delta("text_delta")), text("20"));
        assert_eq!(read(Api::Anthropic, delta("thinking_delta")), nothing);
        let parts = json!([{"text": "hm", "thought": true}, {"text": "20"}, {"text": "1"}]);
        assert_eq!(read(Api::Google, json!({"candidates": [{"content": {"parts": parts}}]})), text("201"));
        assert_eq!(read(Api::Google, json!({"usageMetadata": {}})), nothing);
    }

    #[test]
    fn only_a_whole_answer_is_done() {
        let end = |api, event| read(api, event).map(|step| step.done);
        assert_eq!(end(Api::Openai, json!({"type": "response.completed"})), Ok(true));
        let cut =
            json!({"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}});
        assert!(end(Api::Openai, cut).unwrap_err().to_string().contains("max_output_tokens"));
        let stop = |reason: &str| json!({"type": "message_delta", "delta": {"stop_reason": reason}});
        assert_eq!(end(Api::Anthropic, stop("end_turn")), Ok(true));
        assert!(matches!(end(Api::Anthropic, stop("max_tokens")), Err(Failure::Incomplete(_))));
        let finish = |reason: &str| json!({"candidates": [{"finishReason": reason}]});
        assert_eq!(end(Api::Google, finish("STOP")), Ok(true));
        assert!(matches!(end(Api::Google, finish("SAFETY")), Err(Failure::Incomplete(_))));
        let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
        assert!(matches!(end(Api::Google, blocked), Err(Failure::Provider(_))));
    }

    #[test]
    fn errors_within_a_stream_are_errors() {
        let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        assert_eq!(read(Api::Anthropic, overloaded), Err(Failure::Provider("Overloaded".to_owned())));
        let failed = json!({"type": "response.failed", "response": {"error": {"code": "x", "message": "it broke"}}});
        assert_eq!(read(Api::Openai, failed), Err(Failure::Provider("it broke".to_owned())));
        let plain = json!({"type": "error", "code": "x", "message": "it broke"});
        assert_eq!(read(Api::Openai, plain), Err(Failure::Provider("it broke".to_owned())));
        let google = json!({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}});
        assert_eq!(read(Api::Google, google), Err(Failure::Provider("overloaded".to_owned())));
    }

    #[test]
    fn users_are_told_apart_but_not_told() {
        assert_eq!(pseudonym("abc").len(), 64);
        assert!(pseudonym("abc").starts_with("ba7816bf8f01"), "printf abc | sha256sum");
    }
}
