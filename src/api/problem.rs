//! Errors as the client sees them: RFC 9457 problems with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::container::ContainerError;
use crate::execution::StartError;
use crate::pool::{ClaimError, Unavailable};
use crate::vault::VaultError;
use thaw_client::types::Problem;

/// `Retry-After` for those whom the queue could not serve, seconds.
const BUSY_RETRY_AFTER: u64 = 5;

/// Media type of an error (RFC 9457, section 3).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The page that explains each code; the code stands behind `#`.
const PAGE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/problems.md");

/// URI of a kind of problem.
pub fn kind(code: &str) -> String {
    format!("{PAGE}#{code}")
}

/// An error answer.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retryable: bool,
    /// Seconds after which to come back, when it is retryable.
    retry_after: u64,
}

impl ApiError {
    /// An answer that says what is wrong with the request.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let retryable = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        Self { status, code, detail: detail.into(), retryable, retry_after: 1 }
    }

    /// No such resource.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} {id:?} (any more)"))
    }

    /// The problem document.
    pub fn problem(&self) -> Problem {
        Problem {
            kind: kind(self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.to_owned(),
            retryable: self.retryable,
            request_id: super::request_id::current(),
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let (status, code) = match &error {
            StartError::Request(request) => (StatusCode::BAD_REQUEST, request.code()),
            StartError::Claim(ClaimError::Short(Unavailable::Limit(_))) => {
                (StatusCode::SERVICE_UNAVAILABLE, "container_limit")
            }
            StartError::Claim(ClaimError::Short(Unavailable::Host(_))) => {
                (StatusCode::SERVICE_UNAVAILABLE, "host_pressure")
            }
            StartError::Claim(ClaimError::QueueFull { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
            StartError::Claim(ClaimError::QueueTimeout { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "queue_timeout"),
            StartError::UserLimit(_) => (StatusCode::TOO_MANY_REQUESTS, "user_limit"),
            StartError::Claim(ClaimError::NotReady(_) | ClaimError::Short(Unavailable::NotYet)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "provider_not_ready")
            }
            StartError::Claim(ClaimError::Create(_)) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
            StartError::Container(error @ ContainerError::Credentials(_)) if !error.is_broken() => {
                (StatusCode::BAD_REQUEST, "invalid_credentials")
            }
            StartError::Container(ContainerError::NoWorkspace) => (StatusCode::BAD_REQUEST, "no_workspace"),
            StartError::Container(ContainerError::Put(error)) if error.is_too_large() => {
                (StatusCode::BAD_REQUEST, "files_too_large")
            }
            StartError::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            StartError::Cancelled | StartError::Left => (StatusCode::CONFLICT, "cancelled"),
            StartError::Container(_) | StartError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
            StartError::Vault(error) => of_vault(error),
            StartError::Claim(ClaimError::Stopped) | StartError::Stopped => {
                (StatusCode::SERVICE_UNAVAILABLE, "shutting_down")
            }
        };
        let mut this = Self::new(status, code, error.to_string());
        // Who has waited in vain, or could not even wait, finds nothing better a second later.
        if matches!(code, "queue_full" | "queue_timeout") {
            this.retry_after = BUSY_RETRY_AFTER;
        }
        this
    }
}

/// What the vault says is wrong.
fn of_vault(error: &VaultError) -> (StatusCode, &'static str) {
    match error {
        VaultError::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid_credential"),
        VaultError::Broken { .. } | VaultError::BrokenUser { .. } => (StatusCode::CONFLICT, "credential_broken"),
        VaultError::Refused { .. } => (StatusCode::CONFLICT, "credential_refused"),
        VaultError::Expired { .. } => (StatusCode::CONFLICT, "credential_expired"),
        VaultError::MasterKey(_) | VaultError::UnknownMasterKey { .. } => (StatusCode::CONFLICT, "master_key"),
        VaultError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "credential_busy"),
        VaultError::NotRenewed { .. } => (StatusCode::SERVICE_UNAVAILABLE, "credential_not_renewed"),
        VaultError::Contended(_) => (StatusCode::SERVICE_UNAVAILABLE, "credential_contended"),
        VaultError::Store(error) if error.is_transient() => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
        VaultError::Store(_) => (StatusCode::CONFLICT, "store_unusable"),
    }
}

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        let (status, code) = of_vault(&error);
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if self.retryable {
            headers.insert(header::RETRY_AFTER, self.retry_after.into());
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
