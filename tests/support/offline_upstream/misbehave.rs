//! Misbehaviour on demand: error statuses, an answer that never comes, a stream that is cut.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Which provider's API a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    Openai,
    Anthropic,
    Google,
}

/// What to do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Misbehaviour {
    /// Status 401 in the provider's own shape.
    #[serde(rename = "401")]
    Unauthorized,
    /// Status 429 in the provider's own shape.
    #[serde(rename = "429")]
    RateLimited,
    /// Status 500 in the provider's own shape.
    #[serde(rename = "500")]
    ServerError,
    /// Accept the request and never answer.
    #[serde(rename = "stall")]
    Stall,
    /// Close the connection in the middle of the stream.
    #[serde(rename = "cut")]
    Cut,
}

impl Misbehaviour {
    /// Reads `misbehave:WORD` in a prompt.
    pub fn in_prompt(prompt: &str) -> Option<Self> {
        let (_, rest) = prompt.split_once("misbehave:")?;
        let word: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        serde_json::from_value(Value::String(word)).ok()
    }

    /// The status of a misbehaviour that is an error answer.
    fn status(self) -> Option<StatusCode> {
        match self {
            Self::Unauthorized => Some(StatusCode::UNAUTHORIZED),
            Self::RateLimited => Some(StatusCode::TOO_MANY_REQUESTS),
            Self::ServerError => Some(StatusCode::INTERNAL_SERVER_ERROR),
            Self::Stall | Self::Cut => None,
        }
    }

    /// Error answer or stall; `None` when the request is to be answered (and perhaps cut later).
    pub async fn instead_of_answer(self, api: Api) -> Option<Response> {
        if self == Self::Stall {
            std::future::pending::<()>().await;
        }
        self.status().map(|status| error(api, status))
    }
}

/// An error answer in the shape of `api`.
pub fn error(api: Api, status: StatusCode) -> Response {
    let code = status.as_u16();
    let body = match api {
        Api::Openai => {
            let (kind, name, message) = match code {
                401 => ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
                429 => ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
                404 => ("invalid_request_error", "not_found", "Not found."),
                _ => ("server_error", "server_error", "The server had an error while processing your request."),
            };
            json!({"error": {"message": message, "type": kind, "param": null, "code": name}})
        }
        Api::Anthropic => {
            let (kind, message) = match code {
                401 => ("authentication_error", "invalid x-api-key"),
                429 => ("rate_limit_error", "This request would exceed your rate limit."),
                404 => ("not_found_error", "Not found"),
                _ => ("api_error", "Internal server error"),
            };
            json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_offline"})
        }
        Api::Google => {
            let (name, message) = match code {
                401 => ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
                429 => ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
                404 => ("NOT_FOUND", "Requested entity was not found."),
                _ => ("INTERNAL", "Internal error encountered."),
            };
            json!({"error": {"code": code, "message": message, "status": name}})
        }
    };
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_a_prompt() {
        for (prompt, expected) in [
            ("3*67 misbehave:401", Some(Misbehaviour::Unauthorized)),
            ("misbehave:429, please", Some(Misbehaviour::RateLimited)),
            ("misbehave:500", Some(Misbehaviour::ServerError)),
            ("say misbehave:stall", Some(Misbehaviour::Stall)),
            ("misbehave:cut\n", Some(Misbehaviour::Cut)),
            ("misbehave:418", None),
            ("behave", None),
        ] {
            assert_eq!(Misbehaviour::in_prompt(prompt), expected, "{prompt}");
        }
    }

    #[tokio::test]
    async fn errors_have_the_status_asked_for() {
        for api in [Api::Openai, Api::Anthropic, Api::Google] {
            let answer = Misbehaviour::RateLimited.instead_of_answer(api).await;
            let answer = answer.expect("a 429 is an answer");
            assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(answer.headers()["retry-after"], "1");
            assert!(Misbehaviour::Cut.instead_of_answer(api).await.is_none());
        }
    }
}
