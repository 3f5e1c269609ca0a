//! `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::sync::PoisonError;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{ApiError, pools};
use crate::types::{ContainerState, Problem, Stage};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    provider: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    provider: String,
    stage: &'static str,
}

/// Gauges whose values are read off at each scrape.
#[derive(Debug, Default)]
pub struct Gauges {
    pools: Family<PoolLabels, Gauge>,
    targets: Family<PoolLabels, Gauge>,
    memory: Gauge,
    pool_memory: Family<StageLabels, Gauge>,
}

impl Gauges {
    /// Registers `thawd_containers`, `thawd_pool_target`, `thawd_containers_memory_bytes` and
    /// `thawd_pool_memory_bytes`.
    pub fn new(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register("thawd_containers", "Containers by provider and state", gauges.pools.clone());
        registry.register("thawd_pool_target", "Warm containers wanted, by provider and stage", gauges.targets.clone());
        registry.register(
            "thawd_containers_memory_bytes",
            "Memory charged to the cgroups of all containers",
            gauges.memory.clone(),
        );
        registry.register(
            "thawd_pool_memory_bytes",
            "Memory charged to the cgroups of warm containers, the kernel's own included, by provider and stage",
            gauges.pool_memory.clone(),
        );
        gauges
    }
}

/// Says that the daemon runs.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Says whether executions can be served: every pool that wants containers has some, or serves some, and the others
/// have their image.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = String), (status = 503, body = Problem)))]
pub async fn readyz(State(state): State<Arc<super::State>>) -> Result<&'static str, ApiError> {
    let mut waiting = Vec::new();
    for pool in pools::all(&state).await? {
        let ready = if pool.target > 0 {
            pool.warm + pool.claimed > 0
        } else {
            // The list was made from this very map.
            state.executions.served()[&pool.provider].pool.is_prepared().await.unwrap_or(false)
        };
        if !ready {
            waiting.push(match pool.last_error {
                Some(reason) => format!("{} ({reason})", pool.provider),
                None => pool.provider,
            });
        }
    }
    if waiting.is_empty() {
        return Ok("ready\n");
    }
    let detail = format!("no container yet for: {}", waiting.join("; "));
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail))
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
    (status = 500, body = Problem), (status = 503, body = Problem)))]
pub async fn metrics(State(state): State<Arc<super::State>>) -> Result<impl IntoResponse, ApiError> {
    let pools = pools::all(&state).await?;
    let containers = state.containers.list();
    let mut text = String::new();
    {
        let gauges = state.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.pools.clear();
        gauges.pool_memory.clear();
        gauges.targets.clear();
        for pool in pools {
            let label = |state| PoolLabels { provider: pool.provider.clone(), state };
            let stage = match pool.stage {
                Stage::Created => "created",
                Stage::Prestarted => "prestarted",
            };
            // A provider may have several pools of one stage, one for each model.
            gauges.targets.get_or_create(&label(stage)).inc_by(pool.target as i64);
            let stage = StageLabels { provider: pool.provider.clone(), stage };
            gauges.pool_memory.get_or_create(&stage).inc_by(pool.memory.bytes as i64);
            for (name, wanted) in [
                ("creating", ContainerState::Creating),
                ("warm", ContainerState::Warm),
                ("claimed", ContainerState::Claimed),
                ("destroying", ContainerState::Destroying),
            ] {
                let count = containers.iter().filter(|c| c.provider == pool.provider && c.state == wanted).count();
                gauges.pools.get_or_create(&label(name)).set(count as i64);
            }
        }
        gauges.memory.set(containers.iter().map(|container| container.memory_bytes as i64).sum());
        prometheus_client::encoding::text::encode(&mut text, &state.registry)
            .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", error.to_string()))?;
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}
