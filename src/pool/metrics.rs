//! Counters and histograms of pools and of the fair queue.
//!
//! Labels are bounded: `provider` is a name of the configuration or `image`; all other values are constants in the
//! code.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::scaling::Decision;
use crate::container::{ContainerError, Template};

/// Bucket bounds of waiting times, seconds: from a lease that is just becoming free to the longest deadlines.
const WAIT_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Bucket bounds of creation times, seconds: from a bare container to one with a prestarted CLI.
const CREATE_BUCKETS: [f64; 12] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WaitLabels {
    provider: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CreateLabels {
    provider: String,
    stage: &'static str,
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    provider: String,
    what: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScalingLabels {
    provider: String,
    direction: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    reason: &'static str,
    what: &'static str,
}

/// Metrics of all pools. Registered once per daemon.
#[derive(Debug)]
pub struct PoolMetrics {
    queued: Family<ProviderLabels, Gauge>,
    waits: Family<WaitLabels, Histogram, fn() -> Histogram>,
    scalings: Family<ScalingLabels, Counter>,
    admission: Family<AdmissionLabels, Counter>,
    creations: Family<CreateLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    broken: Family<ProviderLabels, Counter>,
    adopted: Family<ProviderLabels, Counter>,
}

impl PoolMetrics {
    /// Registers the metrics. The registry must not add a prefix of its own.
    pub fn new(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(WAIT_BUCKETS);
        let metrics = Self {
            queued: Family::default(),
            waits: Family::new_with_constructor(new),
            scalings: Family::default(),
            admission: Family::default(),
            creations: Family::new_with_constructor(|| Histogram::new(CREATE_BUCKETS)),
            failures: Family::default(),
            broken: Family::default(),
            adopted: Family::default(),
        };
        for what in ["claim", "refill"] {
            for reason in ["memory", "memory_pressure", "cpu"] {
                drop(metrics.admission.get_or_create(&AdmissionLabels { reason, what }));
            }
        }
        registry.register(
            "thawd_pool_adopted",
            "Warm containers taken over from an earlier daemon, by provider",
            metrics.adopted.clone(),
        );
        registry.register(
            "thawd_queue_depth",
            "Requests that wait for a container, by provider",
            metrics.queued.clone(),
        );
        registry.register(
            "thawd_queue_wait_seconds",
            "Time that requests waited for a container, by provider and outcome (served, timeout, left)",
            metrics.waits.clone(),
        );
        registry.register(
            "thawd_pool_scalings",
            "Changes of a pool's target, by provider, direction and reason",
            metrics.scalings.clone(),
        );
        registry.register(
            "thawd_admission_refused",
            "Times that the host's memory or CPUs kept a container from being created, by reason and by what it was \
             for (claim, refill; a refill counts once for each time that it begins to be kept back)",
            metrics.admission.clone(),
        );
        registry.register(
            "thawd_create_seconds",
            "Time that it took to create a container, by provider, stage (created, prestarted) and by what it was for: \
             refill ends when it is frozen in its pool, claim when it can take a command",
            metrics.creations.clone(),
        );
        registry.register(
            "thawd_create_failures",
            "Containers that could not be created, by provider, what they were for (claim, refill) and reason",
            metrics.failures.clone(),
        );
        registry.register(
            "thawd_pool_broken",
            "Warm containers that were no longer frozen, or gone, and were replaced, by provider",
            metrics.broken.clone(),
        );
        metrics
    }

    /// Creates the counters of a provider with value 0: a rate misses what happens before the first scrape of a
    /// counter.
    pub(super) fn expect(&self, provider: &str) {
        self.queue(provider, 0);
        for (direction, reason) in [("up", "queue"), ("up", "hit_rate"), ("down", "idle")] {
            drop(self.scalings.get_or_create(&ScalingLabels { provider: provider.to_owned(), direction, reason }));
        }
        drop(self.broken.get_or_create(&ProviderLabels { provider: provider.to_owned() }));
        drop(self.adopted.get_or_create(&ProviderLabels { provider: provider.to_owned() }));
        for what in ["claim", "refill"] {
            for reason in ["cgroup", "spawner", "init", "timeout"] {
                drop(self.failures.get_or_create(&FailureLabels { provider: provider.to_owned(), what, reason }));
            }
        }
    }

    /// Records a creation, with its time if it succeeded.
    pub(super) fn created<T>(
        &self,
        template: &Template,
        what: &'static str,
        time: Duration,
        outcome: &Result<T, ContainerError>,
    ) {
        let provider = template.provider.clone();
        match outcome {
            Ok(_) => {
                let stage = if template.prestarted.is_some() { "prestarted" } else { "created" };
                self.creations.get_or_create(&CreateLabels { provider, stage, what }).observe(time.as_secs_f64());
            }
            Err(error) => {
                self.failures.get_or_create(&FailureLabels { provider, what, reason: error.label() }).inc();
            }
        }
    }

    pub(super) fn broke(&self, provider: &str, count: usize) {
        self.broken.get_or_create(&ProviderLabels { provider: provider.to_owned() }).inc_by(count as u64);
    }

    pub(super) fn adopted(&self, provider: &str, count: u64) {
        self.adopted.get_or_create(&ProviderLabels { provider: provider.to_owned() }).inc_by(count);
    }

    pub(super) fn queue(&self, provider: &str, waiting: usize) {
        self.queued.get_or_create(&ProviderLabels { provider: provider.to_owned() }).set(waiting as i64);
    }

    pub(super) fn waited(&self, provider: &str, outcome: &'static str, time: Duration) {
        self.waits.get_or_create(&WaitLabels { provider: provider.to_owned(), outcome }).observe(time.as_secs_f64());
    }

    pub(super) fn scaled(&self, provider: &str, decision: &Decision) {
        let direction = if decision.to > decision.from { "up" } else { "down" };
        let reason = decision.reason.label();
        self.scalings.get_or_create(&ScalingLabels { provider: provider.to_owned(), direction, reason }).inc();
    }

    pub(super) fn refused(&self, reason: &'static str, what: &'static str) {
        self.admission.get_or_create(&AdmissionLabels { reason, what }).inc();
    }
}
