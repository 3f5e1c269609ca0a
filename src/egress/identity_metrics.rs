//! What the identities have done, read off at each scrape.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::identity::Health;
use super::routes::Routes;

/// | metric | type | labels |
/// |---|---|---|
/// | `thawd_egress_identity_up` | gauge | `identity` |
/// | `thawd_egress_identity_users` | gauge | `identity` |
/// | `thawd_egress_identity_connections_total` | counter | `identity`, `result`: `opened`, `failed` (because of the identity) |
#[derive(Debug)]
pub struct IdentityMetrics(pub Arc<Routes>);

impl Collector for IdentityMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut gauge = |name: &str, help: &str, value: fn(&Health, usize) -> i64| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for identity in self.0.identities() {
                let label = [("identity", identity.name())];
                ConstGauge::new(value(&identity.health(), identity.users())).encode(metric.encode_family(&label)?)?;
            }
            Ok::<_, std::fmt::Error>(())
        };
        gauge("thawd_egress_identity_up", "Whether an egress identity can be used (1) or is down (0)", |health, _| {
            i64::from(!health.is_down)
        })?;
        gauge("thawd_egress_identity_users", "Users who have an egress identity", |_, users| {
            i64::try_from(users).unwrap_or(i64::MAX)
        })?;
        let mut metric = encoder.encode_descriptor(
            "thawd_egress_identity_connections",
            "Connections through an egress identity, and those that failed because of it",
            None,
            MetricType::Counter,
        )?;
        for identity in self.0.identities() {
            let health = identity.health();
            for (result, value) in [("opened", health.opened), ("failed", health.failed)] {
                let labels = [("identity", identity.name()), ("result", result)];
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
