//! Counters and histograms of executions.
//!
//! Labels are bounded: `provider` is a name of the configuration or `image`; paths and reasons are constants in the
//! code.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::StartError;
use crate::container::ContainerError;
use crate::pool::ClaimError;
use thaw_client::types::{ClaimPath, Exit, ExitReason};
use thaw_os::cgroup::Usage;

/// Bucket bounds of claim times, seconds: from a fast warm claim to a slow cold one.
const CLAIM_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Bucket bounds of the times to the first byte, seconds: from `echo` in a warm container to a CLI that loads for 14 s.
const FIRST_BYTE_BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Bucket bounds of whole executions, seconds: up to the longest time limit that the configuration has by default.
const DURATION_BUCKETS: [f64; 11] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Reasons of `thawd_executions_total`.
const REASONS: [&str; 7] = ["success", "failure", "timeout", "cancelled", "oom", "killed", "lost"];

/// Reasons of `thawd_refused_total` that alerts use.
const REFUSALS: [&str; 8] =
    ["container", "create", "limit", "memory", "not_ready", "queue_full", "queue_timeout", "user_limit"];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

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

/// State of a container before its claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Prestarted,
    Warm,
    Cold,
}

impl Origin {
    const ALL: [Self; 3] = [Self::Prestarted, Self::Warm, Self::Cold];

    pub fn of(path: ClaimPath, prestarted: bool) -> Self {
        match path {
            _ if prestarted => Self::Prestarted,
            ClaimPath::Warm => Self::Warm,
            ClaimPath::Cold => Self::Cold,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Prestarted => "prestarted",
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// Metrics of all executions. Registered once per daemon.
#[derive(Debug)]
pub struct ExecutionMetrics {
    claims: Family<ClaimLabels, Counter>,
    claim_seconds: Histograms<ClaimLabels>,
    first_byte: Histograms<ClaimLabels>,
    exits: Family<ReasonLabels, Counter>,
    durations: Histograms<ProviderLabels>,
    refusals: Family<ReasonLabels, Counter>,
    cpu: Family<ProviderLabels, Seconds>,
    throttled: Family<ProviderLabels, Seconds>,
    oom_kills: Family<ProviderLabels, Counter>,
}

impl ExecutionMetrics {
    /// Registers the metrics. The registry must not add a prefix of its own.
    pub fn new(registry: &mut Registry) -> Self {
        let claims: fn() -> Histogram = || Histogram::new(CLAIM_BUCKETS);
        let first_bytes: fn() -> Histogram = || Histogram::new(FIRST_BYTE_BUCKETS);
        let durations: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
        let this = Self {
            claims: Family::default(),
            claim_seconds: Family::new_with_constructor(claims),
            first_byte: Family::new_with_constructor(first_bytes),
            exits: Family::default(),
            durations: Family::new_with_constructor(durations),
            refusals: Family::default(),
            cpu: Family::default(),
            throttled: Family::default(),
            oom_kills: Family::default(),
        };
        registry.register(
            "thawd_claims",
            "Executions that got a container, by provider and path (prestarted, warm, cold)",
            this.claims.clone(),
        );
        registry.register(
            "thawd_claim_seconds",
            "Time from a request being parsed to its command running, by provider and path (prestarted, warm, cold)",
            this.claim_seconds.clone(),
        );
        registry.register(
            "thawd_first_byte_seconds",
            "Time from a request being parsed to the first byte on its standard output, by provider and path",
            this.first_byte.clone(),
        );
        registry.register("thawd_executions", "Executions that ended, by provider and reason", this.exits.clone());
        registry.register(
            "thawd_execution_duration_seconds",
            "Time from the command's start to its end, by provider",
            this.durations.clone(),
        );
        registry.register(
            "thawd_refused",
            "Requests that got no container, by provider and reason",
            this.refusals.clone(),
        );
        registry.register(
            "thawd_executions_cpu_seconds",
            "CPU time that ended executions used, by provider",
            this.cpu.clone(),
        );
        registry.register(
            "thawd_executions_throttled_seconds",
            "Time that the CPUs of ended executions were throttled, by provider",
            this.throttled.clone(),
        );
        registry.register(
            "thawd_oom_kills",
            "Processes of ended executions that were killed at the memory limit, by provider",
            this.oom_kills.clone(),
        );
        this
    }

    /// Creates the counters of a provider with value 0: a rate misses what happens before the first scrape of a
    /// counter.
    pub(super) fn expect(&self, provider: &str) {
        for origin in Origin::ALL {
            drop(self.claims.get_or_create(&ClaimLabels { provider: provider.to_owned(), path: origin.label() }));
        }
        for (family, reasons) in [(&self.exits, &REASONS[..]), (&self.refusals, &REFUSALS[..])] {
            for &reason in reasons {
                drop(family.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason }));
            }
        }
        let labels = ProviderLabels { provider: provider.to_owned() };
        drop(self.cpu.get_or_create(&labels));
        drop(self.throttled.get_or_create(&labels));
        drop(self.oom_kills.get_or_create(&labels));
    }

    /// Counts an execution that did not survive a restart of the daemon.
    pub(super) fn lost(&self, provider: &str) {
        self.exits.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason: "lost" }).inc();
    }

    pub(super) fn claimed(&self, provider: &str, origin: Origin, time: Duration) {
        let labels = ClaimLabels { provider: provider.to_owned(), path: origin.label() };
        self.claims.get_or_create(&labels).inc();
        self.claim_seconds.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// Records the time to the first byte of output.
    pub(super) fn spoke(&self, provider: &str, origin: Origin, time: Duration) {
        let labels = ClaimLabels { provider: provider.to_owned(), path: origin.label() };
        self.first_byte.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// Records the end of an execution and its usage.
    pub(super) fn exited(&self, provider: &str, exit: &Exit, used: &Usage) {
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
        let labels = ProviderLabels { provider: provider.to_owned() };
        self.durations.get_or_create(&labels).observe(exit.duration_ms as f64 / 1e3);
        self.cpu.get_or_create(&labels).inc_by(used.cpu_us as f64 / 1e6);
        self.throttled.get_or_create(&labels).inc_by(used.throttled_us as f64 / 1e6);
        self.oom_kills.get_or_create(&labels).inc_by(used.oom_kills);
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
            StartError::KeyReused => "key_reused",
            // The request's own mistake, which only writing the files could find.
            StartError::Container(error @ ContainerError::Credentials(_)) if !error.is_broken() => "credentials",
            StartError::Container(_) | StartError::Io(_) => "container",
            StartError::Vault(_) => "vault",
            StartError::Sandbox(_) => "sandbox",
            StartError::Claim(ClaimError::Stopped) | StartError::Stopped => "stopped",
        };
        self.refusals.get_or_create(&ReasonLabels { provider: provider.to_owned(), reason }).inc();
    }
}
