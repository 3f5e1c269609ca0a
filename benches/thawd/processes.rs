//! What processes cost, read from /proc.

use std::fs;
use std::path::{Path, PathBuf};

/// Process ids whose name begins with `name` and whose command line contains `part`.
pub fn find(name: &str, part: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        // The kernel keeps 15 characters of the name.
        read("comm").trim().starts_with(&name[..name.len().min(15)]) && read("cmdline").contains(part)
    })
    .collect()
}

/// Processes in the cgroups directly below `directory`.
pub fn find_in_cgroup(directory: &Path) -> Vec<u32> {
    let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let lists = below.filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok());
    lists.flat_map(|list| list.lines().flat_map(str::parse).collect::<Vec<_>>()).collect()
}

/// Processes whose parent is `parent`.
pub fn children(parent: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    threads
        .flat_map(|thread| {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            text.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()
        })
        .collect()
}

/// Name of a process.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Proportional set size, bytes: pages shared by several processes count in shares.
pub fn pss(pid: u32) -> u64 {
    field(PathBuf::from(format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

/// Largest resident size since it was last reset, bytes.
pub fn peak(pid: u32) -> u64 {
    field(PathBuf::from(format!("/proc/{pid}/status")), "VmHWM:")
}

/// Forgets the peak so far (proc_pid_clear_refs(5)).
pub fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn field(path: PathBuf, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// CPU time that a process has used with all its threads, those that have ended too, microseconds; the kernel counts
/// in ticks of 10 ms (proc_pid_stat(5)).
pub fn cpu_us(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field behind it.
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64
}
