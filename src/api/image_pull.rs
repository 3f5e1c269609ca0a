//! `/v1/images/pull`: brings in an image from a registry.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

use super::image_verbs::{accepted, check_name, check_peer};
use super::{ApiError, PeerCredentials, body, lists};
use thaw_client::types::{ImagePull, Job, JobKind, Problem};
use thaw_image::ImportNames;
use thaw_image::registry::{self, Login, Options, RegistryError};

/// Longest body, bytes: certificate authorities and a password.
const MAX_BODY: usize = 2 << 20;

/// A layout that is pulled into; removed when dropped.
#[derive(Debug)]
struct Pulled(PathBuf);

impl Drop for Pulled {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a pulled layout cannot be removed");
            }
            _ => {}
        }
    }
}

/// Brings in an image from a registry, as a job: every blob is checked by size and digest, and the image is unpacked into
/// the store under its name. What has that name already is replaced at the very end. With `image.require_signature` this
/// is refused: images of registries carry no signature that is known here.
#[utoipa::path(post, path = "/v1/images/pull", operation_id = "pullImage", tag = "images", request_body = ImagePull, responses(
    (status = 202, body = Job), (status = 403, body = Problem), (status = 500, body = Problem), (status = 503, body = Problem),
    (status = 400, description = "the body is wrong, or a signature is needed (`signature_required`)", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 413, description = "the body is too large", body = Problem)))]
pub async fn pull(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    body: Body,
) -> Result<(StatusCode, Json<Job>), ApiError> {
    check_peer(&state, peer)?;
    let asked: ImagePull = body::json(body, MAX_BODY, state.body_timeout).await?;
    if state.require_signature {
        let detail = "`image.require_signature` is set, and images of registries carry no signature that is known here: \
                      import a signed archive";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "signature_required", detail));
    }
    let reference = registry::reference(&asked.reference).map_err(wrong("reference"))?;
    let last = || reference.repository().rsplit('/').next().unwrap_or_default().to_owned();
    let name = asked.name.clone().unwrap_or_else(last);
    check_name(&state, Some(name.clone())).await?;
    let options = options(&state, asked)?;
    let target = Pulled(state.uploads.join(ulid::Ulid::new().to_string().to_lowercase()));
    let images = Arc::clone(&state.images);
    let runtime = tokio::runtime::Handle::current();
    let started = state.jobs.start(JobKind::PullImage, move |progress| {
        let pulled = runtime.block_on(registry::pull(&reference, &options, &target.0, "pulled", progress));
        let report = pulled.map_err(|error| error.to_string())?;
        tracing::info!(%reference, digest = report.digest, fetched_bytes = report.fetched_bytes, "image pulled");
        let names = ImportNames { name: Some(&name), reference: None };
        let image = images.import_named(&target.0, names, progress).map_err(|error| error.to_string())?;
        drop(target);
        Ok(Box::new(move |job: &mut Job| {
            job.notes.clone_from(&image.notes);
            job.image = Some(lists::shown(image));
        }))
    });
    let accepted = accepted(started)?;
    tracing::info!(job = accepted.1.id, peer_uid = peer.uid, peer_pid = peer.pid, "image asked for from a registry");
    Ok(accepted)
}

fn wrong(field: &str) -> impl FnOnce(RegistryError) -> ApiError + '_ {
    move |error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_field", format!("`{field}`: {error}"))
}

fn options(state: &super::State, asked: ImagePull) -> Result<Options, ApiError> {
    let refuse = |detail: &str| Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_field", detail));
    let login = match (asked.username, asked.password) {
        (None, None) => None,
        (Some(user), Some(password)) if !user.is_empty() && !password.expose().is_empty() => {
            Some(Login { user, password })
        }
        (Some(_), _) => return refuse("`username` needs a `password`, and neither may be empty"),
        (None, Some(_)) => return refuse("`password` needs a `username`"),
    };
    if asked.plain_http && asked.ca.is_some() {
        return refuse("`ca` is for https: leave out `plain_http`");
    }
    let authorities = match asked.ca {
        Some(pem) => registry::authorities_in(pem.as_bytes(), "the text").map_err(wrong("ca"))?,
        None => Vec::new(),
    };
    Ok(Options { login, plain_http: asked.plain_http, authorities, limits: state.image_limits.clone() })
}
