//! Metrics of the daemon's own process and of the host's memory.
//!
//! Not named `process_*` as elsewhere: rules are to match this daemon, not everything that is scraped.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

/// Read off at each scrape.
#[derive(Debug, Default)]
pub struct Process {
    started: Gauge<f64, AtomicU64>,
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    host_memory: Gauge,
    host_available: Gauge,
}

impl Process {
    /// Registers the metrics, and takes now for the start.
    pub fn register(&self, registry: &mut Registry) {
        self.started.set(crate::telemetry::unix_ms() as f64 / 1e3);
        registry.register(
            "thawd_process_start_time_seconds",
            "When the daemon was started, seconds since 1970",
            self.started.clone(),
        );
        registry.register("thawd_process_cpu_seconds", "CPU time that the daemon has used", self.cpu.clone());
        registry.register("thawd_process_resident_memory_bytes", "Memory of the daemon", self.resident.clone());
        registry.register("thawd_process_open_fds", "File descriptors that the daemon has", self.open_files.clone());
        registry.register(
            "thawd_process_max_fds",
            "File descriptors that the daemon may have; 0 when there is no limit",
            self.max_files.clone(),
        );
        registry.register("thawd_host_memory_bytes", "Memory of the host", self.host_memory.clone());
        registry.register(
            "thawd_host_memory_available_bytes",
            "Memory of the host that can be had without swapping (MemAvailable)",
            self.host_available.clone(),
        );
    }

    /// Reads them. What cannot be read keeps its last value.
    pub fn set(&self) {
        if let Some(ticks) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| cpu_ticks(&text)) {
            let used = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            self.cpu.inc_by((used - self.cpu.get()).max(0.0));
        }
        if let Some(pages) = fs::read_to_string("/proc/self/statm").ok().and_then(|text| second_number(&text)) {
            self.resident.set(pages * rustix::param::page_size() as i64);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is that of the listing.
            self.open_files.set(entries.count() as i64 - 1);
        }
        self.max_files.set(getrlimit(Resource::Nofile).current.unwrap_or(0) as i64);
        if let Ok(text) = fs::read_to_string("/proc/meminfo") {
            for (gauge, key) in [(&self.host_memory, "MemTotal:"), (&self.host_available, "MemAvailable:")] {
                if let Some(bytes) = kib(&text, key) {
                    gauge.set(bytes);
                }
            }
        }
    }
}

/// Fields 14 and 15, user and system time (proc_pid_stat(5)); the second, a name in parentheses, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn second_number(statm: &str) -> Option<i64> {
    statm.split(' ').nth(1)?.parse().ok()
}

/// Bytes of a line of `/proc/meminfo`.
fn kib(meminfo: &str, key: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<i64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_found_here() {
        let process = Process::default();
        process.register(&mut Registry::default());
        process.set();
        assert!(process.started.get() > 1.7e9);
        assert!(process.resident.get() > 1 << 20 && process.open_files.get() > 2);
        assert!(process.host_available.get() > 0 && process.host_memory.get() > process.host_available.get());
        assert_eq!(cpu_ticks("1 (a) b) S 1 2 3 4 5 6 7 8 9 10 70 5 0 0"), Some(75));
        let before = process.cpu.get();
        process.set();
        assert!(process.cpu.get() >= before);
    }
}
