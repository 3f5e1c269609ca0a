//! `/v1/containers`, `/v1/providers`, `/v1/images`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::ApiError;
use thaw_client::types::{Container, Image, List, Problem, Provider};

/// Lists the containers that exist now, with what the executions that they serve have used.
#[utoipa::path(get, path = "/v1/containers",
    responses((status = 200, body = List<Container>), (status = 500, body = Problem)))]
pub async fn containers(State(state): State<Arc<super::State>>) -> Result<Json<List<Container>>, ApiError> {
    let mut items = all_containers(&state).await?;
    for container in &mut items {
        let execution = container.execution.as_ref().and_then(|id| state.executions.get(id));
        container.user = execution.map(|execution| execution.user().to_owned());
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

/// Lists the providers.
#[utoipa::path(get, path = "/v1/providers", responses((status = 200, body = List<Provider>)))]
pub async fn providers(State(state): State<Arc<super::State>>) -> Json<List<Provider>> {
    let stored = read(&state, |state| {
        let names = state.executions.served().values().map(|served| served.provider.image.clone());
        names.filter(|image| state.images.look(image).is_ok()).collect::<BTreeSet<_>>()
    })
    .await
    .unwrap_or_default();
    let describe = |served: &crate::execution::Served| {
        let provider = &served.provider;
        Provider {
            name: provider.name.clone(),
            image: provider.image.clone(),
            default_model: provider.models.default.clone(),
            ready: stored.contains(&provider.image),
            credential_files: provider.credentials.files.clone(),
            credential_env: provider.credentials.env.clone(),
            egress: provider.egress.clone(),
        }
    };
    Json(List { items: state.executions.served().values().map(describe).collect() })
}

/// What `look` reads from the disk, on a thread that may wait for it.
async fn read<T: Send + 'static>(
    state: &Arc<super::State>,
    look: impl FnOnce(&super::State) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let state = Arc::clone(state);
    let looked = tokio::task::spawn_blocking(move || look(&state)).await;
    looked.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_store", error.to_string()))
}

/// Lists the images that are unpacked.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = List<Image>), (status = 500, body = Problem)))]
pub async fn images(State(state): State<Arc<super::State>>) -> Result<Json<List<Image>>, ApiError> {
    let images = read(&state, |state| state.images.list())
        .await?
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_store", error.to_string()))?;
    let items = images.into_iter().map(|image| Image {
        name: image.name,
        digest: image.digest,
        compressed_bytes: image.compressed_bytes,
        unpacked_bytes: image.unpacked_bytes,
        unpacked_at_ms: image.unpacked_at_ms,
    });
    Ok(Json(List { items: items.collect() }))
}
