//! What the rooms are told, from what the configuration says: seconds become durations, sections become settings.

use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use crate::api;
use crate::container::{self, RefillThrottleSettings};
use crate::egress::{self, Policy};
use crate::execution::ImageSettings;
use crate::pool::{self, AdmissionSettings, SchedulerSettings};
use crate::provider::ResourceClass;
use crate::{store, vault};
use thaw_client::config::{self, Config};
use thaw_client::types::Stage;
use thaw_os::cgroup::{CPU_PERIOD_US, Limits, Reclaim};

pub(super) fn metrics_limits(config: &Config) -> api::MetricsLimits {
    let metrics = &config.metrics;
    api::MetricsLimits {
        // More connections than tokio can count are no limit.
        connections: metrics.max_connections.min(tokio::sync::Semaphore::MAX_PERMITS),
        patience: Duration::from_secs(metrics.timeout_seconds),
        max_age: Duration::from_millis(metrics.max_age_ms),
    }
}

pub(super) fn container_settings(config: &Config, made_by: String) -> container::Settings {
    container::Settings {
        made_by,
        max: config.container.max,
        ephemeral_bytes: config.container.ephemeral_bytes,
        ephemeral_inodes: config.container.ephemeral_inodes,
        open_files: config.container.open_files,
        limit_visible_cpus: config.container.limit_visible_cpus,
        id_start: config.container.id_start,
        create_timeout: Duration::from_secs(config.container.create_timeout_seconds),
        scarce_percent: config.pool.clearing_scarce_percent,
        proxy_port: config.egress.port,
        egress: (&config.egress.limits).into(),
        mount_point: config.paths.run_dir.clone(),
    }
}

pub(super) fn scheduler_settings(config: &Config) -> SchedulerSettings {
    let admission = &config.admission;
    SchedulerSettings {
        max_waiting: config.queue.max,
        admission: AdmissionSettings {
            proc: "/proc".into(),
            cpus: cpus(),
            min_available_bytes: admission.min_available_bytes,
            max_memory_pressure: admission.max_memory_pressure_percent,
            max_cpu_pressure: admission.max_cpu_pressure_percent,
            max_load_per_cpu: admission.max_load_per_cpu,
        },
    }
}

pub(super) fn refill_throttle_settings(config: &Config) -> RefillThrottleSettings {
    RefillThrottleSettings {
        quiet: Duration::from_millis(config.pool.refill_quiet_ms),
        max_hold: Duration::from_millis(config.pool.refill_max_hold_ms),
        max_hold_clearing: Duration::from_millis(config.pool.clearing_max_hold_ms),
        held_creations: config.pool.held_creations,
        cpus: cpus(),
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// `bounds`: target, fewest, most, and whether it moves between them.
pub(super) fn pool_settings(
    config: &Config,
    stage: Stage,
    model: Option<String>,
    bounds: (usize, usize, usize, bool),
) -> pool::Settings {
    let pool = &config.pool;
    let (target, min, max, scaling) = bounds;
    pool::Settings {
        stage,
        model,
        target,
        bounds: pool::Bounds { min, max, scaling },
        rules: pool::Rules {
            queue: pool.scale_up_queue,
            hit_percent: pool.scale_up_hit_percent,
            window: Duration::from_secs(pool.hit_window_seconds),
            idle: pool.scale_down_idle,
            idle_for: Duration::from_secs(pool.scale_down_idle_seconds),
        },
        low_water_percent: pool.refill_low_water_percent,
        health_interval: Duration::from_secs(pool.health_interval_seconds),
        concurrent_creations: pool.concurrent_creations,
    }
}

pub(super) fn image_settings(config: &Config) -> Result<ImageSettings, DaemonError> {
    let run = &config.image_run;
    let egress = Policy::new(&run.egress, config.egress.resolve.clone(), config.egress.allow_private.clone())
        .map_err(|source| DaemonError::Policy { provider: "[image_run]".to_owned(), source })?;
    Ok(ImageSettings {
        limits: Limits {
            memory_bytes: run.memory_bytes,
            cpu: run.cpu,
            cpu_burst: Some(run.cpu_burst),
            cpu_period_us: CPU_PERIOD_US,
        },
        pids: run.pids_max,
        egress: Arc::new(egress),
        timeout: Duration::from_secs(run.timeout_seconds),
    })
}

pub(super) fn limits(class: &ResourceClass) -> Limits {
    let cpu_period_us = class.cpu_period.as_micros() as u64;
    Limits { memory_bytes: class.memory_bytes, cpu: class.cpu, cpu_burst: class.cpu_burst, cpu_period_us }
}

/// In the words of the control groups.
pub(super) fn reclaim(mode: config::ReclaimMode) -> Reclaim {
    match mode {
        config::ReclaimMode::Off => Reclaim::Nothing,
        config::ReclaimMode::Cache => Reclaim::Cache,
        config::ReclaimMode::Swap => Reclaim::Swap,
    }
}

/// What all proxies may use together.
pub(super) fn egress_total(config: &Config) -> egress::Total {
    let total = &config.egress.total;
    egress::Total::new(total.connects_per_second, total.cpu_percent)
}

/// Where the database is; also for those who use it without a daemon.
pub fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        url: config.store.url.clone(),
        file: config.paths.state_dir.join("store.db"),
        connections: config.store.connections,
        timeout: Duration::from_millis(config.store.timeout_ms),
    }
}

pub(super) fn vault_settings(config: &Config) -> vault::Settings {
    let vault = &config.vault;
    vault::Settings { max_credential_bytes: vault.max_credential_bytes, cache_bytes: vault.cache_bytes }
}

/// Where the master key of the vault comes from; none when there is to be no vault.
pub(super) fn key_source(config: &Config) -> Option<vault::KeySource> {
    let vault = &config.vault;
    let timeout = Duration::from_secs(vault.key_command_timeout_seconds);
    vault::KeySource::find(vault.key_file.as_deref(), &vault.key_command, timeout, &config.paths.state_dir)
}
