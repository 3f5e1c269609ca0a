//! What the rooms are told, from what the configuration says: seconds become durations, sections become settings.

use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use crate::api;
use crate::container::{self, RefillThrottleSettings};
use crate::egress::{self, Policy};
use crate::execution::ImageSettings;
use crate::pool::{self, AdmissionSettings, SchedulerSettings};
use crate::provider::{Provider, ResourceClass};
use crate::{sandbox, storage, store, vault};
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

/// Where a provider's containers may connect to: what its section of the configuration says instead, or else the host of
/// its `base_url`, or else what its manifest says; and what the section adds.
pub(super) fn provider_egress(provider: &Provider, changes: &config::Provider) -> Vec<String> {
    if let Some(replaced) = &changes.egress_replace {
        return replaced.clone();
    }
    let upstream = changes.base_url.as_deref().and_then(host_and_port);
    let hosts = upstream.map_or_else(|| provider.egress.clone(), |upstream| vec![upstream]);
    let mut allowed = Vec::new();
    for host in hosts.iter().chain(&changes.egress).filter(|host| !host.is_empty()) {
        if !allowed.contains(host) {
            allowed.push(host.clone());
        }
    }
    allowed
}

/// Host and port of a URL, as an allow-list names them.
fn host_and_port(url: &str) -> Option<String> {
    let url: axum::http::Uri = url.parse().ok()?;
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    Some(format!("{}:{port}", url.host()?))
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

pub(super) fn sandbox_settings(config: &Config) -> sandbox::Settings {
    let sandbox = &config.sandbox;
    sandbox::Settings {
        freeze_after: Duration::from_secs(sandbox.freeze_after_seconds),
        max: sandbox.max,
        max_per_user: sandbox.max_per_user,
        retention: Duration::from_secs(sandbox.retention_seconds),
        retained: sandbox.retained,
        file_calls: sandbox.file_calls,
        files: sandbox::FileLimits { bytes: sandbox.file_bytes, entries: sandbox.file_entries },
        queue_timeout: Duration::from_millis(config.queue.timeout_ms),
        storage_bytes: (sandbox.storage_bytes > 0).then_some(sandbox.storage_bytes),
        stop_after: Duration::from_secs(sandbox.stop_after_seconds),
        stop_grace: Duration::from_secs(sandbox.stop_grace_seconds),
    }
}

pub(super) fn storage_settings(config: &Config) -> storage::Settings {
    let storage = &config.storage;
    storage::Settings {
        directory: config.paths.state_dir.join("storage"),
        pool_bytes: storage.pool_bytes,
        reserve_bytes: storage.reserve_bytes,
        default_bytes: storage.default_bytes,
        max_bytes: storage.max_bytes,
        bytes_per_inode: storage.bytes_per_inode,
        patience: Duration::from_secs(storage.detach_timeout_seconds),
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
    vault::Settings {
        max_credential_bytes: vault.max_credential_bytes,
        cache_bytes: vault.cache_bytes,
        audit: vault::Bounds { age: Duration::from_secs(vault.audit_seconds), records: vault.audit_records },
        refresh_ahead: Duration::from_secs(vault.refresh_ahead_seconds),
        refresh_timeout: Duration::from_secs(vault.refresh_timeout_seconds),
    }
}

/// Where the master key of the vault comes from; none when there is to be no vault.
pub(super) fn key_source(config: &Config) -> Option<vault::KeySource> {
    let vault = &config.vault;
    let timeout = Duration::from_secs(vault.key_command_timeout_seconds);
    vault::KeySource::find(vault.key_file.as_deref(), &vault.key_command, timeout, &config.paths.state_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_adds_hosts_or_replaces_them() {
        let manifest = r#"
            name = "p"
            image = "i"
            home = "/home/runtime"
            egress = ["api.maker.test:443", "auth.maker.test:443"]
            [credentials]
            dir = ""
            tmpfs_mib = 1
            [resources.idle]
            memory_mib = 64
            cpu = 0.1
            [resources.run]
            memory_mib = 64
            cpu = 0.1
        "#;
        let provider: Provider = toml::from_str(manifest).unwrap();
        let allowed = |section: &str| provider_egress(&provider, &toml::from_str(section).unwrap());
        assert_eq!(allowed(""), ["api.maker.test:443", "auth.maker.test:443"]);
        assert_eq!(
            allowed("egress = ['a:1', 'auth.maker.test:443']"),
            ["api.maker.test:443", "auth.maker.test:443", "a:1"]
        );
        assert_eq!(allowed("egress_replace = ['a:1']\nbase_url = 'http://b:2'"), ["a:1"]);
        assert_eq!(allowed("egress_replace = []"), [""; 0]);
        for (url, host) in [
            ("http://upstream.test:8901/v1", "upstream.test:8901"),
            ("https://gateway.test", "gateway.test:443"),
            ("http://10.0.0.7", "10.0.0.7:80"),
            ("https://[2001:db8::7]:8443/x", "[2001:db8::7]:8443"),
        ] {
            assert_eq!(allowed(&format!("base_url = '{url}'")), [host], "the maker's hosts are not");
            assert_eq!(
                allowed(&format!("base_url = '{url}'\negress = ['auth.maker.test:443']")),
                [host, "auth.maker.test:443"],
                "unless they are listed"
            );
        }
    }
}
