//! `/v1/sandboxes/{id}/files`: files of a sandbox, frozen or not, as its user.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::binary::RawBytes;
use super::lookup::Id;
use super::upload::receive;
use super::{ApiError, body};
use crate::sandbox::{Condition, FileInfo, FileKind, FileProblem, Files, NewFile};
use thaw_client::time::Timestamp;
use thaw_client::types::{FileMove, NewDirectory, Page, Problem, SandboxFile, SandboxFileKind};

/// Media type of content (RFC 2046, section 4.5.1).
pub const MEDIA_TYPE: &str = "application/octet-stream";

/// Most that a list gives at once.
const MAX_PAGE: usize = 1000;

/// Permissions of a new directory.
const DIRECTORY_MODE: u32 = 0o755;

/// Which file.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Absolute path.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    pub path: String,
}

/// Which file is made, and how.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// Absolute path.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
    /// Permissions, octal; those of the file that is there, or 644, when absent.
    #[param(pattern = "^0?[0-7]{1,3}$")]
    mode: Option<String>,
    /// Makes directories above it that are missing.
    #[serde(default)]
    parents: bool,
}

/// What is removed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// Absolute path.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
    /// A directory goes with everything in it.
    #[serde(default)]
    recursive: bool,
}

/// Which directory, and how much of it.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Absolute path.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
    /// Most to be listed; 1000 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before this one.
    #[param(pattern = "^[A-Za-z0-9+/]+=*$", max_length = 344)]
    cursor: Option<String>,
}

/// The query of a request.
pub type Asked<T> = Result<Query<T>, QueryRejection>;

/// Takes it, or says what is wrong with it.
pub fn asked<T>(query: Asked<T>) -> Result<T, ApiError> {
    query
        .map(|Query(query)| query)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.body_text()))
}

/// What is wrong with a file, as an answer.
pub fn of_file(problem: &FileProblem) -> (StatusCode, &'static str) {
    match problem {
        FileProblem::Missing => (StatusCode::NOT_FOUND, "no_such_file"),
        FileProblem::NotAFile(_) => (StatusCode::CONFLICT, "not_a_file"),
        FileProblem::NotADirectory => (StatusCode::CONFLICT, "not_a_directory"),
        FileProblem::Exists => (StatusCode::CONFLICT, "file_exists"),
        FileProblem::Changed => (StatusCode::PRECONDITION_FAILED, "file_changed"),
        FileProblem::Busy => (StatusCode::CONFLICT, "file_busy"),
        FileProblem::NotEmpty => (StatusCode::CONFLICT, "directory_not_empty"),
        FileProblem::Elsewhere => (StatusCode::CONFLICT, "other_file_system"),
        FileProblem::Hidden | FileProblem::Denied(_) => (StatusCode::FORBIDDEN, "file_forbidden"),
        FileProblem::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "sandbox_full"),
        FileProblem::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_file"),
        FileProblem::Unpackable(_) => (StatusCode::CONFLICT, "not_packable"),
        FileProblem::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "file_too_large"),
        FileProblem::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "file_unusable"),
    }
}

/// As the API shows it.
fn describe(info: FileInfo) -> SandboxFile {
    let name = String::from_utf8_lossy(&info.name).into_owned();
    SandboxFile {
        name_base64: (name.as_bytes() != info.name).then(|| STANDARD.encode(&info.name)),
        name,
        etag: (info.kind == FileKind::File).then(|| quoted(&info.tag)),
        kind: match info.kind {
            FileKind::File => SandboxFileKind::File,
            FileKind::Directory => SandboxFileKind::Directory,
            FileKind::Link => SandboxFileKind::Link,
            FileKind::Fifo => SandboxFileKind::Fifo,
            FileKind::Socket => SandboxFileKind::Socket,
            FileKind::Device => SandboxFileKind::Device,
        },
        mode: format!("{:o}", info.mode),
        uid: info.owner.0,
        gid: info.owner.1,
        bytes: info.bytes,
        modified_at: Timestamp::from_unix_ms(info.modified_ms),
        target: info.target.map(|target| String::from_utf8_lossy(&target).into_owned()),
    }
}

fn quoted(tag: &str) -> String {
    format!("\"{tag}\"")
}

/// One value of a header that may be given once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let wrong =
        |what: &str| ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", format!("the header `{name}` {what}"));
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong("is given more than once"));
    }
    value.to_str().map(Some).map_err(|_| wrong("is no text"))
}

/// Strong tags of a list (RFC 9110, section 8.8.3); a weak one fits nothing.
fn tags(value: &str) -> Vec<String> {
    let parts = value.split(',').map(str::trim);
    parts.filter_map(|part| Some(part.strip_prefix('"')?.strip_suffix('"')?.to_owned())).collect()
}

/// What `If-Match` and `If-None-Match` ask of what is there.
fn condition(headers: &HeaderMap) -> Result<Condition, ApiError> {
    let wrong = |what: &str| Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", what));
    match (single(headers, &header::IF_MATCH)?, single(headers, &header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::None),
        (Some("*"), None) => Ok(Condition::Present),
        (Some(value), None) => Ok(Condition::Tagged(tags(value))),
        (None, Some("*")) => Ok(Condition::Absent),
        (None, Some(_)) => wrong("`If-None-Match` can only be `*` here: nothing may be there"),
        (Some(_), Some(_)) => wrong("give `If-Match` or `If-None-Match`"),
    }
}

/// A part of a file: the first byte, and how many. Of a file of `length` bytes.
fn range(value: &str, length: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let (first, end) = match (first, last) {
        ("", last) => (length.saturating_sub(number(last)?), if number(last)? == 0 { 0 } else { length }),
        (first, "") => (number(first)?, length),
        (first, last) if number(first)? <= number(last)? => (number(first)?, number(last)?.saturating_add(1)),
        _ => return None,
    };
    let end = end.min(length);
    Some(if first < end { Ok((first, end - first)) } else { Err(()) })
}

/// What of a file is sent.
enum Chosen {
    Whole(u64),
    Part(u64, u64),
    NotModified,
    OutOfRange,
}

impl Chosen {
    fn part(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Whole(length) => Some((0, length)),
            Self::Part(first, length) => Some((first, length)),
            Self::NotModified | Self::OutOfRange => None,
        }
    }
}

/// Sends the content of a file, or a part of it (`Range`, one range of bytes). Links are followed within the sandbox.
///
/// A frozen sandbox stays frozen. The file is read as the sandbox's user would; what is no regular file is not opened.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files", operation_id = "readSandboxFile", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Which),
    responses((status = 200, content_type = "application/octet-stream", body = String, description = "the content"),
        (status = 206, content_type = "application/octet-stream", body = String, description = "the part"),
        (status = 304, description = "it has the tag of `If-None-Match`"), (status = 400, body = Problem),
        (status = 403, description = "the sandbox's user may not read it (`file_forbidden`)", body = Problem),
        (status = 404, description = "no such sandbox, or no such file (`no_such_file`)", body = Problem),
        (status = 409, description = "it is no regular file (`not_a_file`), or the sandbox is gone", body = Problem),
        (status = 416, description = "the file is shorter", body = Problem), (status = 500, body = Problem)))]
pub async fn read(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    which: Asked<Which>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Which { path } = asked(which)?;
    let wanted = single(&headers, &header::RANGE)?.map(str::to_owned);
    if wanted.as_ref().is_some_and(|wanted| range(wanted, u64::MAX).is_none()) {
        let detail = "`Range` can be one range of bytes: bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", detail));
    }
    let known = single(&headers, &header::IF_NONE_MATCH)?.map(|value| (value == "*", tags(&value.replace("W/", ""))));
    let fresh = single(&headers, &header::IF_RANGE)?.map(tags);
    let (chosen, was_chosen) = std::sync::mpsc::channel();
    let choose = move |info: &FileInfo| {
        let part = match wanted {
            _ if known.is_some_and(|(any, tags)| any || tags.contains(&info.tag)) => Chosen::NotModified,
            Some(wanted) if fresh.is_none_or(|tags| tags.contains(&info.tag)) => match range(&wanted, info.bytes) {
                Some(Ok((first, length))) => Chosen::Part(first, length),
                _ => Chosen::OutOfRange,
            },
            _ => Chosen::Whole(info.bytes),
        };
        let bytes = part.part();
        let _ = chosen.send(part);
        bytes
    };
    let (info, opened) = state.sandboxes.files(&id).await?.read(path.into_bytes(), choose).await?;
    let status = match was_chosen.recv().unwrap_or(Chosen::NotModified) {
        Chosen::Whole(_) => StatusCode::OK,
        Chosen::Part(..) => StatusCode::PARTIAL_CONTENT,
        Chosen::NotModified => StatusCode::NOT_MODIFIED,
        Chosen::OutOfRange => {
            let detail = format!("`Range` begins behind the end of the file, which has {} bytes", info.bytes);
            let mut response =
                ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_beyond_end", detail).into_response();
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{}", info.bytes));
            return Ok(response);
        }
    };
    let mut response = match opened {
        Some(opened) => {
            let (first, length) = opened.part();
            let mut response = (status, Body::from_stream(opened.stream())).into_response();
            set(&mut response, header::CONTENT_TYPE, MEDIA_TYPE);
            set(&mut response, header::CONTENT_LENGTH, &length.to_string());
            if status == StatusCode::PARTIAL_CONTENT {
                let range = format!("bytes {first}-{}/{}", first + length - 1, info.bytes);
                set(&mut response, header::CONTENT_RANGE, &range);
            }
            response
        }
        None => status.into_response(),
    };
    set(&mut response, header::ETAG, &quoted(&info.tag));
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    Ok(response)
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    // Numbers and tags of hexadecimal digits are plain.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A mode in octal digits.
fn mode(text: Option<&str>) -> Option<Result<u32, ()>> {
    text.map(|text| {
        let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        u32::from_str_radix(text, 8).ok().filter(|mode| plain && *mode <= 0o777).ok_or(())
    })
}

/// Makes a file of the body, or puts it in the place of the file that is there: whole, or not at all.
///
/// With `If-Match` only in the place of a file with that tag, with `If-None-Match: *` only where nothing is. A link is
/// followed within the sandbox.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/files", operation_id = "putSandboxFile", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), How),
    request_body(content_type = "application/octet-stream", content = RawBytes, description = "the content"),
    responses((status = 200, description = "it took the place of a file", body = SandboxFile),
        (status = 201, description = "it is new", body = SandboxFile), (status = 400, body = Problem),
        (status = 403, description = "the sandbox's user may not write there (`file_forbidden`)", body = Problem),
        (status = 404, description = "no such sandbox, or no such directory (`no_such_file`)", body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "something else is there (`not_a_file`), or the sandbox is gone", body = Problem),
        (status = 412, description = "what is there is not as the request says (`file_changed`)", body = Problem),
        (status = 413, description = "it is larger than `sandbox.file_bytes` (`file_too_large`)", body = Problem),
        (status = 500, body = Problem),
        (status = 507, description = "the sandbox has no room for it (`sandbox_full`)", body = Problem)))]
pub async fn put(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    how: Asked<How>,
    headers: HeaderMap,
    content: Body,
) -> Result<(StatusCode, Json<SandboxFile>), ApiError> {
    let begun = async {
        let How { path, mode: wanted, parents } = asked(how)?;
        let mode = mode(wanted.as_deref()).transpose().map_err(|()| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", "`mode` must be octal digits, from 0 to 777")
        })?;
        let new = NewFile { mode, modified: None, condition: condition(&headers)? };
        Ok(state.sandboxes.files(&id).await?.create(path.into_bytes(), new, parents)?)
    };
    let (info, is_new) = receive(begun.await, content, state.body_timeout).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(describe(info))))
}

/// Removes a file, a link, or an empty directory; with `recursive`, a directory with everything in it.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/files", operation_id = "deleteSandboxFile", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Removed),
    responses((status = 204, description = "it is gone"), (status = 400, body = Problem),
        (status = 403, description = "the sandbox's user may not remove it (`file_forbidden`)", body = Problem),
        (status = 404, description = "no such sandbox, or no such file (`no_such_file`)", body = Problem),
        (status = 409, description = "there is something in it (`directory_not_empty`), something is mounted on it \
            (`other_file_system`), or the sandbox is gone", body = Problem),
        (status = 412, description = "it has not the tag of `If-Match` (`file_changed`)", body = Problem),
        (status = 413, description = "there is more in it than one request removes (`file_too_large`)", body = Problem),
        (status = 500, body = Problem)))]
pub async fn remove(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    removed: Asked<Removed>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let Removed { path, recursive } = asked(removed)?;
    let condition = condition(&headers)?;
    let remove = move |files: &Files<'_>, limits| files.remove(path.as_bytes(), recursive, &condition, limits);
    state.sandboxes.files(&id).await?.run(remove).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what is in a directory, by name.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files/list", operation_id = "listSandboxFiles", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Part),
    responses((status = 200, body = Page<SandboxFile>), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or no such directory (`no_such_file`)", body = Problem),
        (status = 409, description = "it is no directory (`not_a_directory`), or the sandbox is gone", body = Problem),
        (status = 500, body = Problem)))]
pub async fn list(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    part: Asked<Part>,
) -> Result<Json<Page<SandboxFile>>, ApiError> {
    let Part { path, limit, cursor } = asked(part)?;
    let wrong = |detail: &str| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail);
    let limit = limit.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(wrong("`limit` must be from 1 to 1000"));
    }
    let after = cursor.map(|cursor| STANDARD.decode(cursor)).transpose();
    let after = after.map_err(|_| wrong("`cursor` must be the `next_cursor` of a page"))?;
    let list = move |files: &Files<'_>, _| files.list(path.as_bytes(), after.as_deref(), limit);
    let listing = state.sandboxes.files(&id).await?.run(list).await?;
    let last = listing.items.last().filter(|_| listing.is_more).map(|last| STANDARD.encode(&last.name));
    Ok(Json(Page { items: listing.items.into_iter().map(describe).collect(), next_cursor: last }))
}

/// Tells what is known of a file, a directory, or a link itself.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files/stat", operation_id = "getSandboxFile", tag = "sandboxes", params(
    ("id" = String, Path, description = "sandbox id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64), Which),
    responses((status = 200, body = SandboxFile), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or no such file (`no_such_file`)", body = Problem),
        (status = 409, body = Problem), (status = 500, body = Problem)))]
pub async fn stat(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    which: Asked<Which>,
) -> Result<Json<SandboxFile>, ApiError> {
    let Which { path } = asked(which)?;
    let stat = move |files: &Files<'_>, _| files.stat(path.as_bytes());
    Ok(Json(describe(state.sandboxes.files(&id).await?.run(stat).await?)))
}

/// Makes a directory; with `parents` also what is missing above it.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/files/mkdir", operation_id = "createSandboxDirectory", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)), request_body = NewDirectory,
    responses((status = 200, description = "it was there", body = SandboxFile), (status = 201, body = SandboxFile),
        (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or nothing above it (`no_such_file`)", body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "something is there (`file_exists`), or the sandbox is gone", body = Problem),
        (status = 413, body = Problem), (status = 500, body = Problem),
        (status = 507, description = "the sandbox has no room for it (`sandbox_full`)", body = Problem)))]
pub async fn make_directory(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    request: Body,
) -> Result<(StatusCode, Json<SandboxFile>), ApiError> {
    let NewDirectory { path, mode: wanted, parents } =
        body::json(request, state.max_body_bytes, state.body_timeout).await?;
    let mode = mode(wanted.as_deref()).transpose().map_err(|()| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_field", "`mode` must be octal digits, from 0 to 777")
    })?;
    let make =
        move |files: &Files<'_>, _| files.make_directory(path.as_bytes(), mode.unwrap_or(DIRECTORY_MODE), parents);
    let (info, is_new) = state.sandboxes.files(&id).await?.run(make).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(describe(info))))
}

/// Gives a file or a directory another path on the same file system.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/files/move", operation_id = "moveSandboxFile", tag = "sandboxes",
    params(("id" = String, Path, description = "sandbox id",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)), request_body = FileMove,
    responses((status = 200, body = SandboxFile), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, description = "no such sandbox, or no such file (`no_such_file`)", body = Problem),
        (status = 408, body = Problem),
        (status = 409, description = "something is there (`file_exists`, `directory_not_empty`), it lies on another file system \
            (`other_file_system`), or the sandbox is gone", body = Problem),
        (status = 413, body = Problem), (status = 500, body = Problem),
        (status = 507, description = "the sandbox has no room for it (`sandbox_full`)", body = Problem)))]
pub async fn rename(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    request: Body,
) -> Result<Json<SandboxFile>, ApiError> {
    let FileMove { from, to, overwrite } = body::json(request, state.max_body_bytes, state.body_timeout).await?;
    let rename = move |files: &Files<'_>, _| files.rename(from.as_bytes(), to.as_bytes(), overwrite);
    Ok(Json(describe(state.sandboxes.files(&id).await?.run(rename).await?)))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header};

    use super::{Condition, condition, mode, range};

    #[test]
    fn one_range_of_bytes_is_understood() {
        for (value, length, expected) in [
            ("bytes=0-0", 10, Some(Ok((0, 1)))),
            ("bytes=2-5", 10, Some(Ok((2, 4)))),
            ("bytes=2-500", 10, Some(Ok((2, 8)))),
            ("bytes=9-", 10, Some(Ok((9, 1)))),
            ("bytes=-3", 10, Some(Ok((7, 3)))),
            ("bytes=-30", 10, Some(Ok((0, 10)))),
            ("bytes=10-", 10, Some(Err(()))),
            ("bytes=-0", 10, Some(Err(()))),
            ("bytes=0-", 0, Some(Err(()))),
            ("bytes=0-18446744073709551615", 10, Some(Ok((0, 10)))),
            ("bytes=5-2", 10, None),
            ("bytes=1-2,4-5", 10, None),
            ("bytes=-", 10, None),
            ("bytes=+1-2", 10, None),
            ("lines=1-2", 10, None),
            ("", 10, None),
        ] {
            assert_eq!(range(value, length), expected, "{value:?}");
        }
    }

    #[test]
    fn conditions_are_understood_or_refused() {
        let with = |pairs: &[(header::HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, HeaderValue::from_static(value));
            }
            condition(&headers).ok()
        };
        let tagged = |tags: &[&str]| Some(Condition::Tagged(tags.iter().map(|tag| (*tag).to_owned()).collect()));
        assert_eq!(with(&[]), Some(Condition::None));
        assert_eq!(with(&[(header::IF_MATCH, "*")]), Some(Condition::Present));
        assert_eq!(with(&[(header::IF_NONE_MATCH, "*")]), Some(Condition::Absent));
        assert_eq!(with(&[(header::IF_MATCH, "\"a\", \"b\"")]), tagged(&["a", "b"]));
        assert_eq!(with(&[(header::IF_MATCH, "W/\"a\"")]), tagged(&[]), "a weak one fits nothing");
        assert_eq!(with(&[(header::IF_NONE_MATCH, "\"a\"")]), None);
        assert_eq!(with(&[(header::IF_MATCH, "*"), (header::IF_MATCH, "*")]), None);
        assert_eq!(with(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")]), None);
    }

    #[test]
    fn modes_are_octal() {
        for (text, expected) in [("644", Ok(0o644)), ("0755", Ok(0o755)), ("0", Ok(0))] {
            assert_eq!(mode(Some(text)), Some(expected), "{text}");
        }
        for bad in ["", "8", "4755", "+44", "00644", "rwx"] {
            assert_eq!(mode(Some(bad)), Some(Err(())), "{bad:?}");
        }
    }
}
