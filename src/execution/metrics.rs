//! Counters and histograms of executions.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::StartError;
use crate::pool::ClaimError;
use crate::types::{ClaimPath, Exit, ExitReason};

/// Bucket bounds of claim times, seconds: from a fast warm claim to a slow cold one.
const CLAIM_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabels {
    provider: String,
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    provider: String,
    reason: &'static str,
}

/// Registered once per daemon.
#[derive(Debug)]
pub struct ExecutionMetrics {
    claims: Family<ClaimLabels, Histogram, fn() -> Histogram>,
    exits: Family<ReasonLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
}

impl ExecutionMetrics {
    /// Registers `thawd_claim_seconds`, `thawd_executions_total` and `thawd_refused_total`.
    pub fn new(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(CLAIM_BUCKETS);
        let metrics =
            Self { claims: Family::new_with_constructor(new), exits: Family::default(), refusals: Family::default() };
        registry.register(
            "thawd_claim_seconds",
            "Time from a request being parsed to its command running, by provider and path (warm, cold)",
            metrics.claims.clone(),
        );
        registry.register("thawd_executions", "Executions that ended, by provider and reason", metrics.exits.clone());
        registry.register(
            "thawd_refused",
            "Requests that got no container, by provider and reason",
            metrics.refusals.clone(),
        );
        metrics
    }

    /// One that did not survive a restart of the daemon.
    pub(super) fn lost(&self, provider: &str) {
        self.exits.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason: "lost" }).inc();
    }

    pub(super) fn claimed(&self, provider: &str, path: ClaimPath, time: Duration) {
        let path = match path {
            ClaimPath::Warm => "warm",
            ClaimPath::Cold => "cold",
        };
        self.claims.get_or_create(&ClaimLabels { provider: provider.to_owned(), path }).observe(time.as_secs_f64());
    }

    pub(super) fn exited(&self, provider: &str, exit: &Exit) {
        let reason = match exit.reason {
            ExitReason::Exited if exit.success => "success",
            ExitReason::Exited => "failure",
            ExitReason::Timeout => "timeout",
            ExitReason::Cancelled => "cancelled",
            ExitReason::Oom => "oom",
            ExitReason::Killed => "killed",
            ExitReason::Lost => "lost",
            ExitReason::Refused => "refused",
        };
        self.exits.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason }).inc();
    }

    pub(super) fn refused(&self, provider: &str, error: &StartError) {
        let reason = match error {
            StartError::Claim(ClaimError::Short(shortage)) => shortage.label(),
            StartError::Claim(ClaimError::QueueFull { .. }) => "queue_full",
            StartError::Claim(ClaimError::QueueTimeout { .. }) => "queue_timeout",
            StartError::UserLimit(_) => "user_limit",
            StartError::Left => "left",
            StartError::Claim(ClaimError::NotReady(_)) => "not_ready",
            StartError::Claim(ClaimError::Create(_)) => "create",
            StartError::Request(_) => "request",
            StartError::Cancelled => "cancelled",
            StartError::Container(_) | StartError::Io(_) => "container",
            StartError::Claim(ClaimError::Stopped) | StartError::Stopped => "stopped",
        };
        self.refusals.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason }).inc();
    }
}
