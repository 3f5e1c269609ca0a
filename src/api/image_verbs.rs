//! What changes the images: `/v1/images` and `/v1/jobs`. Whoever changes an image decides what runs with the credentials of
//! others, so that this is for root, and for whom `api.connections.image_uids` names.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path as UrlPath, RawQuery, State};
use axum::http::{Method, StatusCode, Uri};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::lookup::Id;
use super::{ApiError, PeerCredentials, filter, lists, problem};
use thaw_client::types::{ImageDamage, ImagePrune, ImageVerification, Job, JobKind, List, Problem};
use thaw_image::{ImportNames, StoreError, Verification, signature};

/// Pieces of an upload that wait to be written.
const PIECES: usize = 8;

/// Longest signature of an upload in base64, characters: minisign's have some 500.
const MAX_SIGNATURE: usize = 2048;

/// An uploaded archive; removed when dropped.
#[derive(Debug)]
struct Upload(PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "an uploaded archive cannot be removed");
        }
    }
}

/// Refuses whoever may not change images.
pub fn check_peer(state: &super::State, peer: PeerCredentials) -> Result<(), ApiError> {
    if peer.uid == 0 || state.image_uids.contains(&peer.uid) {
        return Ok(());
    }
    let detail = format!("user {} may not change images (`api.connections.image_uids`)", peer.uid);
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_images", detail))
}

fn failed(error: StoreError) -> ApiError {
    let (status, code) = match &error {
        StoreError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
        StoreError::Name { .. } => (StatusCode::BAD_REQUEST, "invalid_image_name"),
        StoreError::InUse { .. } => (StatusCode::CONFLICT, "image_in_use"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "image_store"),
    };
    ApiError::new(status, code, error.to_string())
}

/// Removes an image, unless something runs from it.
#[utoipa::path(delete, path = "/v1/images/{name}", operation_id = "deleteImage", tag = "images",
    params(("name" = String, Path, description = "name of the image; `/` in it is written %2F", min_length = 1, max_length = 250,
        pattern = r"^[a-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*)*$")),
    responses((status = 204, description = "it is gone"), (status = 400, body = Problem), (status = 403, body = Problem),
        (status = 404, body = Problem), (status = 500, body = Problem),
        (status = 409, description = "a daemon or container uses it (`image_in_use`)", body = Problem)))]
pub async fn delete(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    name: Result<UrlPath<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    remove(&state, peer, name.map(|UrlPath(name)| name).unwrap_or_default()).await
}

/// The same for an image whose name is also that of a verb, `POST /v1/images/{verb}`, so that its path is another route's:
/// called for known paths with a wrong method.
pub async fn delete_like_a_verb(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    method: Method,
    uri: Uri,
) -> Result<StatusCode, ApiError> {
    if method != Method::DELETE || !uri.path().starts_with("/v1/images/") {
        return Err(problem::method_not_allowed().await);
    }
    remove(&state, peer, uri.path().rsplit('/').next().unwrap_or_default().to_owned()).await
}

async fn remove(state: &Arc<super::State>, peer: PeerCredentials, name: String) -> Result<StatusCode, ApiError> {
    check_peer(state, peer)?;
    let removed = name.clone();
    lists::read(state, move |state| state.images.remove(&removed)).await?.map_err(failed)?;
    tracing::info!(image = name, peer_uid = peer.uid, peer_pid = peer.pid, "image removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Removes images that no name means any more and that nothing uses.
#[utoipa::path(post, path = "/v1/images/prune", operation_id = "pruneImages", tag = "images",
    responses((status = 200, body = ImagePrune), (status = 403, body = Problem), (status = 500, body = Problem)))]
pub async fn prune(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
) -> Result<Json<ImagePrune>, ApiError> {
    check_peer(&state, peer)?;
    let pruned = lists::read(&state, |state| {
        let before = state.images.unpacked_bytes()?;
        let removed = state.images.prune()?;
        let freed_bytes = before.saturating_sub(state.images.unpacked_bytes()?);
        Ok(ImagePrune { removed, freed_bytes })
    });
    pruned.await?.map(Json).map_err(failed)
}

/// Compares every file of the store with its digest, as a job.
#[utoipa::path(post, path = "/v1/images/verify", operation_id = "verifyImages", tag = "images",
    responses((status = 202, body = Job), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub async fn verify(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    check_peer(&state, peer)?;
    let images = Arc::clone(&state.images);
    let started = state.jobs.start(JobKind::VerifyImages, move |progress| {
        let found = images.verify(progress).map_err(|error| error.to_string())?;
        Ok(Box::new(move |job: &mut Job| job.verification = Some(verification(found))))
    });
    accepted(started)
}

/// The answer of a request that has started a job.
pub fn accepted(
    started: Result<Arc<crate::jobs::Handle>, crate::jobs::TooMany>,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let handle =
        started.map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_jobs", error.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(handle.describe())))
}

fn verification(found: Verification) -> ImageVerification {
    let damage = found.damage.into_iter();
    ImageVerification {
        images: found.images,
        layers: found.layers,
        files: found.files,
        bytes: found.bytes,
        damage: damage.map(|one| ImageDamage { what: one.what, reasons: one.reasons, images: one.images }).collect(),
    }
}

/// Query parameters of an import, as they are described.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only")]
pub struct Names {
    /// What the image is called in the store; the name that it brings when absent.
    #[param(
        min_length = 1,
        max_length = 250,
        pattern = r"^[a-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*)*$"
    )]
    name: Option<String>,
    /// Of several images in the archive, the one that is called so there.
    r#ref: Option<String>,
    /// minisign's signature of the archive (the content of `FILE.minisig`) in base64, to be checked by `image.public_keys`;
    /// needed with `image.require_signature`.
    #[param(max_length = 2048, pattern = "^[A-Za-z0-9+/=]+$")]
    signature: Option<String>,
}

/// An OCI archive, or what `docker save` wrote.
#[derive(Debug, utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "read by utoipa only")]
pub struct Archive(Vec<u8>);

/// Brings in an image, as a job: the body is an OCI archive or what `docker save` wrote, which may be compressed with gzip
/// or zstd. It is taken in before the answer; the job checks its signature, if it has one or has to have one, and unpacks it.
#[utoipa::path(post, path = "/v1/images/import", operation_id = "importImage", tag = "images", params(Names),
    request_body(content = Archive, content_type = "application/octet-stream", description = "the archive"),
    responses((status = 202, body = Job),
        (status = 400, description = "the request is wrong, or a signature is needed (`signature_required`)", body = Problem),
        (status = 403, body = Problem), (status = 408, description = "nothing came for `api.connections.body_timeout_seconds`", body = Problem),
        (status = 413, description = "it is larger than `image.max_unpacked_bytes`", body = Problem),
        (status = 500, body = Problem), (status = 503, body = Problem)))]
pub async fn import(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    let query = query.unwrap_or_default();
    let given = |wanted: &str| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    let (name, reference) = (given("name"), given("ref"));
    let signature = async {
        check_peer(&state, peer)?;
        check_name(&state, name.clone()).await?;
        signature(&state, given("signature"))
    };
    let signature = signature.await?;
    let upload = receive(&state, body).await?;
    let images = Arc::clone(&state.images);
    let keys = state.public_keys.clone();
    let started = state.jobs.start(JobKind::ImportImage, move |progress| {
        if let Some(signature) = signature {
            let comment = signature::check_text(&upload.0, &signature, &keys).map_err(|error| error.to_string())?;
            tracing::info!(comment, "the signature of an uploaded archive is good");
        }
        let names = ImportNames { name: name.as_deref(), reference: reference.as_deref() };
        let imported = images.import_named(&upload.0, names, progress);
        drop(upload);
        let image = imported.map_err(|error| error.to_string())?;
        Ok(Box::new(move |job: &mut Job| {
            job.notes.clone_from(&image.notes);
            job.image = Some(lists::shown(image));
        }))
    });
    let accepted = accepted(started)?;
    tracing::info!(job = accepted.1.id, peer_uid = peer.uid, peer_pid = peer.pid, "image uploaded");
    Ok(accepted)
}

/// Refuses what can be no name of an image.
pub async fn check_name(state: &Arc<super::State>, name: Option<String>) -> Result<(), ApiError> {
    let Some(name) = name else { return Ok(()) };
    match lists::read(state, move |state| state.images.look(&name)).await? {
        Err(error @ StoreError::Name { .. }) => Err(failed(error)),
        // Whether there is one already is no matter.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The signature that an upload is checked by: the one that is given. There has to be one if the configuration says so.
fn signature(state: &super::State, given: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(given) = given else {
        let detail = "`image.require_signature` is set: give `signature`";
        return match state.require_signature {
            true => Err(ApiError::new(StatusCode::BAD_REQUEST, "signature_required", detail)),
            false => Ok(None),
        };
    };
    let given = Some(given).filter(|given| given.len() <= MAX_SIGNATURE);
    let text =
        given.and_then(|given| BASE64_STANDARD.decode(given).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
    let problem = match state.public_keys.is_empty() {
        true => "there is no key to check it with: set `image.public_keys`",
        false => "`signature` must be the content of FILE.minisig in base64",
    };
    match text.filter(|_| !state.public_keys.is_empty()) {
        Some(text) => Ok(Some(text)),
        None => Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_signature", problem)),
    }
}

/// Writes a body to a file of ours, piece by piece.
async fn receive(state: &super::State, mut body: Body) -> Result<Upload, ApiError> {
    let path = state.uploads.join(ulid::Ulid::new().to_string().to_lowercase());
    let broken = |error: std::io::Error| {
        let detail = format!(
            "the archive cannot be stored in {}: {error}; let the operator see that the state directory can be written and \
             has room, and restart thawd if it could not be written when it started",
            state.uploads.display()
        );
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_store", detail)
    };
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(broken)?;
    let upload = Upload(path);
    let (pieces, writer) = writer(file);
    let mut received = 0u64;
    while let Some(piece) = super::body::piece(&mut body, state.body_timeout).await? {
        received += piece.len() as u64;
        if received > state.max_archive_bytes {
            let detail =
                format!("the archive is larger than {} bytes (`image.max_unpacked_bytes`)", state.max_archive_bytes);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
        }
        // The writer has failed: it says why.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let written = writer.await.map_err(|error| broken(std::io::Error::other(error)))?;
    written.map_err(broken)?;
    if received == 0 {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_archive", "the body is empty: send an archive"));
    }
    Ok(upload)
}

type Written = tokio::task::JoinHandle<std::io::Result<()>>;

fn writer(mut file: File) -> (mpsc::Sender<Bytes>, Written) {
    let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES);
    let write = move || {
        while let Some(piece) = waiting.blocking_recv() {
            file.write_all(&piece)?;
        }
        file.flush()
    };
    (pieces, tokio::task::spawn_blocking(write))
}

/// Makes the folder for uploads, without what an earlier daemon left in it.
///
/// # Errors
/// It cannot be made.
pub fn prepare_uploads(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir(folder)
}

/// Lists jobs, newest first: those that run, and the last that have ended.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "listJobs", tag = "images", responses((status = 200, body = List<Job>)))]
pub async fn jobs(State(state): State<Arc<super::State>>) -> Json<List<Job>> {
    Json(List { items: state.jobs.list() })
}

/// One job. With `wait` the answer comes when it has ended, or when that time is over. `GET /v1/events` tells how far jobs
/// are.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "getJob", tag = "images",
    params(("id" = String, Path, description = "job id", pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64),
        ("wait" = Option<String>, Query, description = "how long to wait for its end, up to 300 s: `30s`, `500ms`, `2m`",
            pattern = "^[0-9]+(ms|s|m)?$")),
    responses((status = 200, body = Job), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub async fn job(
    State(state): State<Arc<super::State>>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<Job>, ApiError> {
    let wait = filter::wait(&query.unwrap_or_default())?;
    let handle = state.jobs.get(&id).ok_or_else(|| ApiError::not_found("job", &id))?;
    if let Some(wait) = wait {
        // Over or not, it is described as it is then.
        let _ = tokio::time::timeout(wait, handle.ended()).await;
    }
    Ok(Json(handle.describe()))
}
