//! Counters over all containers. One container's own numbers are [`super::Usage`].

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::budget::{Budget, Seconds, Total};

/// The daemon's egress metrics, shared by all proxies.
///
/// | name | type | labels |
/// |---|---|---|
/// | `thawd_egress_connections_total` | counter | `decision`: `allowed`, `not_allowed`, `private_address`, `malformed`, `limited`, `failed` |
/// | `thawd_egress_connections_open` | gauge | |
/// | `thawd_egress_connections_waiting` | gauge | |
/// | `thawd_egress_cpu_seconds_total` | counter | |
/// | `thawd_egress_held_back_seconds_total` | counter | |
/// | `thawd_egress_bytes_total` | counter | `direction`: `out` (to upstreams), `in` (from upstreams) |
///
/// One tunnel or one plain request counts as one connection in the first, since each has its own upstream connection.
#[derive(Debug)]
pub struct EgressMetrics {
    connections: Family<DecisionLabel, Counter>,
    pub(super) open: Gauge,
    pub(super) waiting: Gauge,
    pub(super) bytes_out: Counter,
    pub(super) bytes_in: Counter,
    cpu: Seconds,
    held_back: Seconds,
    total: Arc<Total>,
}

/// How a request ended, as counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Allowed,
    NotAllowed,
    PrivateAddress,
    Malformed,
    Limited,
    Failed,
    NoRoute,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Allowed => "allowed",
            Self::NotAllowed => "not_allowed",
            Self::PrivateAddress => "private_address",
            Self::Malformed => "malformed",
            Self::Limited => "limited",
            Self::Failed => "failed",
            Self::NoRoute => "no_route",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

impl EgressMetrics {
    /// As [`EgressMetrics::limited`], for proxies that together may use whatever there is.
    pub fn new(registry: &mut Registry) -> Self {
        Self::limited(registry, Total::new(0, 0))
    }

    /// Creates the metrics and registers them. The registry must not add a prefix of its own. `total` is what all
    /// proxies that share the metrics may use together.
    pub fn limited(registry: &mut Registry, total: Total) -> Self {
        let connections = Family::<DecisionLabel, Counter>::default();
        use Outcome::{Allowed, Failed, Limited, Malformed, NoRoute, NotAllowed, PrivateAddress};
        for decision in [Allowed, NotAllowed, PrivateAddress, Malformed, Limited, Failed, NoRoute] {
            // A rate misses whatever happens before the first look at a counter.
            drop(connections.get_or_create(&DecisionLabel { decision }));
        }
        registry.register(
            "thawd_egress_connections",
            "Requests to the containers' egress proxies by what became of them",
            connections.clone(),
        );
        let open = Gauge::default();
        registry.register(
            "thawd_egress_connections_open",
            "Connections from containers that the egress proxies hold now",
            open.clone(),
        );
        let waiting = Gauge::default();
        registry.register(
            "thawd_egress_connections_waiting",
            "Connections from containers that wait for a place among those that the egress proxies serve",
            waiting.clone(),
        );
        let (cpu, held_back) = (Seconds::default(), Seconds::default());
        registry.register(
            "thawd_egress_cpu_seconds",
            "CPU time that the daemon has used for the egress of containers",
            cpu.clone(),
        );
        registry.register(
            "thawd_egress_held_back_seconds",
            "Time for which connections waited since their container had used up its CPU time of the daemon",
            held_back.clone(),
        );
        let bytes = Family::<DirectionLabel, Counter>::default();
        registry.register_with_unit(
            "thawd_egress",
            "Bytes exchanged with upstreams, headers and TLS included",
            Unit::Bytes,
            bytes.clone(),
        );
        let direction = |direction| bytes.get_or_create_owned(&DirectionLabel { direction });
        Self {
            connections,
            open,
            waiting,
            bytes_out: direction("out"),
            bytes_in: direction("in"),
            cpu,
            held_back,
            total: Arc::new(total),
        }
    }

    /// What a container with these rates may use.
    pub(super) fn budget(&self, requests_per_second: u32, cpu_percent: u32) -> Budget {
        let (cpu, held_back) = (self.cpu.clone(), self.held_back.clone());
        Budget::new(Arc::clone(&self.total), requests_per_second, cpu_percent, cpu, held_back)
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.connections.get_or_create(&DecisionLabel { decision: outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_stable() {
        let mut registry = Registry::default();
        let metrics = EgressMetrics::new(&mut registry);
        metrics.count(Outcome::Allowed);
        metrics.count(Outcome::PrivateAddress);
        metrics.bytes_out.inc_by(7);
        metrics.open.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "thawd_egress_connections_total{decision=\"allowed\"} 1",
            "thawd_egress_connections_total{decision=\"private_address\"} 1",
            "thawd_egress_connections_open 1",
            "thawd_egress_bytes_total{direction=\"out\"} 7",
            "thawd_egress_bytes_total{direction=\"in\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
