//! `/metrics`: counters and histograms of every room, and gauges that are read off at each scrape.
//!
//! What makes series is bounded. Providers are those of the configuration and `image`; stages, states, paths, reasons
//! and buckets are in the code. Only the `thawd_execution_*` gauges name executions: of those that run now, so at most
//! `container.max`; each disappears when its execution ends, and `metrics.per_execution = false` leaves them out. Users
//! and request ids are in the log and in no label.

use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::process::Process;
use super::{ApiError, pools, text_format};
use crate::container::State as ContainerState;
use crate::execution::IMAGE_LABEL;
use crate::sandbox::Sandboxes;
use thaw_client::types::{Container, Pool, Problem, Stage};

/// A gauge of seconds or CPUs.
type Real = Gauge<f64, std::sync::atomic::AtomicU64>;
/// A counter of seconds.
type Seconds = Counter<f64, std::sync::atomic::AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    provider: String,
    stage: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    provider: String,
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    provider: String,
    stage: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExecutionLabels {
    provider: String,
    execution: String,
    container: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NetworkLabels {
    provider: String,
    execution: String,
    container: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

const STATES: [(&str, ContainerState); 4] = [
    ("creating", ContainerState::Creating),
    ("warm", ContainerState::Warm),
    ("claimed", ContainerState::Claimed),
    ("destroying", ContainerState::Destroying),
];

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Created => "created",
        Stage::Prestarted => "prestarted",
    }
}

/// Gauges whose values are read off at each scrape.
#[derive(Debug, Default)]
pub struct Gauges {
    process: Process,
    containers: Family<ContainerLabels, Gauge>,
    places: Gauge,
    memory: Gauge,
    targets: Family<StageLabels, Gauge>,
    pool_memory: Family<StageLabels, Gauge>,
    pool_claims: Family<ResultLabels, Counter>,
    paused: Family<StageLabels, Gauge>,
    failing: Family<StageLabels, Gauge>,
    sandboxes: Family<StateLabels, Gauge>,
    storage_max: Gauge,
    storage: Gauge,
    of_executions: ExecutionGauges,
}

impl Gauges {
    /// Registers them. The registry must not add a prefix of its own.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        let version = Family::<VersionLabels, Gauge>::default();
        version.get_or_create(&VersionLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("thawd_build_info", "Always 1; the label tells the daemon's version", version);
        this.process.register(registry);
        registry.register("thawd_containers", "Containers by provider, stage and state", this.containers.clone());
        registry.register("thawd_containers_max", "Most containers that there may be at once", this.places.clone());
        registry.register(
            "thawd_containers_memory_bytes",
            "Memory charged to the cgroups of all containers",
            this.memory.clone(),
        );
        registry.register("thawd_pool_target", "Warm containers wanted, by provider and stage", this.targets.clone());
        registry.register(
            "thawd_pool_memory_bytes",
            "Memory charged to the cgroups of warm containers, the kernel's own included, by provider and stage",
            this.pool_memory.clone(),
        );
        registry.register(
            "thawd_pool_claims",
            "Claims that found a warm container (hit) or an empty pool (miss), by provider and stage",
            this.pool_claims.clone(),
        );
        registry.register(
            "thawd_pool_paused",
            "1 while a pool creates nothing although it lacks containers, by provider and stage",
            this.paused.clone(),
        );
        registry.register(
            "thawd_pool_failing",
            "1 after a pool's last attempt to create a container or to prepare its image failed, by provider and stage",
            this.failing.clone(),
        );
        registry.register("thawd_sandboxes", "Sandboxes by state", this.sandboxes.clone());
        registry.register(
            "thawd_storage_max_bytes",
            "Disk space that the file systems of sandboxes may take together",
            this.storage_max.clone(),
        );
        registry.register("thawd_storage_bytes", "Disk space that they take", this.storage.clone());
        this.of_executions.register(registry);
        this
    }

    fn set_sandboxes(&self, sandboxes: &Sandboxes) {
        for (state, count) in sandboxes.count() {
            self.sandboxes.get_or_create(&StateLabels { state: state.name() }).set(count as i64);
        }
        let storage = sandboxes.storage();
        self.storage_max.set(i64::try_from(storage.pool_bytes).unwrap_or(i64::MAX));
        self.storage.set(i64::try_from(storage.used_bytes).unwrap_or(i64::MAX));
    }

    fn set_pools(&self, pools: &[Pool]) {
        self.targets.clear();
        self.pool_memory.clear();
        self.pool_claims.clear();
        self.paused.clear();
        self.failing.clear();
        for pool in pools {
            let labels = StageLabels { provider: pool.provider.clone(), stage: stage_name(pool.stage) };
            // A provider may have several pools of one stage, one for each model.
            self.targets.get_or_create(&labels).inc_by(pool.target as i64);
            self.pool_memory.get_or_create(&labels).inc_by(pool.memory.bytes as i64);
            self.paused.get_or_create(&labels).inc_by(i64::from(pool.paused.is_some()));
            self.failing.get_or_create(&labels).inc_by(i64::from(pool.last_error.is_some()));
            for (result, number) in [("hit", pool.hits), ("miss", pool.misses)] {
                let StageLabels { provider, stage } = labels.clone();
                self.pool_claims.get_or_create(&ResultLabels { provider, stage, result }).inc_by(number);
            }
        }
    }

    fn set_containers(&self, pools: &[Pool], containers: &[Container], max: usize) {
        self.containers.clear();
        let known = pools.iter().map(|pool| (pool.provider.clone(), pool.stage));
        for (provider, stage) in known.chain([(IMAGE_LABEL.to_owned(), Stage::Created)]) {
            for (state, _) in STATES {
                let labels = ContainerLabels { provider: provider.clone(), stage: stage_name(stage), state };
                drop(self.containers.get_or_create(&labels));
            }
        }
        for container in containers {
            let state = STATES.iter().find(|(_, state)| *state == container.state).map_or("", |(name, _)| name);
            let stage = stage_name(container.stage);
            let labels = ContainerLabels { provider: container.provider.clone(), stage, state };
            self.containers.get_or_create(&labels).inc();
        }
        self.places.set(max as i64);
        self.memory.set(containers.iter().map(|container| container.memory_bytes as i64).sum());
    }
}

/// What each execution that runs now uses.
#[derive(Debug, Default)]
struct ExecutionGauges {
    cpu: Family<ExecutionLabels, Seconds>,
    cpu_limit: Family<ExecutionLabels, Real>,
    memory: Family<ExecutionLabels, Gauge>,
    memory_peak: Family<ExecutionLabels, Gauge>,
    memory_limit: Family<ExecutionLabels, Gauge>,
    oom_kills: Family<ExecutionLabels, Counter>,
    periods: Family<ExecutionLabels, Counter>,
    throttled_periods: Family<ExecutionLabels, Counter>,
    throttled: Family<ExecutionLabels, Seconds>,
    network: Family<NetworkLabels, Counter>,
}

impl ExecutionGauges {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "thawd_execution_cpu_seconds",
            "CPU time that a running execution has used",
            self.cpu.clone(),
        );
        registry.register(
            "thawd_execution_cpu_limit_cores",
            "CPUs' worth of time that a running execution may use",
            self.cpu_limit.clone(),
        );
        registry.register("thawd_execution_memory_bytes", "Memory of a running execution", self.memory.clone());
        registry.register(
            "thawd_execution_memory_peak_bytes",
            "Highest memory of a running execution",
            self.memory_peak.clone(),
        );
        registry.register(
            "thawd_execution_memory_limit_bytes",
            "Most memory that a running execution may have",
            self.memory_limit.clone(),
        );
        registry.register(
            "thawd_execution_oom_kills",
            "Processes of a running execution that were killed at the memory limit",
            self.oom_kills.clone(),
        );
        registry.register(
            "thawd_execution_cpu_periods",
            "Periods of the CPU limit in which a running execution ran",
            self.periods.clone(),
        );
        registry.register(
            "thawd_execution_cpu_throttled_periods",
            "Those of them in which it was throttled",
            self.throttled_periods.clone(),
        );
        registry.register(
            "thawd_execution_cpu_throttled_seconds",
            "Time that the CPUs of a running execution were throttled",
            self.throttled.clone(),
        );
        registry.register(
            "thawd_execution_network_bytes",
            "Bytes that a running execution exchanged with upstreams, by direction (out, in)",
            self.network.clone(),
        );
    }

    /// Nothing stays of executions that are not among them.
    fn set(&self, containers: &[Container]) {
        for family in [&self.cpu, &self.throttled] {
            family.clear();
        }
        for family in [&self.memory, &self.memory_peak, &self.memory_limit] {
            family.clear();
        }
        for family in [&self.oom_kills, &self.periods, &self.throttled_periods] {
            family.clear();
        }
        self.cpu_limit.clear();
        self.network.clear();
        for container in containers {
            let (Some(execution), Some(usage)) = (&container.execution, &container.usage) else { continue };
            let labels = ExecutionLabels {
                provider: container.provider.clone(),
                execution: execution.clone(),
                container: container.id.clone(),
            };
            self.cpu.get_or_create(&labels).inc_by(usage.cpu_us as f64 / 1e6);
            self.cpu_limit.get_or_create(&labels).set(usage.cpu_limit);
            self.memory.get_or_create(&labels).set(usage.memory_bytes as i64);
            self.memory_peak.get_or_create(&labels).set(usage.memory_peak_bytes as i64);
            self.memory_limit.get_or_create(&labels).set(usage.memory_limit_bytes as i64);
            self.oom_kills.get_or_create(&labels).inc_by(usage.oom_kills);
            self.periods.get_or_create(&labels).inc_by(usage.periods);
            self.throttled_periods.get_or_create(&labels).inc_by(usage.throttled_periods);
            self.throttled.get_or_create(&labels).inc_by(usage.throttled_us as f64 / 1e6);
            for (direction, bytes) in [("out", usage.network_out_bytes), ("in", usage.network_in_bytes)] {
                let ExecutionLabels { provider, execution, container } = labels.clone();
                let labels = NetworkLabels { provider, execution, container, direction };
                self.network.get_or_create(&labels).inc_by(bytes);
            }
        }
    }
}

/// Metrics in the OpenMetrics text format; in the older Prometheus text format when `Accept` asks for `text/plain` and
/// not for OpenMetrics.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "daemon", responses((status = 200, content(
    (String = "application/openmetrics-text"), (String = "text/plain"))), (status = 503, body = Problem)))]
pub async fn metrics(
    State(state): State<Arc<super::State>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    Ok(answer(&headers, &read(&state).await?))
}

/// All metrics as they are now, in the OpenMetrics text format. Reads half a dozen files of each container.
pub async fn read(state: &super::State) -> Result<String, ApiError> {
    let pools = pools::all(state).await?;
    let containers = super::lists::all_containers(state).await?;
    let mut text = String::new();
    let gauges = state.gauges.lock().unwrap_or_else(PoisonError::into_inner);
    gauges.process.set();
    gauges.set_pools(&pools);
    gauges.set_sandboxes(&state.sandboxes);
    gauges.set_containers(&pools, &containers, state.containers.limit().0);
    gauges.of_executions.set(if state.per_execution { &containers } else { &[] });
    prometheus_client::encoding::text::encode(&mut text, &state.registry)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", error.to_string()))?;
    Ok(text)
}

/// The same in the format that the client prefers.
pub fn answer(headers: &HeaderMap, text: &str) -> Response {
    if text_format::is_wanted(headers) {
        let text = text_format::from_open_metrics(text);
        return ([(header::CONTENT_TYPE, text_format::MEDIA_TYPE)], text).into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text.to_owned()).into_response()
}
