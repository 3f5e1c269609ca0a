//! `/v1/pools`, `/v1/containers`, `/v1/providers`, `/v1/images`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::ApiError;
use crate::container::PoolKey;
use crate::types::{Container, Image, List, Pool, Problem, Provider};

/// Lists the pools.
#[utoipa::path(get, path = "/v1/pools", responses((status = 200, body = List<Pool>), (status = 503, body = Problem)))]
pub async fn pools(State(state): State<Arc<super::State>>) -> Result<Json<List<Pool>>, ApiError> {
    Ok(Json(List { items: all_pools(&state).await? }))
}

/// Figures of every pool.
pub async fn all_pools(state: &super::State) -> Result<Vec<Pool>, ApiError> {
    let mut items = Vec::new();
    for served in state.executions.served().values() {
        for pool in std::iter::once(&served.pool).chain(served.prestarted.iter().map(|(pool, _)| pool)) {
            let status = pool.status().await;
            items.push(
                status.map_err(|error| {
                    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", error.to_string())
                })?,
            );
        }
    }
    // Here and not in the pools, whose owners must not wait for hundreds of files to be read.
    let containers = Arc::clone(&state.containers);
    let memory = tokio::task::spawn_blocking(move || containers.pool_memory()).await.unwrap_or_default();
    for pool in &mut items {
        let of = |key: &PoolKey| key.is_of(pool);
        pool.memory = memory.iter().find(|(key, _)| of(key)).map(|(_, memory)| *memory).unwrap_or_default();
    }
    Ok(items)
}

/// Lists the containers that exist now.
#[utoipa::path(get, path = "/v1/containers", responses((status = 200, body = List<Container>)))]
pub async fn containers(State(state): State<Arc<super::State>>) -> Json<List<Container>> {
    Json(List { items: state.containers.list() })
}

/// Lists the providers.
#[utoipa::path(get, path = "/v1/providers", responses((status = 200, body = List<Provider>)))]
pub async fn providers(State(state): State<Arc<super::State>>) -> Json<List<Provider>> {
    let describe = |served: &crate::execution::Served| {
        let provider = &served.provider;
        Provider {
            name: provider.name.clone(),
            image: provider.image.clone(),
            default_model: provider.models.default.clone(),
            ready: state.images.get(&provider.image).is_ok(),
            credential_files: provider.credentials.files.clone(),
            credential_env: provider.credentials.env.clone(),
            egress: provider.egress.clone(),
        }
    };
    Json(List { items: state.executions.served().values().map(describe).collect() })
}

/// Lists the images that are unpacked.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = List<Image>), (status = 500, body = Problem)))]
pub async fn images(State(state): State<Arc<super::State>>) -> Result<Json<List<Image>>, ApiError> {
    let images = state
        .images
        .list()
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
