//! What a command writes, byte for byte, without events around it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;

use super::lookup::{Id, find};
use super::{ApiError, State as Api};
use crate::execution::{Cursor, Dropped, Reader, Stream};
use thaw_client::types::Problem;

/// Media type of a raw stream (RFC 2046, section 4.5.1).
pub const MEDIA_TYPE: &str = "application/octet-stream";

/// Where to begin.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Bytes of the stream to leave out, as they have been read already.
    #[serde(default)]
    offset: u64,
}

/// Streams the standard output of an execution as it is written, to its end.
///
/// It breaks off, without the last chunk of the HTTP message, when bytes were dropped before they could be sent; with
/// an `offset` of what has been read it goes on from there, or says that those bytes are gone.
#[utoipa::path(get, path = "/v1/executions/{id}/stdout", operation_id = "readStdout", tag = "executions", params(
    ("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), From),
    responses((status = 200, content_type = "application/octet-stream", body = String, description = "the bytes"),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 410, description = "the bytes at `offset` were dropped", body = Problem),
        (status = 416, description = "the stream ended before `offset`", body = Problem)))]
pub async fn stdout(
    State(state): State<Arc<Api>>,
    Id(id): Id,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, ApiError> {
    answer(&state, &id, Stream::Stdout, from)
}

/// Streams the standard error of an execution, as its standard output.
#[utoipa::path(get, path = "/v1/executions/{id}/stderr", operation_id = "readStderr", tag = "executions", params(
    ("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), From),
    responses((status = 200, content_type = "application/octet-stream", body = String, description = "the bytes"),
        (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 410, description = "the bytes at `offset` were dropped", body = Problem),
        (status = 416, description = "the stream ended before `offset`", body = Problem)))]
pub async fn stderr(
    State(state): State<Arc<Api>>,
    Id(id): Id,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, ApiError> {
    answer(&state, &id, Stream::Stderr, from)
}

fn answer(
    state: &Api,
    id: &str,
    stream: Stream,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(From { offset }) =
        from.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.body_text()))?;
    let reader = find(state, id)?.read();
    if let Some(length) = reader.length(stream).filter(|length| offset > *length) {
        let detail = format!("`offset` is {offset}, but the execution has ended and the stream has {length} bytes");
        return Err(ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "offset_beyond_end", detail));
    }
    body(reader, Cursor::new(stream, offset))
}

/// The answer that streams from `cursor` on. While it exists, it counts as a reader.
///
/// # Errors
/// 410 when the first byte is gone already.
pub fn body(reader: Reader, mut cursor: Cursor) -> Result<Response, ApiError> {
    let first = reader
        .read_output(&mut cursor)
        .map_err(|dropped| ApiError::new(StatusCode::GONE, "output_dropped", dropped.to_string()))?;
    let chunks = futures_util::stream::try_unfold((reader, cursor, first), |(reader, mut cursor, first)| async move {
        let chunk = if first.is_empty() { reader.next_output(&mut cursor).await? } else { first };
        Ok::<_, Dropped>((!chunk.is_empty()).then(|| (chunk, (reader, cursor, Bytes::new()))))
    });
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], Body::from_stream(chunks)).into_response())
}
