//! `/v1/executions/{id}/stdin`: standard input that is sent while the command runs.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::binary::RawBytes;
use super::lookup::{Id, find};
use super::{ApiError, body};
use crate::execution::StdinError;
use thaw_client::types::{Problem, StdinTaken};

/// Where it goes on, and whether it ends.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Bytes of the input that were sent before this body, so that one that is sent again is taken once. After what was taken
    /// so far when absent.
    offset: Option<u64>,
    /// Nothing comes after this: `1` or `0`.
    #[param(minimum = 0, maximum = 1)]
    eof: Option<u8>,
}

impl From<StdinError> for ApiError {
    fn from(error: StdinError) -> Self {
        let (status, code) = match &error {
            StdinError::NotOpen => (StatusCode::CONFLICT, "stdin_not_open"),
            StdinError::Closed(_) => (StatusCode::CONFLICT, "stdin_closed"),
            StdinError::Gap { .. } => (StatusCode::CONFLICT, "stdin_gap"),
            StdinError::Full { .. } => (StatusCode::SERVICE_UNAVAILABLE, "stdin_full"),
            StdinError::Io(_) => (StatusCode::SERVICE_UNAVAILABLE, "container_failed"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// Sends standard input to an execution that was started with `stdin_open`; with `eof=1` it ends behind the body.
///
/// It can be sent before the command runs. A command that does not read is waited for, for `execution.stdin_wait_ms`; the
/// answer says how many bytes were taken, of all that was ever sent. Bodies that come at the same time are taken one after the
/// other.
#[utoipa::path(post, path = "/v1/executions/{id}/stdin", operation_id = "sendStdin", tag = "executions", params(
    ("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Part),
    request_body(content_type = "application/octet-stream", content = RawBytes, description = "the bytes"),
    responses((status = 200, body = StdinTaken), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "it was not asked for (`stdin_not_open`), has ended, or the command has (`stdin_closed`), or \
            bytes before `offset` are missing (`stdin_gap`)", body = Problem),
        (status = 503, description = "the command does not read (`stdin_full`)", body = Problem)))]
pub async fn send(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    part: Result<Query<Part>, QueryRejection>,
    mut content: Body,
) -> Result<Json<StdinTaken>, ApiError> {
    let wrong = |detail: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail);
    let Query(Part { offset, eof }) = part.map_err(|error| wrong(error.body_text()))?;
    let end = match eof {
        None | Some(0) => false,
        Some(1) => true,
        Some(_) => return Err(wrong("`eof` must be 0 or 1".to_owned())),
    };
    let handle = find(&state, &id)?;
    let stdin = handle.stdin().ok_or(StdinError::NotOpen)?;
    let mut writer = stdin.writer(offset, state.executions.settings().stdin_wait).await?;
    while let Some(piece) = body::piece(&mut content, state.body_timeout).await? {
        writer.write(&piece).await?;
    }
    let (bytes, eof) = writer.finish(end).await;
    Ok(Json(StdinTaken { bytes, eof }))
}
