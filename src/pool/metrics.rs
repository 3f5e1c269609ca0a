//! Counters and histograms of pools and of those who wait for them.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::scaling::Decision;

/// Bucket bounds of waiting times, seconds: from a place that is just becoming free to the longest deadlines.
const WAIT_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

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

/// Registered once per daemon.
#[derive(Debug)]
pub struct PoolMetrics {
    queued: Family<ProviderLabels, Gauge>,
    waits: Family<WaitLabels, Histogram, fn() -> Histogram>,
    scalings: Family<ScalingLabels, Counter>,
    admission: Family<AdmissionLabels, Counter>,
    adopted: Family<ProviderLabels, Counter>,
}

impl PoolMetrics {
    /// Registers `thawd_queue_depth`, `thawd_queue_wait_seconds`, `thawd_pool_scalings_total` and
    /// `thawd_admission_refused_total`.
    pub fn new(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(WAIT_BUCKETS);
        let metrics = Self {
            queued: Family::default(),
            waits: Family::new_with_constructor(new),
            scalings: Family::default(),
            admission: Family::default(),
            adopted: Family::default(),
        };
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
        metrics
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
