//! Limits and memory accounting on pure cgroup v2.

use std::path::{Path, PathBuf};

use super::{
    CgroupError, Controllers, LimitFiles, Limits, Memory, Reclaim, Usage, flat_key, open_for_writing, open_if_writable,
    read, read_number, write,
};

const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];

/// Pure v2: one directory per container.
pub struct V2 {
    root: PathBuf,
    base: PathBuf,
}

impl V2 {
    /// Containers below `base`, which lies below `root`.
    pub fn new(root: &Path, base: &Path) -> Self {
        Self { root: root.to_owned(), base: base.to_owned() }
    }

    pub(super) fn file(&self, id: &str, name: &str) -> PathBuf {
        self.base.join(id).join(name)
    }
}

fn enable(directory: &Path) -> Result<(), CgroupError> {
    let available = read(&directory.join("cgroup.controllers"))?;
    let enabled = read(&directory.join("cgroup.subtree_control"))?;
    for controller in NEEDED {
        let has = |list: &str| list.split_whitespace().any(|name| name == controller);
        if has(&enabled) {
            continue;
        }
        if !has(&available) {
            return Err(CgroupError::MissingController {
                controller,
                place: format!("in {}", directory.display()),
                fix: "delegate it to thawd (systemd: Delegate=yes) or enable it in the parent's \
                      cgroup.subtree_control"
                    .to_owned(),
            });
        }
        write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

impl Controllers for V2 {
    /// Enables the controllers from the root down to the base, so that containers below it can be limited.
    fn prepare_base(&self) -> Result<(), CgroupError> {
        let mut directory = self.root.clone();
        enable(&directory)?;
        for component in self.base.strip_prefix(&self.root).unwrap_or(&self.base).components() {
            directory.push(component);
            enable(&directory)?;
        }
        Ok(())
    }

    fn directories(&self, _id: &str) -> Vec<PathBuf> {
        Vec::new()
    }

    fn limit_memory_and_pids(&self, id: &str, memory_bytes: u64, pids: u32) -> Result<(), CgroupError> {
        self.limit_memory(id, memory_bytes)?;
        let swap = self.file(id, "memory.swap.max");
        if swap.exists() {
            // Credentials live in this memory: none of it may reach a disk. Absent when the host has no swap.
            write(&swap, "0")?;
        }
        write(&self.file(id, "pids.max"), &pids.to_string())
    }

    fn limit_memory(&self, id: &str, memory_bytes: u64) -> Result<(), CgroupError> {
        write(&self.file(id, "memory.max"), &memory_bytes.to_string())
    }

    fn limit_cpu(&self, id: &str, limits: &Limits) -> Result<(), CgroupError> {
        let burst_us = limits.burst_us();
        let burst = self.file(id, "cpu.max.burst");
        // The burst may never exceed the quota, so it goes to 0 before the quota changes.
        write(&burst, "0")?;
        write(&self.file(id, "cpu.max"), &format!("{} {}", limits.quota_us(), limits.cpu_period_us))?;
        if burst_us > 0 { write(&burst, &burst_us.to_string()) } else { Ok(()) }
    }

    fn open_limits(&self, id: &str) -> Result<LimitFiles, CgroupError> {
        Ok(LimitFiles {
            memory: vec![open_for_writing(&self.file(id, "memory.max"))?],
            quota: open_for_writing(&self.file(id, "cpu.max"))?,
            period: None,
            burst: Some(open_for_writing(&self.file(id, "cpu.max.burst"))?),
            peak: open_if_writable(&self.file(id, "memory.peak")),
        })
    }

    fn usage(&self, id: &str, usage: &mut Usage) -> Result<(), CgroupError> {
        usage.memory_bytes = read_number(&self.file(id, "memory.current"))?;
        // memory.peak came with Linux 5.19.
        usage.memory_peak_bytes = read_number(&self.file(id, "memory.peak")).unwrap_or(usage.memory_bytes);
        usage.oom_kills = flat_key(&read(&self.file(id, "memory.events"))?, "oom_kill");
        Ok(())
    }

    fn memory(&self, id: &str) -> Result<Memory, CgroupError> {
        self.memory_of(id)
    }

    fn reclaim(&self, id: &str, what: Reclaim, bytes: u64) -> Result<(), CgroupError> {
        self.reclaim_from(id, what, bytes)
    }
}
