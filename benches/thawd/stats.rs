//! Samples of one contender, and what is said of them.

use std::time::Duration;

use serde_json::{Value, json};

/// Times of one contender, in the order in which they were taken.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Who.
    pub name: String,
    /// Microseconds.
    pub micros: Vec<f64>,
}

impl Series {
    /// Nothing measured yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), micros: Vec::new() }
    }

    /// Adds one time.
    pub fn push(&mut self, time: Duration) {
        self.micros.push(time.as_secs_f64() * 1e6);
    }

    /// Value that a share `q` of the samples does not exceed (nearest rank), microseconds; NaN without samples.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The median, microseconds.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Everything, for the JSON file.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": "us", "n": self.micros.len(), "min": round(self.quantile(0.0)),
            "median": round(self.median()), "p90": round(self.quantile(0.9)), "p99": round(self.quantile(0.99)),
            "max": round(self.quantile(1.0)),
            "samples": self.micros.iter().map(|value| round(*value)).collect::<Vec<_>>(),
        })
    }
}

/// To a tenth: a clock reading is not better than that.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A time in the unit in which it is best read.
pub fn human(micros: f64) -> String {
    match micros {
        value if value.is_nan() => "-".to_owned(),
        value if value < 1e3 => format!("{value:.0} µs"),
        value if value < 1e5 => format!("{:.2} ms", value / 1e3),
        value if value < 1e6 => format!("{:.0} ms", value / 1e3),
        value => format!("{:.2} s", value / 1e6),
    }
}

/// Bytes in the unit in which they are best read.
pub fn human_bytes(bytes: f64) -> String {
    const KIB: f64 = 1024.0;
    match bytes.abs() {
        value if value < 10.0 * KIB => format!("{bytes:.0} B"),
        value if value < KIB * KIB => format!("{:.0} KiB", bytes / KIB),
        value if value < 10.0 * KIB * KIB * KIB => format!("{:.2} MiB", bytes / KIB / KIB),
        _ => format!("{:.2} GiB", bytes / KIB / KIB / KIB),
    }
}
