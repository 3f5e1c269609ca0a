//! From the id in a path to the execution.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::ApiError;
use crate::execution::Handle;

/// Longest id, characters: `e-` and a ULID are 28.
const MAX_ID: usize = 64;

/// The id in the path, checked.
#[derive(Debug)]
pub struct Id(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let invalid = || ApiError::new(StatusCode::BAD_REQUEST, "invalid_id", "ids consist of a-z, 0-9 and -");
        // It cannot even be read when it is not UTF-8.
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| invalid())?;
        if is_id(&id) { Ok(Self(id)) } else { Err(invalid()) }
    }
}

/// Whether a part of a path can be an id or a name.
pub(super) fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(plain)
}

/// The execution with this id.
///
/// # Errors
/// 404.
pub fn find(state: &super::State, id: &str) -> Result<Arc<Handle>, ApiError> {
    state.executions.get(id).ok_or_else(|| ApiError::not_found("execution", id))
}
