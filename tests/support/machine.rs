//! Processes and mounts, as the kernel tells them.

use std::fs;

/// A process that existed once; its number may be given to another later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    parent: i32,
    /// Clock ticks since boot (proc_pid_stat(5), field 22).
    started: u64,
}

impl Process {
    /// The process with that number now.
    pub fn now(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, so count from its end: state is field 3.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(Self { pid, parent: fields[1].parse().ok()?, started: fields[19].parse().ok()? })
    }

    /// Whether it has this text anywhere in its memory.
    pub fn has_in_memory(&self, text: &str) -> bool {
        use std::os::unix::fs::FileExt;
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let memory = fs::File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|access| access.starts_with('r'))).any(|line| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            let mut bytes = vec![0; (to - from) as usize];
            // What cannot be read is the kernel's ([vvar]).
            memory.read_exact_at(&mut bytes, from).is_ok() && String::from_utf8_lossy(&bytes).contains(text)
        })
    }

    /// Whether it still exists, be it as a zombie.
    pub fn exists(&self) -> bool {
        Self::now(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Whether it runs nothing any more: gone, or a zombie that nobody has reaped yet.
    pub fn is_dead(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        !self.exists() || stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// What it was started as.
    pub fn command_line(&self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    }
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| Process::now(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

/// Processes whose parent is `pid`.
pub fn children(pid: i32) -> Vec<Process> {
    processes().filter(|process| process.parent == pid).collect()
}

/// Processes with `name` in one of their control groups.
pub fn processes_in_cgroup(name: &str) -> Vec<Process> {
    let needle = format!("/{name}");
    let inside = |process: &Process| {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
        cgroups.lines().any(|line| line.ends_with(&needle) || line.contains(&format!("{needle}/")))
    };
    processes().filter(inside).collect()
}

/// Lines of this process's mount table that mention `path`.
pub fn mounts_below(path: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(path)).map(str::to_owned).collect()
}

/// A line of `/proc/PID/status`.
pub fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&status, name)
}

/// The value of `name` in text with lines like `CapEff:\t0000`.
pub fn field(status: &str, name: &str) -> String {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Memory of a process that is in RAM, bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    status_field(pid, "VmRSS").trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// What the open descriptors of a process refer to.
pub fn open_files(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One may be closed while we look.
    entries.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_string_lossy().into_owned())).collect()
}
