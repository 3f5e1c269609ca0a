//! Errors as the client sees them: RFC 9457 problems with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::container::ContainerError;
use crate::execution::StartError;
use crate::pool::ClaimError;
use crate::types::Problem;

/// An error answer.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retryable: bool,
}

impl ApiError {
    /// An answer that says what is wrong with the request.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retryable: status == StatusCode::SERVICE_UNAVAILABLE }
    }

    /// No such resource.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} {id:?} (any more)"))
    }

    /// The problem document.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.to_owned(),
            retryable: self.retryable,
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let (status, code) = match &error {
            StartError::Request(request) => (StatusCode::BAD_REQUEST, request.code()),
            StartError::Claim(ClaimError::Limit(_)) => (StatusCode::SERVICE_UNAVAILABLE, "container_limit"),
            StartError::Claim(ClaimError::NotReady(_)) => (StatusCode::SERVICE_UNAVAILABLE, "provider_not_ready"),
            StartError::Claim(ClaimError::Create(_)) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
            StartError::Container(error @ ContainerError::Credentials(_)) if !error.is_broken() => {
                (StatusCode::BAD_REQUEST, "invalid_credentials")
            }
            StartError::Cancelled => (StatusCode::CONFLICT, "cancelled"),
            StartError::Container(_) | StartError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
            StartError::Claim(ClaimError::Stopped) | StartError::Stopped => {
                (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.retryable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Answer for unknown paths.
pub async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no_such_path", "there is nothing here; GET /openapi.json lists the paths")
}

/// Answer for known paths with a wrong method.
pub async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method; GET /openapi.json lists the ones it takes",
    )
}
