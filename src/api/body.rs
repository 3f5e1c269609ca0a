//! Request bodies: one limit, one time limit, one parse, and errors that never repeat a value (it may be a secret).

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::ApiError;
use super::strict::{self, Strict};

/// The next piece of a body that is read bit by bit; `None` at its end. Each piece has to come within `patience`.
///
/// # Errors
/// 408 `body_timeout`, 400 `incomplete_body`.
pub async fn piece(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await.map_err(|_| {
            let seconds = patience.as_secs();
            let detail = format!("nothing came for {seconds} s (`api.connections.body_timeout_seconds`)");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body did not arrive whole"))?;
        // Trailers are of no interest.
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
}

/// Reads and parses a JSON body of at most `limit` bytes, which has to arrive within `time`.
///
/// # Errors
/// 408 `body_timeout`, 413 `body_too_large`, 400 `invalid_json`, `unknown_field`, `repeated_field` or `invalid_field`.
pub async fn json<T: DeserializeOwned>(body: Body, limit: usize, time: Duration) -> Result<T, ApiError> {
    let bytes = tokio::time::timeout(time, read(body, limit)).await.map_err(|_| {
        let seconds = time.as_secs();
        let detail = format!("the body did not arrive within {seconds} s (`api.connections.body_timeout_seconds`)");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })??;
    parse(&bytes)
}

/// The whole body. One that is too large is answered as soon as that is known.
async fn read(mut body: Body, limit: usize) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let announced = body.size_hint().lower();
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced.min(limit as u64) as usize));
    let mut too_large = announced > limit as u64;
    while !too_large {
        let Some(frame) = body.frame().await else { return Ok(bytes) };
        let frame = frame
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body did not arrive whole"))?;
        let piece = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
        too_large = bytes.len() + piece.len() > limit;
        if !too_large {
            bytes.extend_from_slice(piece);
        }
    }
    let detail = format!("the body is larger than {limit} bytes (`api.max_body_bytes`)");
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(Strict(&mut deserializer)).map_err(|error| {
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
    if let Some(key) = message.strip_prefix(strict::REPEATED) {
        // serde_json adds the place behind it, and a key may hold the same words.
        let key = key.rsplit_once(" at line").map_or(key, |(key, _)| key);
        // The key itself is no part of the path yet, and stands in it as a question mark.
        let path = path.trim_end_matches(['?', '.']);
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let detail = format!("`{path}` is given more than once, at {place}");
        return ApiError::new(StatusCode::BAD_REQUEST, "repeated_field", detail);
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
    async fn an_object_is_written_as_an_object_and_each_of_its_keys_once() {
        for (body, code, path) in [
            (r#"["","atk","a",null,["sh","-c","id"]]"#, "invalid_field", "`.`"),
            (r#"{"provider":"a","user":"u","credentials":[{},{}]}"#, "invalid_field", "`credentials`"),
            (r#"{"provider":"a","user":"u","env":[["A","b"]]}"#, "invalid_field", "`env`"),
            (r#"{"provider":"a","provider":"b","user":"u"}"#, "repeated_field", "`provider`"),
            (r#"{"provider":"a","user":"u","\u0075ser":"v"}"#, "repeated_field", "`user`"),
            (r#"{"provider":"a","user":"u","env":{"A":"1","B":"2","A":"1"}}"#, "repeated_field", "`env.A`"),
            (
                r#"{"provider":"a","user":"u","env":{"A at line":"1","A at line":"2"}}"#,
                "repeated_field",
                "`env.A at line`",
            ),
            (r#"{"provider":"a","user":"u","labels":{"l":"1","l":"2"}}"#, "repeated_field", "`labels.l`"),
            (r#"{"provider":"a","user":"u","credentials":{"env":{},"env":{}}}"#, "repeated_field", "`credentials.env`"),
            (
                r#"{"provider":"a","user":"u","credentials":{"files":{"f":"x","f":"sk-secret"}}}"#,
                "repeated_field",
                "`credentials.files.f`",
            ),
        ] {
            let (status, has, detail) = error(body).await;
            assert_eq!((status, has.as_str()), (400, code), "{body}: {detail}");
            assert!(detail.contains(path) && !detail.contains("sk-secret"), "{body}: {detail}");
        }
    }

    #[tokio::test]
    async fn errors_do_not_repeat_values() {
        let (_, code, detail) = error(r#"{"provider":"a","user":"u","credentials":{"files":"sk-secret"}}"#).await;
        assert_eq!(code, "invalid_field");
        assert!(detail.contains("`credentials.files`") && !detail.contains("sk-secret"), "{detail}");
    }
}
