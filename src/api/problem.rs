//! Errors as the client sees them: RFC 9457 problems with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::container::ContainerError;
use crate::execution::StartError;
use crate::login::LoginError;
use crate::pool::{ClaimError, Unavailable};
use crate::sandbox::SandboxError;
use crate::storage::StorageError;
use crate::store::StoreError;
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

impl ApiError {
    /// Who has waited in vain, or could not even wait, finds nothing better a second later.
    fn be_patient(&mut self) {
        if matches!(self.code, "queue_full" | "queue_timeout" | "sandbox_limit" | "sandbox_user_limit" | "login_limit")
        {
            self.retry_after = BUSY_RETRY_AFTER;
        }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let (status, code) = match &error {
            StartError::Request(request) => (StatusCode::BAD_REQUEST, request.code()),
            StartError::Claim(error) => of_claim(error),
            StartError::UserLimit(_) => (StatusCode::TOO_MANY_REQUESTS, "user_limit"),
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
            StartError::Sandbox(error) => of_sandbox(error),
            StartError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        let mut this = Self::new(status, code, error.to_string());
        this.be_patient();
        this
    }
}

/// Code of a claim that failed; all of them may succeed later.
fn of_claim(error: &ClaimError) -> (StatusCode, &'static str) {
    match error {
        ClaimError::Short(Unavailable::Limit(_)) => (StatusCode::SERVICE_UNAVAILABLE, "container_limit"),
        ClaimError::Short(Unavailable::Host(_)) => (StatusCode::SERVICE_UNAVAILABLE, "host_pressure"),
        ClaimError::QueueFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_full"),
        ClaimError::QueueTimeout { .. } => (StatusCode::SERVICE_UNAVAILABLE, "queue_timeout"),
        ClaimError::NotReady(_) | ClaimError::Short(Unavailable::NotYet) => {
            (StatusCode::SERVICE_UNAVAILABLE, "provider_not_ready")
        }
        ClaimError::Create(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
        ClaimError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
    }
}

fn of_store(error: &StoreError) -> (StatusCode, &'static str) {
    if error.is_transient() {
        (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
    } else {
        (StatusCode::CONFLICT, "store_unusable")
    }
}

fn of_sandbox(error: &SandboxError) -> (StatusCode, &'static str) {
    match error {
        SandboxError::InvalidField { .. } => (StatusCode::BAD_REQUEST, "invalid_field"),
        SandboxError::UnknownTemplate { .. } => (StatusCode::BAD_REQUEST, "unknown_template"),
        SandboxError::NameTaken { .. } => (StatusCode::CONFLICT, "name_taken"),
        SandboxError::Different { .. } => (StatusCode::CONFLICT, "sandbox_differs"),
        SandboxError::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
        SandboxError::UserLimit(_) => (StatusCode::TOO_MANY_REQUESTS, "sandbox_user_limit"),
        SandboxError::Limit(_) => (StatusCode::SERVICE_UNAVAILABLE, "sandbox_limit"),
        SandboxError::Claim(error) => of_claim(error),
        SandboxError::Container(_) | SandboxError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
        SandboxError::Store(error) => of_store(error),
        SandboxError::ReadOnly => (StatusCode::CONFLICT, "store_unusable"),
        SandboxError::Unknown(_) => (StatusCode::NOT_FOUND, "not_found"),
        SandboxError::Gone { .. } => (StatusCode::CONFLICT, "sandbox_gone"),
        SandboxError::Busy { .. } => (StatusCode::CONFLICT, "sandbox_busy"),
        SandboxError::File(error) => super::sandbox_files::of_file(&error.why),
        SandboxError::Prompting(_) => (StatusCode::CONFLICT, "sandbox_prompting"),
        SandboxError::FileCalls(_) => (StatusCode::SERVICE_UNAVAILABLE, "too_many_file_calls"),
        SandboxError::Storage(error) => of_storage(error),
        SandboxError::NoImage(_) | SandboxError::Broken { .. } => (StatusCode::CONFLICT, "sandbox_broken"),
        SandboxError::LostEnv { .. } => (StatusCode::CONFLICT, "sandbox_env_lost"),
        SandboxError::NotRunning { .. } => (StatusCode::CONFLICT, "sandbox_not_running"),
        SandboxError::NoStorage(_) => (StatusCode::CONFLICT, "sandbox_without_storage"),
        SandboxError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
    }
}

fn of_storage(error: &StorageError) -> (StatusCode, &'static str) {
    match error {
        StorageError::Size { .. } => (StatusCode::BAD_REQUEST, "invalid_field"),
        error if error.is_full() => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
        error if error.is_broken() => (StatusCode::CONFLICT, "sandbox_broken"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "storage_failed"),
    }
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> Self {
        let (status, code) = of_sandbox(&error);
        let mut this = Self::new(status, code, error.to_string());
        this.be_patient();
        this
    }
}

impl From<LoginError> for ApiError {
    fn from(error: LoginError) -> Self {
        let (status, code) = match &error {
            LoginError::InvalidField { .. } => (StatusCode::BAD_REQUEST, "invalid_field"),
            LoginError::UnknownProvider { .. } => (StatusCode::BAD_REQUEST, "unknown_provider"),
            LoginError::NoLogin(_) => (StatusCode::BAD_REQUEST, "no_login"),
            LoginError::UnknownMethod { .. } | LoginError::NoBrowser => {
                (StatusCode::BAD_REQUEST, "unknown_login_method")
            }
            LoginError::Pending { .. } => (StatusCode::CONFLICT, "login_pending"),
            LoginError::Limit(_) => (StatusCode::SERVICE_UNAVAILABLE, "login_limit"),
            LoginError::Claim(error) => of_claim(error),
            LoginError::Container(_) | LoginError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
            LoginError::Command(_) | LoginError::NotBegun(_) => (StatusCode::BAD_GATEWAY, "login_failed"),
            LoginError::Cancelled => (StatusCode::CONFLICT, "cancelled"),
            LoginError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            LoginError::TakesNothing => (StatusCode::CONFLICT, "login_takes_nothing"),
            LoginError::NotNow(_) => (StatusCode::CONFLICT, "login_not_now"),
            LoginError::State => (StatusCode::BAD_REQUEST, "login_state"),
            LoginError::NoCallback(_) => (StatusCode::BAD_REQUEST, "invalid_callback"),
        };
        let mut this = Self::new(status, code, error.to_string());
        this.be_patient();
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
        VaultError::Store(error) => of_store(error),
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
