//! Files of the cgroup v2 core, present in both layouts: `cgroup.events`, `cgroup.kill`, `cpu.stat`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;

use super::{CgroupError, Usage, flat_key, read, write};
use crate::kernel::Watched;

/// Longest wait for the kernel to confirm a freeze or an empty cgroup. Both take well under a millisecond unless
/// a task is stuck in uninterruptible sleep.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// `cgroup.events` (Documentation/admin-guide/cgroup-v2.rst, core interface files).
#[derive(Debug, Clone, Copy)]
pub struct Events {
    pub populated: bool,
    pub frozen: bool,
}

pub fn events(cgroup: &Path) -> Result<Events, CgroupError> {
    let content = read(&cgroup.join("cgroup.events"))?;
    Ok(parse_events(&content))
}

fn parse_events(content: &str) -> Events {
    Events { populated: flat_key(content, "populated") == 1, frozen: flat_key(content, "frozen") == 1 }
}

/// Waits until `done` holds; the kernel announces each change of `cgroup.events` with POLLPRI.
pub async fn wait_for(cgroup: &Path, wanted: &'static str, done: impl Fn(Events) -> bool) -> Result<(), CgroupError> {
    if done(events(cgroup)?) {
        return Ok(());
    }
    let path = cgroup.join("cgroup.events");
    let file = File::open(&path).map_err(CgroupError::io("open", &path))?;
    let watched = Watched::new(file.into(), Interest::PRIORITY).map_err(CgroupError::io("watch", &path))?;
    // Reading through the watched descriptor re-arms the notification.
    let confirmed = watched.run(Interest::PRIORITY, |fd| {
        let content = read_from_start(fd)?;
        if done(parse_events(&content)) { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    });
    match tokio::time::timeout(CONFIRM_TIMEOUT, confirmed).await {
        Ok(result) => result.map_err(CgroupError::io("read", &path)),
        Err(_) => Err(not_confirmed(&path, wanted)),
    }
}

/// Blocking form of [`wait_for`] for start-up and shutdown: waits until no process is left.
pub fn wait_empty(cgroup: &Path) -> Result<(), CgroupError> {
    let path = cgroup.join("cgroup.events");
    let file = File::open(&path).map_err(CgroupError::io("open", &path))?;
    let deadline = Instant::now() + CONFIRM_TIMEOUT;
    loop {
        let content = read_from_start(&file).map_err(CgroupError::io("read", &path))?;
        if !parse_events(&content).populated {
            return Ok(());
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Err(not_confirmed(&path, "populated 0"));
        };
        let timeout = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::new(&file, PollFlags::PRI)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(CgroupError::io("poll", &path)(errno.into())),
        }
    }
}

fn not_confirmed(path: &Path, wanted: &'static str) -> CgroupError {
    CgroupError::NotConfirmed { path: path.to_owned(), wanted, waited_ms: CONFIRM_TIMEOUT.as_millis() as u64 }
}

fn read_from_start(file: impl AsFd) -> io::Result<String> {
    let mut buffer = [0; 256];
    let length = rustix::io::pread(file, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Writes `cgroup.kill` (Linux 5.14). A cgroup that is gone, such as with its systemd unit, counts as killed.
pub fn kill(cgroup: &Path) -> Result<(), CgroupError> {
    write(&cgroup.join("cgroup.kill"), "1").or_else(|error| if cgroup.exists() { Err(error) } else { Ok(()) })
}

/// The processes in a cgroup; none if it is gone.
pub fn processes(cgroup: &Path) -> Result<Vec<i32>, CgroupError> {
    match read(&cgroup.join("cgroup.procs")) {
        Ok(content) => Ok(content.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(_) if !cgroup.exists() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Sends a signal to every process in a cgroup but `except`. A number may be another process's by the time it is used: so it
/// is turned into a descriptor first, and looked for once more.
pub fn signal(cgroup: &Path, signal: i32, except: Option<i32>) -> Result<(), CgroupError> {
    let Some(signal) = Signal::from_named_raw(signal) else { return Ok(()) };
    let mut held = Vec::new();
    for number in processes(cgroup)? {
        let Some(pid) = Pid::from_raw(number).filter(|_| Some(number) != except) else { continue };
        // One that has ended needs no signal.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            held.push((number, pidfd));
        }
    }
    let still = processes(cgroup)?;
    for (_, pidfd) in held.iter().filter(|(number, _)| still.contains(number)) {
        let _ = pidfd_send_signal(pidfd, signal);
    }
    Ok(())
}

/// CPU time and throttling; the latter only where the v2 cpu controller is on.
pub fn cpu_usage(cgroup: &Path) -> Result<Usage, CgroupError> {
    let content = read(&cgroup.join("cpu.stat"))?;
    Ok(Usage {
        cpu_us: flat_key(&content, "usage_usec"),
        periods: flat_key(&content, "nr_periods"),
        throttled_periods: flat_key(&content, "nr_throttled"),
        throttled_us: flat_key(&content, "throttled_usec"),
        ..Usage::default()
    })
}

/// Names of the cgroups directly below `directory`.
pub fn children(directory: &Path) -> Result<Vec<String>, CgroupError> {
    let entries = fs::read_dir(directory).map_err(CgroupError::io("list", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CgroupError::io("list", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::parse_events;

    #[test]
    fn events_are_parsed() {
        let events = parse_events("populated 1\nfrozen 0\n");
        assert!(events.populated && !events.frozen);
        let events = parse_events("populated 0\nfrozen 1\n");
        assert!(!events.populated && events.frozen);
    }
}
