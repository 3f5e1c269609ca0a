//! A container's control groups, read from the kernel and not through the daemon.

use std::fs;
use std::path::{Path, PathBuf};

use thaw_client::types::Container;

/// Every mounted cgroup hierarchy: mount point, and its controllers (empty for v2).
pub fn hierarchies() -> Vec<(PathBuf, Vec<String>)> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut found = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[2] {
            "cgroup2" => found.push((PathBuf::from(fields[1]), Vec::new())),
            "cgroup" => found.push((PathBuf::from(fields[1]), fields[3].split(',').map(str::to_owned).collect())),
            _ => {}
        }
    }
    found
}

/// The directories of one container.
#[derive(Debug, Clone)]
pub struct ContainerCgroup {
    core: PathBuf,
    /// v1 directory of a controller, or the v2 one.
    memory: PathBuf,
    cpu: PathBuf,
    pids: PathBuf,
    v2: bool,
}

impl ContainerCgroup {
    /// By what the API says.
    pub fn of(container: &Container) -> Self {
        let mounts = hierarchies();
        let core = mounts.iter().find(|(_, controllers)| controllers.is_empty()).unwrap().0.join(&container.cgroup);
        let v1 = |name: &str| {
            let mount = mounts.iter().find(|(_, controllers)| controllers.iter().any(|have| have == name));
            mount.map(|(path, _)| path.join(&container.cgroup))
        };
        let v2 = v1("memory").is_none();
        let place = |name| v1(name).unwrap_or_else(|| core.clone());
        Self { memory: place("memory"), cpu: place("cpu"), pids: place("pids"), core, v2 }
    }

    /// Whether any of its directories exists.
    pub fn exists(&self) -> bool {
        [&self.core, &self.memory, &self.cpu, &self.pids].iter().any(|path| path.exists())
    }

    fn number(&self, path: &Path, v1: &str, v2: &str) -> u64 {
        let path = path.join(if self.v2 { v2 } else { v1 });
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", path.display()))
    }

    /// Memory limit, bytes.
    pub fn memory_limit(&self) -> u64 {
        self.number(&self.memory, "memory.limit_in_bytes", "memory.max")
    }

    /// Memory charged now, buffers of sockets included, bytes.
    pub fn memory_now(&self) -> u64 {
        let sockets = fs::read_to_string(self.memory.join("memory.kmem.tcp.usage_in_bytes")).unwrap_or_default();
        self.number(&self.memory, "memory.usage_in_bytes", "memory.current") + sockets.trim().parse().unwrap_or(0)
    }

    /// Most processes.
    pub fn pids_limit(&self) -> u64 {
        self.number(&self.pids, "pids.max", "pids.max")
    }

    /// Processes now.
    pub fn pids_now(&self) -> u64 {
        self.number(&self.pids, "pids.current", "pids.current")
    }

    /// How often the limit on processes was hit.
    pub fn pids_refused(&self) -> u64 {
        keyed(&self.pids.join("pids.events"), "max")
    }

    /// CPU quota and period, microseconds.
    pub fn cpu_limit(&self) -> (u64, u64) {
        if !self.v2 {
            let number = |name| self.number(&self.cpu, name, name);
            return (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us"));
        }
        let text = fs::read_to_string(self.cpu.join("cpu.max")).unwrap();
        let (quota, period) = text.trim().split_once(' ').unwrap();
        (quota.parse().unwrap(), period.parse().unwrap())
    }

    /// CPU time that may be saved up, microseconds.
    pub fn cpu_burst(&self) -> u64 {
        self.number(&self.cpu, "cpu.cfs_burst_us", "cpu.max.burst")
    }

    /// Whether its limits keep all of it in memory: no swap (v2), or no more of memory and swap together than of
    /// memory alone (v1). A kernel without swap has neither file.
    pub fn may_swap_nothing(&self) -> bool {
        let read = |name: &str| fs::read_to_string(self.memory.join(name)).ok();
        match self.v2 {
            true => read("memory.swap.max").is_none_or(|limit| limit.trim() == "0"),
            false => {
                let both = read("memory.memsw.limit_in_bytes");
                both.is_none_or(|both| Some(both) == read("memory.limit_in_bytes"))
                    && read("memory.swappiness").is_none_or(|swappiness| swappiness.trim() == "0")
            }
        }
    }

    /// Periods in which it wanted more CPU than it has.
    pub fn throttled(&self) -> u64 {
        keyed(&self.cpu.join("cpu.stat"), "nr_throttled")
    }

    /// CPU time used so far, microseconds.
    pub fn cpu_us(&self) -> u64 {
        keyed(&self.core.join("cpu.stat"), "usage_usec")
    }

    /// Whether the kernel has frozen it, and whether there is a process in it.
    pub fn frozen_and_populated(&self) -> (bool, bool) {
        let events = self.core.join("cgroup.events");
        (keyed(&events, "frozen") == 1, keyed(&events, "populated") == 1)
    }

    /// Numbers of its processes.
    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.core.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// The number behind `key` in a file of lines like `frozen 1`.
fn keyed(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {key} in {}: {text}", path.display())).parse().unwrap()
}
