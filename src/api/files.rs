//! `/v1/executions/{id}/files` and `/archive`: what was collected of an execution's files.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::lookup::{Id, find};
use super::{ApiError, State as Api};
use crate::execution::{Collection, Handle, Item, Kind};
use thaw_client::types::{CollectedFile, ExecutionState, FileKind, List, Problem};

/// Media types of a file and of an archive.
const FILE: &str = "application/octet-stream";
const ARCHIVE: &str = "application/x-tar";

/// Most that is taken into memory at once, bytes.
const CHUNK: u64 = 64 << 10;

/// Which file.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Path of the file, relative to `/workspace`; all are listed when absent.
    path: Option<String>,
}

/// Lists what was collected of an execution's files, or gives one file's bytes.
///
/// They are there when the execution has ended, for as long as its output. A path whose name is not UTF-8 is in the archive
/// alone.
#[utoipa::path(get, path = "/v1/executions/{id}/files", operation_id = "readFiles", tag = "executions", params(
    ("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Which),
    responses((status = 200, description = "the list, or with `path` the file", content(
            (List<CollectedFile> = "application/json"), (Vec<u8> = "application/octet-stream"))),
        (status = 400, body = Problem),
        (status = 404, description = "no such execution or file, or nothing was to be collected", body = Problem),
        (status = 409, description = "the execution has not ended (`not_ended`), or the path is no file (`not_a_file`)",
            body = Problem)))]
pub async fn files(
    State(state): State<Arc<Api>>,
    Id(id): Id,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Which { path }) =
        which.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.body_text()))?;
    let handle = collected(&state, &id)?;
    let items = items(&handle).await?;
    let Some(path) = path else {
        return Ok(Json(List { items: items.iter().map(describe).collect() }).into_response());
    };
    let clean = Collection::path(&path)
        .map_err(|problem| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", format!("`path` {problem}")))?;
    let item = items.iter().find(|item| item.path == clean).ok_or_else(|| {
        let detail = format!("{path:?} was not collected; without `path` all that was is listed");
        ApiError::new(StatusCode::NOT_FOUND, "not_collected", detail)
    })?;
    match &item.kind {
        Kind::File => Ok(bytes(handle, FILE, item.offset, item.size)),
        kind => {
            let what = if *kind == Kind::Link { "a link" } else { "a directory" };
            let detail = format!("{path:?} is {what}; the archive has it");
            Err(ApiError::new(StatusCode::CONFLICT, "not_a_file", detail))
        }
    }
}

/// Everything that was collected of an execution's files, as one tar archive.
#[utoipa::path(get, path = "/v1/executions/{id}/archive", operation_id = "readArchive", tag = "executions",
    params(("id" = String, Path, description = "execution id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)),
    responses((status = 200, content_type = "application/x-tar", body = String, description = "the archive"),
        (status = 400, body = Problem),
        (status = 404, description = "no such execution, or nothing was to be collected", body = Problem),
        (status = 409, description = "the execution has not ended", body = Problem)))]
pub async fn archive(State(state): State<Arc<Api>>, Id(id): Id) -> Result<Response, ApiError> {
    let handle = collected(&state, &id)?;
    let length = handle.describe().exit.and_then(|exit| exit.collected).map_or(0, |collected| collected.bytes);
    Ok(bytes(handle, ARCHIVE, 0, length))
}

/// An execution that has given its files back.
fn collected(state: &Api, id: &str) -> Result<Arc<Handle>, ApiError> {
    let handle = find(state, id)?;
    if handle.collection().is_none() {
        let detail = "the request named nothing to `collect`";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_collected", detail));
    }
    let execution = handle.describe();
    match execution.exit {
        Some(exit) if exit.collected.is_some() => Ok(handle),
        Some(_) => {
            let detail = "nothing was collected: the command never ran, or was lost";
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_collected", detail))
        }
        None => {
            let state = match execution.state {
                ExecutionState::Running => "runs",
                _ => "has not begun",
            };
            let detail = format!("the execution {state}; its files come with its `exit` event");
            Err(ApiError::new(StatusCode::CONFLICT, "not_ended", detail))
        }
    }
}

async fn items(handle: &Arc<Handle>) -> Result<Vec<Item>, ApiError> {
    let handle = Arc::clone(handle);
    let read =
        move || handle.collection().map_or(Ok(Vec::new()), |collection| collection.items().map(<[Item]>::to_vec));
    let read = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).flatten();
    read.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "files_unreadable", error.to_string()))
}

fn describe(item: &Item) -> CollectedFile {
    let path = String::from_utf8_lossy(&item.path).into_owned();
    CollectedFile {
        path_base64: (path.as_bytes() != item.path).then(|| STANDARD.encode(&item.path)),
        path,
        kind: match item.kind {
            Kind::File => FileKind::File,
            Kind::Directory => FileKind::Directory,
            Kind::Link => FileKind::Link,
        },
        mode: format!("{:o}", item.mode),
        bytes: item.size,
        target: item.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
    }
}

/// A part of the archive, taken piece by piece.
fn bytes(handle: Arc<Handle>, media_type: &'static str, from: u64, length: u64) -> Response {
    let pieces = futures_util::stream::try_unfold((handle, from, length), |(handle, at, left)| async move {
        let Some(collection) = handle.collection().filter(|_| left > 0) else { return Ok::<_, std::io::Error>(None) };
        let piece = collection.read(at, left.min(CHUNK) as usize)?;
        let read = piece.len() as u64;
        Ok(Some((piece, (Arc::clone(&handle), at + read, left - read))))
    });
    let headers = [(header::CONTENT_TYPE, media_type.to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (headers, Body::from_stream(pieces)).into_response()
}
