//! `/v1/pools`: how many containers wait, and how many are to.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;

use super::{ApiError, PeerCredentials, body};
use crate::container::PoolKey;
use crate::execution::Served;
use crate::pool::{Change, ClaimError};
use thaw_client::types::{List, Pool, PoolChange, Problem};

/// Lists the pools.
#[utoipa::path(get, path = "/v1/pools", operation_id = "listPools", tag = "pools",
    responses((status = 200, body = List<Pool>), (status = 503, body = Problem)))]
pub async fn list(State(state): State<Arc<super::State>>) -> Result<Json<List<Pool>>, ApiError> {
    Ok(Json(List { items: all(&state).await? }))
}

/// The pools of one provider: its ordinary one, and that of prestarted containers if there is one.
#[utoipa::path(get, path = "/v1/pools/{provider}", operation_id = "getPools", tag = "pools",
    params(("provider" = String, Path, description = "provider name",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 32)),
    responses((status = 200, body = List<Pool>), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub async fn get(
    State(state): State<Arc<super::State>>,
    provider: Result<Path<String>, PathRejection>,
) -> Result<Json<List<Pool>>, ApiError> {
    Ok(Json(List { items: figures(&state, std::iter::once(find(&state, provider)?)).await? }))
}

/// Changes how many warm containers a provider has, until the daemon ends.
///
/// A `target` alone is fixed from then on; `min` and `max` let it follow demand between them. What is absent stays.
/// Answers with the provider's pools as they are then.
#[utoipa::path(put, path = "/v1/pools/{provider}", operation_id = "changePools", tag = "pools",
    params(("provider" = String, Path, description = "provider name",
        pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 32)),
    request_body = PoolChange, responses((status = 200, body = List<Pool>),
        (status = 400, description = "the change is wrong; see `code`", body = Problem),
        (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 413, description = "the body is too large", body = Problem),
        (status = 503, body = Problem)))]
pub async fn change(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    provider: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Json<List<Pool>>, ApiError> {
    let PoolChange { target, min, max, scaling, prestarted } =
        body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let served = find(&state, provider)?;
    let change = Change { target, min, max, scaling };
    let own = target.is_some() || min.is_some() || max.is_some() || scaling.is_some();
    let invalid = |code, problem: String| ApiError::new(StatusCode::BAD_REQUEST, code, problem);
    if !own && prestarted.is_none() {
        let problem = "give at least one of `target`, `min`, `max`, `scaling` and `prestarted`".to_owned();
        return Err(invalid("nothing_to_change", problem));
    }
    // Everything is checked before anything is changed.
    let limit = state.containers.limit().0;
    let beside = match (prestarted, prestarted_of_default(served)) {
        (None, _) => None,
        (Some(number), _) if number > limit => {
            let problem = format!("`prestarted` is {number}, but the host's limit (`container.max`) is {limit}");
            return Err(invalid("invalid_pool", problem));
        }
        (Some(number), Some(pool)) => Some((number, pool)),
        (Some(_), None) => {
            let problem = "the provider has no prestarted containers of its default model; its manifest needs a \
                           [prestart], and `provider.NAME.prestarted` in the configuration at least 1";
            return Err(invalid("no_prestarted_pool", problem.to_owned()));
        }
    };
    if own {
        served.pool.change(change).await.map_err(stopped)?.map_err(|problem| invalid("invalid_pool", problem))?;
    }
    if let Some((number, pool)) = beside {
        let change = Change { target: Some(number), scaling: Some(false), ..Change::default() };
        pool.change(change).await.map_err(stopped)?.map_err(|problem| invalid("invalid_pool", problem))?;
    }
    tracing::info!(provider = served.provider.name, peer_uid = peer.uid, peer_pid = peer.pid, "pool changed");
    Ok(Json(List { items: figures(&state, std::iter::once(served)).await? }))
}

/// Figures of every pool.
pub async fn all(state: &super::State) -> Result<Vec<Pool>, ApiError> {
    figures(state, state.executions.served().values()).await
}

async fn figures(state: &super::State, of: impl Iterator<Item = &Served>) -> Result<Vec<Pool>, ApiError> {
    let mut items = Vec::new();
    for served in of {
        for pool in std::iter::once(&served.pool).chain(served.prestarted.iter().map(|(pool, _)| pool)) {
            items.push(pool.status().await.map_err(stopped)?);
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

/// The pool whose CLIs take the default model, of those that wait already started.
fn prestarted_of_default(served: &Served) -> Option<&crate::pool::Pool> {
    let default = served.provider.prestart(None, served.base_url.as_deref()).ok().flatten()?;
    served.prestarted.iter().find(|(_, plan)| plan.model == default.model).map(|(pool, _)| pool)
}

fn stopped(error: ClaimError) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", error.to_string())
}

fn find(state: &super::State, provider: Result<Path<String>, PathRejection>) -> Result<&Served, ApiError> {
    // It cannot even be read when it is not UTF-8: then there is none of that name either.
    let name = provider.map(|Path(name)| name).unwrap_or_default();
    state.executions.served().get(&name).ok_or_else(|| ApiError::not_found("provider", &name))
}
