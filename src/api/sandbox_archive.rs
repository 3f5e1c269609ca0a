//! `/v1/sandboxes/{id}/archive`: directories of a sandbox as tar archives, out of it and into it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::ApiError;
use super::binary::Tar;
use super::lookup::Id;
use super::sandbox_files::{Asked, Which, asked};
use super::upload::receive;
use thaw_client::client::LEFT_OUT;
use thaw_client::types::{Problem, Unpacked};

/// Media type of an archive.
const MEDIA_TYPE: &str = "application/x-tar";

/// Packs a file or a directory of a sandbox, frozen or not. Paths in the archive begin with its name.
///
/// FIFOs, sockets and devices are left out; the header `thawd-left-out` has their number. What the sandbox's user cannot read
/// is refused before the archive begins. It breaks off, without the last chunk of the HTTP message, when something changes
/// meanwhile so that it cannot be packed any more.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/archive", operation_id = "readSandboxArchive", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Which),
    responses((status = 200, content_type = "application/x-tar", body = String, description = "the archive"),
        (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or no such file (`no_such_file`)", body = Problem),
        (status = 409, description = "something in it cannot be read, or there is too much of it (`not_packable`), or the \
            sandbox is gone", body = Problem), (status = 500, body = Problem)))]
pub async fn read(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    which: Asked<Which>,
) -> Result<Response, ApiError> {
    let Which { path } = asked(which)?;
    let (left_out, archive) = state.sandboxes.files(&id).await?.pack(path.into_bytes()).await?;
    let headers = [(header::CONTENT_TYPE.as_str(), MEDIA_TYPE.to_owned()), (LEFT_OUT, left_out.to_string())];
    Ok((headers, Body::from_stream(archive)).into_response())
}

/// Unpacks a tar archive, plain or compressed with gzip, into a directory of a sandbox, frozen or not.
///
/// Files and links take the place of files and links, directories that are there stay. Everything belongs to the sandbox's
/// user, whatever owners the archive names. No link is followed. What is no file, directory or link is refused; what stands
/// before it in the archive was made.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/archive", operation_id = "putSandboxArchive", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Which),
    request_body(content_type = "application/x-tar", content = Tar, description = "the archive"),
    responses((status = 200, body = Unpacked), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or no such directory (`no_such_file`)", body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "it is no directory (`not_a_directory`), something else is in the place of an entry \
            (`not_a_file`, `file_exists`), or the sandbox is gone", body = Problem),
        (status = 413, description = "there is more in it than one request may bring (`file_too_large`)", body = Problem),
        (status = 500, body = Problem),
        (status = 507, description = "the sandbox has no room for it (`sandbox_full`)", body = Problem)))]
pub async fn put(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    which: Asked<Which>,
    archive: Body,
) -> Result<Json<Unpacked>, ApiError> {
    let begun = async {
        let Which { path } = asked(which)?;
        Ok(state.sandboxes.files(&id).await?.unpack(path.into_bytes())?)
    };
    let entries = receive(begun.await, archive, state.body_timeout).await?;
    Ok(Json(Unpacked { entries }))
}
