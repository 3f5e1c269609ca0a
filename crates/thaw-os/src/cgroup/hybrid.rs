//! Limits and memory accounting on a hybrid host: v1 hierarchies for memory, cpu and pids.

use std::path::{Path, PathBuf};

use super::optional::write_if_there;
use super::{
    CgroupError, Controllers, LimitFiles, Limits, Memory, Reclaim, Usage, flat_key, make_directory, open_for_writing,
    open_if_writable, read, read_number, write,
};

/// Limit of TCP and UDP socket buffers of one container, bytes. On v2 they count as part of its memory.
const SOCKET_BYTES: u64 = 64 << 20;

/// One directory per container in each of three v1 hierarchies.
pub struct Hybrid {
    pub(super) memory: PathBuf,
    cpu: PathBuf,
    pids: PathBuf,
}

impl Hybrid {
    /// Containers below `name` in each hierarchy.
    pub fn new(memory: &Path, cpu: &Path, pids: &Path, name: &str) -> Self {
        Self { memory: memory.join(name), cpu: cpu.join(name), pids: pids.join(name) }
    }
}

impl Controllers for Hybrid {
    fn prepare_base(&self) -> Result<(), CgroupError> {
        self.directories("").iter().try_for_each(|directory| make_directory(directory))
    }

    fn directories(&self, id: &str) -> Vec<PathBuf> {
        let mut directories = Vec::with_capacity(3);
        for base in [&self.memory, &self.cpu, &self.pids] {
            let directory = if id.is_empty() { base.clone() } else { base.join(id) };
            // cpu and pids may be co-mounted with another controller: one directory then serves both.
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories
    }

    fn limit_memory_and_pids(&self, id: &str, memory_bytes: u64, pids: u32) -> Result<(), CgroupError> {
        self.limit_memory(id, memory_bytes)?;
        // The limit on memory plus swap, below, keeps the container itself from swapping; this keeps the kernel from
        // swapping its memory when the whole host is short of memory.
        write_if_there(&self.memory.join(id).join("memory.swappiness"), "0");
        // Socket buffers are charged to a group only once a limit for them is set, and to an account of their own.
        write_if_there(&self.memory.join(id).join("memory.kmem.tcp.limit_in_bytes"), &SOCKET_BYTES.to_string());
        write(&self.pids.join(id).join("pids.max"), &pids.to_string())
    }

    fn limit_memory(&self, id: &str, memory_bytes: u64) -> Result<(), CgroupError> {
        let directory = self.memory.join(id);
        let limit = memory_bytes.to_string();
        let memory = directory.join("memory.limit_in_bytes");
        let both = directory.join("memory.memsw.limit_in_bytes");
        if !both.exists() {
            return write(&memory, &limit);
        }
        // Memory plus swap gets the same limit as memory, so the container cannot swap. It must never be the lower of
        // the two: a growing limit is written there first, a shrinking one last.
        if read_number(&both)? < memory_bytes {
            write(&both, &limit)?;
            write(&memory, &limit)
        } else {
            write(&memory, &limit)?;
            write(&both, &limit)
        }
    }

    fn limit_cpu(&self, id: &str, limits: &Limits) -> Result<(), CgroupError> {
        let burst_us = limits.burst_us();
        let directory = self.cpu.join(id);
        let burst = directory.join("cpu.cfs_burst_us");
        // The burst came with Linux 5.14 and may never exceed the quota, so it goes to 0 before the quota changes.
        let has_burst = burst.exists();
        if has_burst {
            write(&burst, "0")?;
        }
        write(&directory.join("cpu.cfs_period_us"), &limits.cpu_period_us.to_string())?;
        write(&directory.join("cpu.cfs_quota_us"), &limits.quota_us().to_string())?;
        if has_burst && burst_us > 0 { write(&burst, &burst_us.to_string()) } else { Ok(()) }
    }

    fn open_limits(&self, id: &str) -> Result<LimitFiles, CgroupError> {
        let (memory, cpu) = (self.memory.join(id), self.cpu.join(id));
        let both = memory.join("memory.memsw.limit_in_bytes");
        let mut files = Vec::with_capacity(2);
        if both.exists() {
            files.push(open_for_writing(&both)?);
        }
        files.push(open_for_writing(&memory.join("memory.limit_in_bytes"))?);
        let burst = cpu.join("cpu.cfs_burst_us");
        Ok(LimitFiles {
            memory: files,
            quota: open_for_writing(&cpu.join("cpu.cfs_quota_us"))?,
            period: Some(open_for_writing(&cpu.join("cpu.cfs_period_us"))?),
            burst: if burst.exists() { Some(open_for_writing(&burst)?) } else { None },
            peak: open_if_writable(&memory.join("memory.max_usage_in_bytes")),
        })
    }

    fn usage(&self, id: &str, usage: &mut Usage) -> Result<(), CgroupError> {
        let directory = self.memory.join(id);
        usage.memory_bytes = read_number(&directory.join("memory.usage_in_bytes"))?;
        usage.memory_peak_bytes = read_number(&directory.join("memory.max_usage_in_bytes"))?;
        usage.oom_kills = flat_key(&read(&directory.join("memory.oom_control"))?, "oom_kill");
        let cpu = read(&self.cpu.join(id).join("cpu.stat"))?;
        usage.periods = flat_key(&cpu, "nr_periods");
        usage.throttled_periods = flat_key(&cpu, "nr_throttled");
        // Nanoseconds, where v2 has microseconds.
        usage.throttled_us = flat_key(&cpu, "throttled_time") / 1000;
        Ok(())
    }

    fn memory(&self, id: &str) -> Result<Memory, CgroupError> {
        self.memory_of(id)
    }

    fn reclaim(&self, id: &str, what: Reclaim, _bytes: u64) -> Result<(), CgroupError> {
        self.reclaim_from(id, what)
    }
}
