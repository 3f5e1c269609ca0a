//! What executions have used between two looks.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use thaw_client::types::{Container, Usage};

/// The containers at one moment.
#[derive(Debug)]
pub struct Look {
    pub at: Instant,
    /// The same, Unix milliseconds.
    pub at_ms: u64,
    pub containers: Vec<Container>,
}

/// One execution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub execution: String,
    pub container: String,
    pub provider: String,
    pub user: String,
    /// When it got its container, Unix milliseconds.
    pub since_ms: u64,
    /// CPU time since the last look, of one CPU; since it got its container when there was none.
    pub cpu_percent: f64,
    pub cpu_limit_percent: f64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub memory_percent: f64,
    /// Share of its scheduling periods in which it was throttled.
    pub throttled_percent: f64,
    /// Since it got its container.
    pub oom_kills: u64,
}

impl Look {
    /// One row for each execution that has a container, the busiest first.
    pub fn since(&self, last: Option<&Self>) -> Vec<Row> {
        let before: HashMap<&str, &Usage> = last
            .iter()
            .flat_map(|look| &look.containers)
            .filter_map(|container| Some((container.execution.as_deref()?, container.usage.as_ref()?)))
            .collect();
        let mut rows: Vec<Row> = self
            .containers
            .iter()
            .filter_map(|container| {
                let (execution, usage) = (container.execution.clone()?, container.usage.as_ref()?);
                let since_ms = container.claimed_at_ms.unwrap_or(container.created_at_ms);
                let before = before.get(execution.as_str()).copied();
                let seconds = match last.filter(|_| before.is_some()) {
                    Some(last) => self.at.duration_since(last.at).as_secs_f64(),
                    None => self.at_ms.saturating_sub(since_ms) as f64 / 1e3,
                };
                let used = |of: fn(&Usage) -> u64| of(usage).saturating_sub(before.map_or(0, of)) as f64;
                Some(Row {
                    execution,
                    container: container.id.clone(),
                    provider: container.provider.clone(),
                    user: container.user.clone().unwrap_or_default(),
                    since_ms,
                    cpu_percent: percent(used(|usage| usage.cpu_us) / 1e6, seconds),
                    cpu_limit_percent: usage.cpu_limit * 100.0,
                    memory_bytes: usage.memory_bytes,
                    memory_limit_bytes: usage.memory_limit_bytes,
                    memory_percent: percent(usage.memory_bytes as f64, usage.memory_limit_bytes as f64),
                    throttled_percent: percent(used(|usage| usage.throttled_periods), used(|usage| usage.periods)),
                    oom_kills: usage.oom_kills,
                })
            })
            .collect();
        rows.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent).then_with(|| a.execution.cmp(&b.execution)));
        rows
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part * 100.0 / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use thaw_client::types::{ContainerState, Stage};

    fn container(execution: Option<&str>, cpu_us: u64, periods: u64, throttled_periods: u64) -> Container {
        Container {
            id: format!("c-{}", execution.unwrap_or("warm")),
            provider: "p".to_owned(),
            stage: Stage::Created,
            state: if execution.is_some() { ContainerState::Claimed } else { ContainerState::Warm },
            sandbox: None,
            login: None,
            execution: execution.map(str::to_owned),
            user: execution.map(|_| "u".to_owned()),
            claimed_at_ms: execution.map(|_| 4_000),
            usage: execution.map(|_| Usage {
                cpu_us,
                cpu_limit: 0.5,
                memory_bytes: 128,
                memory_peak_bytes: 128,
                memory_limit_bytes: 512,
                periods,
                throttled_periods,
                throttled_us: 0,
                oom_kills: 0,
                network_out_bytes: 0,
                network_in_bytes: 0,
            }),
            pid: None,
            created_at_ms: 1_000,
            memory_bytes: 128,
            cpu_ms: 0,
            frozen: false,
            cgroup: String::new(),
        }
    }

    #[test]
    fn use_is_counted_from_the_last_look_and_for_new_ones_from_the_claim() {
        let at = Instant::now();
        let first = Look { at, at_ms: 8_000, containers: vec![container(Some("old"), 9_000_000, 100, 100)] };
        let second = Look {
            at: at + Duration::from_secs(2),
            at_ms: 10_000,
            containers: vec![
                container(Some("new"), 600_000, 0, 0),
                container(Some("old"), 10_000_000, 120, 105),
                container(None, 50_000_000, 0, 0),
            ],
        };
        let rows = second.since(Some(&first));
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!((rows[0].execution.as_str(), rows[0].cpu_percent, rows[0].throttled_percent), ("old", 50.0, 25.0));
        assert_eq!((rows[1].execution.as_str(), rows[1].cpu_percent, rows[1].throttled_percent), ("new", 10.0, 0.0));
        assert_eq!((rows[0].cpu_limit_percent, rows[0].memory_percent), (50.0, 25.0));
    }
}
