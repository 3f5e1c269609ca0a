//! Request ids: each request has one, its own or one that the client gave it, and whatever comes of it names it: the
//! answer (`X-Request-Id`), problems, log lines, the execution and its events.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::ApiError;

/// The header, in requests and answers.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id of a client, characters: a W3C trace context has 55, two UUIDs with a separator 73.
const MAX: usize = 128;

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request that the current task answers; none elsewhere.
pub fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Gives a request its id, and a span that names it on every log line.
pub async fn name(request: Request, next: Next) -> Response {
    let given = request.headers().get(HEADER);
    let (id, refused) = match given.map(|value| value.to_str().ok().filter(|id| is_valid(id))) {
        None => (new(), false),
        Some(Some(id)) => (id.to_owned(), false),
        Some(None) => (new(), true),
    };
    // Of level error, or a filter that lets only warnings through would take the fields away from those.
    let span =
        tracing::error_span!("request", request_id = id, method = %request.method(), path = request.uri().path());
    let answer = async move {
        let mut response = if refused { invalid().into_response() } else { next.run(request).await };
        tracing::debug!(status = response.status().as_u16(), "answered");
        if let Ok(value) = CURRENT.with(|id| HeaderValue::from_str(id)) {
            response.headers_mut().insert(HEADER, value);
        }
        response
    };
    CURRENT.scope(id, answer.instrument(span)).await
}

fn new() -> String {
    format!("r-{}", ulid::Ulid::new().to_string().to_lowercase())
}

/// What can go into a log, a header and a label as it is.
fn is_valid(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
}

fn invalid() -> ApiError {
    let detail = format!("`X-Request-Id` must have 1 to {MAX} characters of A-Z a-z 0-9 - _ . : / + = @");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_id", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_and_short() {
        for good in
            ["a", "5f0c9b2e-8d1a-4c55-b0f3-6a1f0e7c2d11", "Root=1-5759e988-bd862e3f", "a/b+c==", &"x".repeat(MAX)]
        {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "a b", "a\"b", "ä", "a\tb", "a{b}", &"x".repeat(MAX + 1)] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!(is_valid(&new()));
        assert_eq!(current(), None);
    }
}
