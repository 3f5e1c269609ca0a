//! Request bodies: one limit, one time limit, one parse, and errors that never repeat a value (it may be a secret).

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::ApiError;

/// Reads and parses a JSON body of at most `limit` bytes, which has to arrive within `time`.
///
/// # Errors
/// 408 `body_timeout`, 413 `body_too_large`, 400 `invalid_json`, `unknown_field` or `invalid_field`.
pub async fn json<T: DeserializeOwned>(body: Body, limit: usize, time: Duration) -> Result<T, ApiError> {
    let arrived = tokio::time::timeout(time, axum::body::to_bytes(body, limit)).await.map_err(|_| {
        let seconds = time.as_secs();
        let detail = format!("the body did not arrive within {seconds} s (`api.connections.body_timeout_seconds`)");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })?;
    let bytes = arrived.map_err(|error| {
        let too_large =
            std::error::Error::source(&error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if too_large {
            let detail = format!("the body is larger than {limit} bytes (`api.max_body_bytes`)");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        } else {
            ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body did not arrive whole")
        }
    })?;
    let bytes = Zeroizing::new(Vec::from(bytes));
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        describe(error.inner(), &path)
    })?;
    deserializer.end().map_err(|error| describe(&error, "."))?;
    Ok(value)
}

fn describe(error: &serde_json::Error, path: &str) -> ApiError {
    let place = format!("line {} column {}", error.line(), error.column());
    if !error.is_data() {
        let detail = format!("the body is not valid JSON at {place}");
        return ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", detail);
    }
    // serde's own message quotes the offending value; only those about names are safe to pass on.
    let message = error.to_string();
    if message.starts_with("unknown field") {
        let known = message.split_once("expected").map_or("", |(_, known)| known.trim());
        let known = known.split(" at line").next().unwrap_or(known);
        let detail = format!("`{path}` is not a field; expected {known}");
        return ApiError::new(StatusCode::BAD_REQUEST, "unknown_field", detail);
    }
    if message.starts_with("missing field") {
        let detail = message.split(" at line").next().unwrap_or(&message).to_owned();
        return ApiError::new(StatusCode::BAD_REQUEST, "missing_field", detail);
    }
    let detail = format!("`{path}` has the wrong type or value at {place}; GET /openapi.json describes it");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_field", detail)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;

    use super::json;
    use thaw_client::types::ExecutionRequest;

    async fn error(body: &str) -> (u16, String, String) {
        let problem = json::<ExecutionRequest>(Body::from(body.to_owned()), 1000, Duration::from_secs(9)).await;
        let problem = problem.unwrap_err().problem();
        (problem.status, problem.code, problem.detail)
    }

    #[tokio::test]
    async fn each_mistake_has_its_code() {
        let (_, code, detail) = error(r#"{"provider":"a","user":"u","promt":"x"}"#).await;
        assert_eq!(code, "unknown_field");
        assert!(detail.contains("`promt`") && detail.contains("`prompt`"), "{detail}");
        assert_eq!(error(r#"{"provider":"a""#).await.1, "invalid_json");
        assert_eq!(error(r#"{"provider":"a","user":"u"} trailing"#).await.1, "invalid_json");
        assert_eq!(error(r#"{"provider":"a"}"#).await.1, "missing_field");
        let (status, code, _) = error(&format!(r#"{{"provider":"{}"}}"#, "x".repeat(1000))).await;
        assert_eq!((status, code.as_str()), (413, "body_too_large"));
    }

    #[tokio::test]
    async fn errors_do_not_repeat_values() {
        let (_, code, detail) = error(r#"{"provider":"a","user":"u","credentials":{"files":"sk-secret"}}"#).await;
        assert_eq!(code, "invalid_field");
        assert!(detail.contains("`credentials.files`") && !detail.contains("sk-secret"), "{detail}");
    }
}
