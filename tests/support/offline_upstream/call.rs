//! Which of the providers' calls a request is.

use axum::http::Method;
use serde_json::Value;

use super::script::{Step, ToolResult};
use super::{anthropic, google, misbehave::Api, openai};

/// What a request asks for, read off its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'a> {
    Responses,
    Messages,
    CountTokens,
    Generate { stream: bool, wrapped: bool },
    CodeAssist(&'a str),
    Side,
}

impl<'a> Call<'a> {
    /// Reads method and path.
    pub fn of(method: &Method, path: &'a str) -> Self {
        if method != Method::POST {
            return Self::Side;
        }
        let wrapped = path.starts_with("/v1internal");
        match path.rsplit_once(':').map(|(_, verb)| verb) {
            Some("streamGenerateContent") => return Self::Generate { stream: true, wrapped },
            Some("generateContent") => return Self::Generate { stream: false, wrapped },
            Some(verb) if wrapped => return Self::CodeAssist(verb),
            Some("countTokens") => return Self::CodeAssist("countTokens"),
            _ => {}
        }
        if path.ends_with("/responses") {
            Self::Responses
        } else if path.ends_with("/messages/count_tokens") {
            Self::CountTokens
        } else if path.ends_with("/messages") {
            Self::Messages
        } else {
            Self::Side
        }
    }

    /// The API that it belongs to, if any.
    pub fn api(self) -> Option<Api> {
        match self {
            Self::Responses => Some(Api::Openai),
            Self::Messages | Self::CountTokens => Some(Api::Anthropic),
            Self::Generate { .. } | Self::CodeAssist(_) => Some(Api::Google),
            Self::Side => None,
        }
    }

    /// What is asked, for calls that ask.
    pub fn prompt(self, body: &Value) -> Option<String> {
        match self {
            Self::Responses => openai::prompt(body),
            Self::Messages | Self::CountTokens => anthropic::prompt(body),
            Self::Generate { .. } => google::prompt(body),
            Self::CodeAssist(_) | Self::Side => None,
        }
    }

    /// Names of the tools that it offers.
    pub fn tools(self, body: &Value) -> Vec<String> {
        match self {
            Self::Responses => openai::tools(body),
            Self::Messages => anthropic::tools(body),
            Self::Generate { .. } => google::tools(body),
            Self::CountTokens | Self::CodeAssist(_) | Self::Side => Vec::new(),
        }
    }

    /// How many turns of a script it has behind it, and what the tools of the last one gave.
    pub fn results(self, body: &Value) -> (usize, Vec<ToolResult>) {
        match self {
            Self::Responses => openai::results(body),
            Self::Messages => anthropic::results(body),
            Self::Generate { .. } => google::results(body),
            Self::CountTokens | Self::CodeAssist(_) | Self::Side => (0, Vec::new()),
        }
    }

    /// A step of a script by one of the tools that were offered.
    pub fn step(self, step: &Step, tools: &[String]) -> Result<(String, Value), String> {
        match self {
            Self::Responses => openai::call(step, tools),
            Self::Messages => anthropic::call(step, tools),
            Self::Generate { .. } => google::call(step, tools),
            Self::CountTokens | Self::CodeAssist(_) | Self::Side => Err("it takes no calls".to_owned()),
        }
    }

    /// Which model is asked.
    pub fn model(self, path: &str, body: &Value) -> Option<String> {
        match self {
            Self::Generate { .. } => google::model(path, body),
            _ => body["model"].as_str().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let post = Method::POST;
        let generate = Call::Generate { stream: true, wrapped: true };
        assert_eq!(Call::of(&post, "/v1internal:streamGenerateContent"), generate);
        assert_eq!(Call::of(&post, "/v1internal:loadCodeAssist"), Call::CodeAssist("loadCodeAssist"));
        assert_eq!(Call::of(&post, "/backend-api/codex/responses"), Call::Responses);
        assert_eq!(Call::of(&post, "/v1/messages/count_tokens"), Call::CountTokens);
        assert_eq!(Call::of(&Method::GET, "/v1/responses"), Call::Side, "a WebSocket upgrade is not spoken");
    }
}
