//! Files that tell a container about the machine: names, processors, memory. They show what the container has, since
//! programs size their heaps and pools by it, and nothing of how busy the host is.
//!
//! The files are small, never change, and are bound over those of the image and of `/proc`; making them takes as long
//! as the mounts do. Not covered: `sysinfo(2)` (busybox's `free`), and programs that ask the processor itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use rustix::thread::CpuSet;

/// `resolv.conf` of a container, where nothing resolves names: look-ups fail at once rather than after 5 s. glibc
/// notices the closed port. musl does not, but with this option sends no query and fails in the same microsecond.
const RESOLV_CONF: &str =
    "# Names are looked up by the proxy, outside (HTTPS_PROXY).\nnameserver 127.0.0.1\noptions timeout:0\n";

/// Properties of the host, read once.
#[derive(Debug)]
pub struct View {
    /// Numbers of the processors that this process may use.
    cpus: Vec<usize>,
    /// Their sections of `/proc/cpuinfo`.
    descriptions: Vec<String>,
    /// Boot time of the host, seconds since 1970: `ps` computes the age of processes from it.
    boot_time: u64,
}

impl View {
    /// Reads the properties. What cannot be read is not shown.
    pub fn read() -> Self {
        let set = rustix::thread::sched_getaffinity(None).ok();
        let cpus = set.map(|set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()).unwrap_or_default();
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let descriptions = text.split("\n\n").filter(|part| part.contains(':')).map(str::to_owned).collect();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot_time = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
        Self { cpus, descriptions, boot_time }
    }

    /// Files for `/etc`: name and content.
    pub fn etc(host_name: &str) -> [(&'static str, String); 3] {
        let hosts = format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{host_name}\n::1\t{host_name}\n"
        );
        [("hosts", hosts), ("hostname", format!("{host_name}\n")), ("resolv.conf", RESOLV_CONF.to_owned())]
    }

    /// Files for `/proc`: name and content. `cpus` is 0 when all are to be seen.
    pub fn proc(&self, memory_bytes: u64, cpus: usize) -> Vec<(&'static str, String)> {
        let mut files = vec![("meminfo", meminfo(memory_bytes))];
        if cpus > 0 && cpus < self.cpus.len() {
            files.push(("stat", self.stat(cpus)));
            let descriptions = &self.descriptions[..cpus.min(self.descriptions.len())];
            let numbered = descriptions.iter().enumerate().map(|(number, text)| numbered(text, number));
            files.push(("cpuinfo", numbered.collect()));
        }
        files
    }

    /// `/proc/stat` with the number of processors and the boot time. All times are 0: those of the host are hidden, and
    /// those of the container are in its control group.
    fn stat(&self, cpus: usize) -> String {
        let mut text = String::from("cpu  0 0 0 0 0 0 0 0 0 0\n");
        for cpu in 0..cpus {
            let _ = writeln!(text, "cpu{cpu} 0 0 0 0 0 0 0 0 0 0");
        }
        let _ =
            write!(text, "intr 0\nctxt 0\nbtime {}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n", self.boot_time);
        text + "softirq 0 0 0 0 0 0 0 0 0 0 0\n"
    }
}

/// A processor's section with another number: containers count processors from 0.
fn numbered(text: &str, number: usize) -> String {
    let mut lines: String = text
        .lines()
        .map(|line| match line.split_once(':') {
            Some((name, _)) if name.trim_end() == "processor" => format!("{name}: {number}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    lines.push('\n');
    lines
}

/// `/proc/meminfo` of a machine with this much memory, all of it free. Only the control group knows what is left.
fn meminfo(bytes: u64) -> String {
    // The fields that free(1), top(1), libuv, the JVM and psutil read (proc_meminfo(5)), in the kernel's order.
    let whole = ["MemTotal", "MemFree", "MemAvailable"];
    let none = [
        "Buffers",
        "Cached",
        "SwapCached",
        "Active",
        "Inactive",
        "Active(anon)",
        "Inactive(anon)",
        "Active(file)",
        "Inactive(file)",
        "Unevictable",
        "Mlocked",
        "SwapTotal",
        "SwapFree",
        "Dirty",
        "Writeback",
        "AnonPages",
        "Mapped",
        "Shmem",
        "KReclaimable",
        "Slab",
        "SReclaimable",
        "SUnreclaim",
        "KernelStack",
        "PageTables",
    ];
    let values: BTreeMap<&str, u64> = whole.into_iter().map(|name| (name, bytes / 1024)).collect();
    let mut text = String::new();
    for name in whole.into_iter().chain(none) {
        let value = values.get(name).copied().unwrap_or(0);
        let _ = writeln!(text, "{:<15} {value:>8} kB", format!("{name}:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{View, meminfo, numbered};

    #[test]
    fn memory_is_told_in_the_form_of_the_kernel() {
        let text = meminfo(512 << 20);
        assert!(text.starts_with("MemTotal:         524288 kB\nMemFree:          524288 kB\n"), "{text}");
        assert!(text.contains("\nSwapTotal:             0 kB\n"), "{text}");
        assert!(text.lines().all(|line| line.ends_with(" kB")), "{text}");
    }

    #[test]
    fn processors_are_counted_from_zero() {
        assert_eq!(numbered("processor\t: 7\nmodel name\t: x", 0), "processor\t: 0\nmodel name\t: x\n\n");
        let descriptions = vec!["processor\t: 4".to_owned(), "processor\t: 5".to_owned(), "processor\t: 6".to_owned()];
        let view = View { cpus: vec![4, 5, 6], descriptions, boot_time: 12 };
        let files = view.proc(1 << 20, 2);
        assert_eq!(files.iter().map(|file| file.0).collect::<Vec<_>>(), ["meminfo", "stat", "cpuinfo"]);
        assert!(files[1].1.contains("\ncpu1 ") && !files[1].1.contains("\ncpu2 "), "{}", files[1].1);
        assert!(files[1].1.contains("\nbtime 12\n"));
        assert_eq!(files[2].1, "processor\t: 0\n\nprocessor\t: 1\n\n");
        // All of them are to be seen: the kernel's own files say so.
        assert_eq!((view.proc(1 << 20, 0).len(), view.proc(1 << 20, 3).len()), (1, 1));
    }

    #[test]
    fn this_machine_can_be_described() {
        let view = View::read();
        assert!(!view.cpus.is_empty() && view.descriptions.len() >= view.cpus.len() && view.boot_time > 0, "{view:?}");
    }
}
