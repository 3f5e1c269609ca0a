//! On what, and beside what, was measured.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Whether the resource controllers are v1 hierarchies beside a v2 core.
pub fn is_hybrid() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists()
}

/// The v2 core, where `cgroup.freeze` and `cpu.stat` are.
pub fn cgroup_core() -> &'static Path {
    Path::new(if is_hybrid() { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" })
}

/// Host id-free description of the machine.
pub fn describe() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(':').nth(1));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    json!({
        "cpu": model.unwrap_or("unknown").trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_gib": (meminfo("MemTotal") as f64 / (1 << 30) as f64).round(),
        // Numbers only: what follows them is whose build it is.
        "kernel": release.split('-').next().unwrap_or_default(),
        "cgroups": if is_hybrid() { "hybrid (v1 controllers, v2 core)" } else { "v2" },
    })
}

/// A field of /proc/meminfo, bytes.
pub fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: Option<u64> = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) * 1024
}

/// One-minute load average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// Share of all processors that is busy over the next half second, in which this program sleeps.
pub fn busy_share() -> f64 {
    let read = || -> Option<(f64, f64)> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<f64> = text.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
        // user nice system idle iowait irq softirq steal (proc_stat(5)).
        let total: f64 = fields.iter().take(8).sum();
        Some((total, fields.get(3)? + fields.get(4)?))
    };
    let before = read();
    std::thread::sleep(Duration::from_millis(500));
    match (before, read()) {
        (Some((total, idle)), Some((total_now, idle_now))) if total_now > total => {
            1.0 - (idle_now - idle) / (total_now - total)
        }
        _ => f64::NAN,
    }
}

/// Now, as date and time in UTC.
pub fn date() -> String {
    let now = std::process::Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    now.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
