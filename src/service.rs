//! Runs the daemon as a systemd service: readiness, status line, watchdog, and reload of the configuration.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::execution::Executions;
use crate::pool::{Bounds, ClaimError, Pool};
use crate::reload;
use crate::systemd;
use crate::telemetry::{DaemonMetrics, LogControl, TelemetryError};
use thaw_client::config::{Config, ConfigError};
use thaw_client::types::{self, Stage};

/// Time between two updates of the line in `systemctl status`.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for the status of one pool. The pool's task usually answers within microseconds.
const POOL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a new configuration was rejected.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be read or is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter is invalid.
    #[error(transparent)]
    Log(#[from] TelemetryError),
}

type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Health check of the API, called from inside the daemon.
pub struct Health(Box<dyn Fn() -> Answer + Send + Sync>);

impl Health {
    /// `ask` must not use anything that clients can use up, such as a connection. Otherwise clients could make the
    /// watchdog kill the daemon.
    pub fn new(ask: impl Fn() -> Answer + Send + Sync + 'static) -> Self {
        Self(Box::new(ask))
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

/// The task that runs beside the API.
#[derive(Debug)]
pub struct Service {
    executions: Arc<Executions>,
    health: Health,
    log: LogControl,
    config: Config,
    metrics: DaemonMetrics,
}

impl Service {
    /// For a daemon that was started with `config`.
    pub fn new(
        executions: Arc<Executions>,
        health: Health,
        log: LogControl,
        config: Config,
        metrics: DaemonMetrics,
    ) -> Self {
        Self { executions, health, log, config, metrics }
    }

    /// Runs until `stop` is cancelled. At each `hangup`, `load` reads the configuration again.
    pub async fn run(
        mut self,
        mut hangup: tokio::signal::unix::Signal,
        load: impl Fn() -> Result<Config, ConfigError>,
        stop: CancellationToken,
    ) {
        let mut last = self.status().await;
        systemd::ready(&last);
        let mut refresh = interval(STATUS_INTERVAL);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let limit = systemd::watchdog();
        // A third of the limit: two signs of life fit into the limit even if each takes as long as it may.
        let pause = limit.map_or(Duration::MAX / 4, |limit| limit / 3);
        let mut watchdog = interval(pause.min(Duration::from_secs(86_400)));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = watchdog.tick(), if limit.is_some() => {
                    match self.look_alive(pause).await {
                        Ok(()) => systemd::alive(),
                        Err(reason) => {
                            self.metrics.watchdog_misses.inc();
                            tracing::error!(%reason, "no sign of life for the watchdog");
                        }
                    }
                }
                _ = refresh.tick() => {
                    let now = self.status().await;
                    if now != last {
                        systemd::status(&now);
                        last = now;
                    }
                }
                _ = hangup.recv() => {
                    systemd::reloading();
                    match load().map_err(ReloadError::from) {
                        Ok(config) => self.reload(config).await,
                        Err(error) => {
                            self.metrics.reload_failures.inc();
                            tracing::error!(%error, "configuration not read again; the old one stays");
                        }
                    }
                    systemd::ready(&last);
                }
            }
        }
        systemd::stopping();
    }

    /// Checks that the daemon works: the API and every pool's task answer within `limit`. The check calls them
    /// directly, since clients can use up connections.
    ///
    /// Only silence counts as a failure. An error is an answer, and restarting would risk what runs.
    async fn look_alive(&self, limit: Duration) -> Result<(), String> {
        let alive = async {
            if let Err(error) = (self.health.0)().await {
                tracing::warn!(%error, "the watchdog's own request failed");
            }
            for pool in self.pools() {
                // An error means that the pool has stopped, which happens only when the daemon ends.
                let _ = pool.status().await;
            }
        };
        timeout(limit, alive).await.map_err(|_| format!("the API or a pool did not answer within {limit:?}"))
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.executions
            .served()
            .values()
            .flat_map(|served| std::iter::once(&served.pool).chain(served.prestarted.iter().map(|(pool, _)| pool)))
    }

    /// The status line: all pools and their sizes.
    async fn status(&self) -> String {
        let mut parts = Vec::new();
        for pool in self.pools() {
            if let Ok(Ok(figures)) = timeout(POOL_TIMEOUT, pool.status()).await {
                parts.push(describe(&figures));
            }
        }
        if parts.is_empty() { "serving, no providers".to_owned() } else { format!("serving; {}", parts.join("; ")) }
    }

    /// Applies the changes that a running daemon can take over; logs which ones need a restart.
    async fn reload(&mut self, new: Config) {
        let changes = reload::changes(&self.config, &new);
        if changes.now.iter().any(|key| key == "log.filter")
            && let Err(error) = self.log.set_filter(&new.log.filter)
        {
            self.metrics.reload_failures.inc();
            tracing::error!(%error, "configuration not read again; the old one stays");
            return;
        }
        if changes.now.iter().any(|key| key.starts_with("execution.") || key.starts_with("queue.")) {
            self.executions.change(&new);
        }
        if let Err(error) = self.set_targets(&new, &changes.now).await {
            tracing::error!(%error, "pool targets not changed");
        }
        if changes.after_restart.is_empty() {
            tracing::info!(changed = changes.now.join(", "), "configuration read again");
        } else {
            tracing::warn!(
                changed = changes.now.join(", "),
                needs_restart = changes.after_restart.join(", "),
                "configuration read again; some of it needs a restart"
            );
        }
        reload::take_over(&mut self.config, &new, &changes);
    }

    async fn set_targets(&self, new: &Config, changed: &[String]) -> Result<(), ClaimError> {
        for (name, served) in self.executions.served() {
            let of_provider = new.provider.get(name);
            let own = format!("provider.{name}.pool_");
            if changed.iter().any(|key| key.starts_with("pool.") || key.starts_with(&own)) {
                let (target, min, max, scaling) = new.pool_bounds(name, served.provider.pool_target);
                served.pool.set(target, Bounds { min, max, scaling }).await?;
            }
            let prefix = format!("provider.{name}.prestarted");
            if let (Some(changes), true) = (of_provider, changed.iter().any(|key| key.starts_with(&prefix))) {
                // The set of pools is the same as at the start: `reload` accepts only changes of their targets.
                for ((pool, _), (_, target)) in served.prestarted.iter().zip(reload::prestarted_pools(changes)) {
                    pool.set(target, Bounds { min: target, max: target, scaling: false }).await?;
                }
            }
        }
        Ok(())
    }
}

fn describe(pool: &types::Pool) -> String {
    let kind = match pool.stage {
        Stage::Created => "warm",
        Stage::Prestarted => "prestarted",
    };
    let mut text = format!("{} {}/{} {kind}", pool.provider, pool.warm, pool.target);
    if let Some(model) = &pool.model {
        text += &format!(" ({model})");
    }
    if pool.claimed > 0 && pool.stage == Stage::Created {
        text += &format!(", {} in use", pool.claimed);
    }
    if pool.last_error.is_some() {
        text += ", cannot be filled";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::describe;
    use thaw_client::types::{Pool, Stage};

    #[test]
    fn a_pool_is_described_in_a_few_words() {
        let mut pool = Pool {
            provider: "openai".to_owned(),
            stage: Stage::Created,
            model: None,
            target: 10,
            min: 5,
            max: 50,
            scaling: true,
            reason: None,
            warm: 8,
            creating: 2,
            claimed: 3,
            queued: 0,
            hits: 0,
            misses: 0,
            paused: None,
            last_error: None,
            memory: Default::default(),
        };
        assert_eq!(describe(&pool), "openai 8/10 warm, 3 in use");
        pool.stage = Stage::Prestarted;
        pool.last_error = Some("x\ny".to_owned());
        assert_eq!(describe(&pool), "openai 8/10 prestarted, cannot be filled");
    }
}
