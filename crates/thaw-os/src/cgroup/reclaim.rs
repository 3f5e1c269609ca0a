//! Memory of a frozen container: what is charged to it, and reclaiming what the container does not need.
//!
//! Three kinds of memory can be reclaimed: cached pages of files, which belong to the image and are shared by all of
//! its containers; the kernel's caches about those files; and anonymous memory, if there is swap for it. Nothing is
//! lost: what a process touches again is read again.

use std::fs;
use std::io;
use std::path::Path;

use super::optional::write_if_there;
use super::{Cgroup, CgroupError, Hierarchy, flat_key, hybrid::Hybrid, read, read_number, v2::V2, write};

/// Bytes below which reclaiming is not worth the effort: a container without a CLI in it is charged about 200 KiB.
const WORTHWHILE: u64 = 1 << 20;

/// Kind of memory to reclaim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reclaim {
    /// None.
    #[default]
    Nothing,
    /// Cached pages of files.
    Cache,
    /// Anonymous memory, to the host's swap; cached pages too, where the kernel cannot separate them.
    Swap,
}

/// Memory charged to a cgroup, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Total, without what was swapped out.
    pub bytes: u64,
    /// Anonymous memory of processes.
    pub anonymous_bytes: u64,
    /// Cached pages of files, including files in memory. Pages of an image are charged to the container that touched
    /// them first.
    pub file_bytes: u64,
    /// Memory of the kernel: stacks, page tables, sockets, caches of names.
    pub kernel_bytes: u64,
    /// Memory that was swapped out.
    pub swapped_bytes: u64,
}

impl Memory {
    /// Adds the memory of another cgroup.
    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.anonymous_bytes += other.anonymous_bytes;
        self.file_bytes += other.file_bytes;
        self.kernel_bytes += other.kernel_bytes;
        self.swapped_bytes += other.swapped_bytes;
    }
}

impl Hierarchy {
    /// Memory charged to `cgroup` now.
    ///
    /// # Errors
    /// A control file cannot be read or parsed.
    pub fn memory(&self, cgroup: &Cgroup) -> Result<Memory, CgroupError> {
        self.controllers.memory(&cgroup.id)
    }

    /// Reclaims memory of the frozen `cgroup`; returns how many bytes. Blocks: a millisecond for cached pages, up to
    /// two seconds for 150 MiB of anonymous memory.
    ///
    /// # Errors
    /// A control file cannot be read or written. Reclaiming nothing is no error.
    pub fn reclaim(&self, cgroup: &Cgroup, what: Reclaim) -> Result<u64, CgroupError> {
        let before = self.memory(cgroup)?;
        let worthwhile = match what {
            Reclaim::Nothing => 0,
            Reclaim::Cache => before.file_bytes,
            // Without swap the kernel would take pages of files instead.
            Reclaim::Swap if has_swap(&read(Path::new("/proc/swaps"))?) => before.anonymous_bytes,
            Reclaim::Swap => 0,
        };
        if worthwhile < WORTHWHILE {
            return Ok(0);
        }
        self.controllers.reclaim(&cgroup.id, what, worthwhile)?;
        Ok(before.bytes.saturating_sub(self.memory(cgroup)?.bytes))
    }
}

/// Whether /proc/swaps lists any swap: a headline, then one line for each.
fn has_swap(swaps: &str) -> bool {
    swaps.lines().nth(1).is_some_and(|line| !line.trim().is_empty())
}

impl V2 {
    pub(super) fn memory_of(&self, id: &str) -> Result<Memory, CgroupError> {
        let stat = read(&self.file(id, "memory.stat"))?;
        let swap = self.file(id, "memory.swap.current");
        Ok(Memory {
            bytes: read_number(&self.file(id, "memory.current"))?,
            anonymous_bytes: flat_key(&stat, "anon"),
            file_bytes: flat_key(&stat, "file"),
            // Linux 5.18.
            kernel_bytes: flat_key(&stat, "kernel"),
            // Absent without swap accounting.
            swapped_bytes: if swap.exists() { read_number(&swap)? } else { 0 },
        })
    }

    /// Writes `memory.reclaim` (Linux 5.19). EAGAIN means that the kernel reclaimed less than asked for.
    pub(super) fn reclaim_from(&self, id: &str, what: Reclaim, bytes: u64) -> Result<(), CgroupError> {
        let file = self.file(id, "memory.reclaim");
        let limit = self.file(id, "memory.swap.max");
        let reclaim = |order: &str| match fs::write(&file, order) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        };
        let failed = CgroupError::io("write", &file);
        if what != Reclaim::Swap {
            // Cached pages only: the container may not swap.
            return reclaim(&bytes.to_string()).map_err(failed);
        }
        if !limit.exists() {
            return Ok(());
        }
        write(&limit, "max")?;
        // Anonymous memory alone, since Linux 6.15; before that, anything.
        let result = reclaim(&format!("{bytes} swappiness=max")).or_else(|error| match error.kind() {
            io::ErrorKind::InvalidInput => reclaim(&bytes.to_string()),
            _ => Err(error),
        });
        // Close swap again before the container can hold a secret. Pages already out stay out until they are touched.
        write(&limit, "0")?;
        result.map_err(failed)
    }
}

impl Hybrid {
    pub(super) fn memory_of(&self, id: &str) -> Result<Memory, CgroupError> {
        let directory = self.memory.join(id);
        let stat = read(&directory.join("memory.stat"))?;
        let kernel = directory.join("memory.kmem.usage_in_bytes");
        Ok(Memory {
            bytes: read_number(&directory.join("memory.usage_in_bytes"))?,
            anonymous_bytes: flat_key(&stat, "rss"),
            file_bytes: flat_key(&stat, "cache"),
            // Absent when the kernel does not account for its own.
            kernel_bytes: if kernel.exists() { read_number(&kernel)? } else { 0 },
            swapped_bytes: flat_key(&stat, "swap"),
        })
    }

    /// Writes `memory.force_empty`, which always reclaims everything of both kinds; `memory.swappiness` decides whether
    /// anonymous memory is included.
    pub(super) fn reclaim_from(&self, id: &str, what: Reclaim) -> Result<(), CgroupError> {
        let directory = self.memory.join(id);
        let swappiness = directory.join("memory.swappiness");
        let wanted = if what == Reclaim::Swap { "100" } else { "0" };
        let file = directory.join("memory.force_empty");
        if !write_if_there(&swappiness, wanted) || !file.exists() {
            return Ok(());
        }
        let result = write(&file, "0");
        write(&swappiness, "0")?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::has_swap;

    #[test]
    fn swap_is_what_is_listed() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!has_swap(head) && !has_swap(""));
        assert!(has_swap(&format!("{head}/dev/zram0 partition\t6291452\t\t0\t\t100\n")));
    }
}
