//! The header `Idempotency-Key`.

use axum::http::{HeaderMap, HeaderName, StatusCode};
use serde::Serialize;

use super::ApiError;
use crate::idempotency::IdempotencyKey;

/// Says that an answer is that of an earlier request with the same key.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The key of a request, if it has one.
///
/// # Errors
/// 400 `invalid_idempotency_key`.
pub(super) fn idempotency_key(
    headers: &HeaderMap,
    request: &impl Serialize,
) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(key) = given.next() else { return Ok(None) };
    let wrong = |detail: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", detail);
    if given.next().is_some() {
        return Err(wrong("`Idempotency-Key` is given more than once".to_owned()));
    }
    let key = IdempotencyKey::new(key.to_str().unwrap_or_default(), request);
    key.map(Some).map_err(|error| wrong(error.to_string()))
}
