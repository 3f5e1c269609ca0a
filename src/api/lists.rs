//! `/v1/containers`, `/v1/providers`, `/v1/images`.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::ApiError;
use crate::execution::Served;
use thaw_client::types::{Container, Image, List, Problem, Provider};
use thaw_image::Store;

/// Lists the containers that exist now, with what the executions that they serve have used.
#[utoipa::path(get, path = "/v1/containers", operation_id = "listContainers", tag = "containers",
    responses((status = 200, body = List<Container>), (status = 500, body = Problem)))]
pub async fn containers(State(state): State<Arc<super::State>>) -> Result<Json<List<Container>>, ApiError> {
    let mut items = all_containers(&state).await?;
    for container in &mut items {
        let execution = container.execution.as_ref().and_then(|id| state.executions.get(id));
        container.user = execution.map(|execution| execution.user().to_owned());
        if let Some(sandbox) = container.sandbox.as_ref().and_then(|id| state.sandboxes.get(id)) {
            container.user = Some(sandbox.user().to_owned());
        }
        let login = container.login.as_ref().and_then(|id| state.logins.as_ref()?.get(id));
        if let Some(login) = login {
            container.user = Some(login.describe().user);
        }
    }
    Ok(Json(List { items }))
}

/// The containers; whose executions they serve is not filled in.
pub async fn all_containers(state: &super::State) -> Result<Vec<Container>, ApiError> {
    let containers = Arc::clone(&state.containers);
    // With 500 containers some 3,000 files are read.
    let listed = tokio::task::spawn_blocking(move || containers.list()).await;
    listed.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "containers", error.to_string()))
}

/// Lists the providers, with what is in force: manifest and configuration together.
#[utoipa::path(get, path = "/v1/providers", operation_id = "listProviders", tag = "providers",
    responses((status = 200, body = List<Provider>), (status = 500, body = Problem)))]
pub async fn providers(State(state): State<Arc<super::State>>) -> Result<Json<List<Provider>>, ApiError> {
    let items = read(&state, |state| {
        let served = state.executions.served().values();
        served.map(|served| describe(&state.images, served)).collect()
    });
    Ok(Json(List { items: items.await? }))
}

/// Reads from the disk which images there are.
fn describe(images: &Store, served: &Served) -> Provider {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let provider = &served.provider;
    let stored = images.look(&provider.image).ok().map(|image| image.digest);
    let digest = served.image.digest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // What the next start would take: from the layout if there is one, else from the store.
    let next = thaw_image::digest_in(&served.image.layout).or_else(|| stored.clone());
    Provider {
        name: provider.name.clone(),
        image: provider.image.clone(),
        default_model: provider.models.default.clone(),
        ready: stored.is_some(),
        credential_files: provider.credentials.files.clone(),
        credential_env: provider.credentials.env.clone(),
        egress: served.policy.allowed(usize::MAX),
        base_url: served.base_url.clone(),
        models: provider.models.allowed.clone(),
        model_aliases: provider.models.aliases.clone(),
        efforts: provider.efforts.keys().cloned().collect(),
        default_timeout_ms: ms(provider.timeouts.default),
        model_timeouts_ms: provider
            .timeouts
            .model
            .iter()
            .map(|limit| (limit.pattern.clone(), ms(limit.timeout)))
            .collect(),
        effort_timeouts_ms: provider
            .efforts
            .iter()
            .filter_map(|(name, effort)| Some((name.clone(), ms(effort.timeout?))))
            .collect(),
        newer_image_digest: next.filter(|next| digest.as_ref().is_some_and(|digest| digest != next)),
        image_digest: digest,
    }
}

/// What `look` reads from the disk, on a thread that may wait for it.
pub async fn read<T: Send + 'static>(
    state: &Arc<super::State>,
    look: impl FnOnce(&super::State) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let state = Arc::clone(state);
    let looked = tokio::task::spawn_blocking(move || look(&state)).await;
    looked.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_store", error.to_string()))
}

/// Lists the images that are unpacked.
#[utoipa::path(get, path = "/v1/images", operation_id = "listImages", tag = "images",
    responses((status = 200, body = List<Image>), (status = 500, body = Problem)))]
pub async fn images(State(state): State<Arc<super::State>>) -> Result<Json<List<Image>>, ApiError> {
    let images = read(&state, |state| state.images.list())
        .await?
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_store", error.to_string()))?;
    Ok(Json(List { items: images.into_iter().map(shown).collect() }))
}

/// An image as the API shows it.
pub fn shown(image: thaw_image::Image) -> Image {
    Image {
        name: image.name,
        digest: image.digest,
        compressed_bytes: image.compressed_bytes,
        unpacked_bytes: image.unpacked_bytes,
        unpacked_at_ms: image.unpacked_at_ms,
        layers: image.layers.len(),
        notes: image.notes,
    }
}
