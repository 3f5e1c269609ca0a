//! What thawd needs of the host: memory, numbers of processes and files, and tools for building images.

use std::os::unix::fs::PermissionsExt;

use rustix::process::{Resource, getrlimit};

use super::{Check, Host, Status};

/// Memory limit of one running container, MiB (resource class `run`).
const MEMORY_ONE_MIB: u64 = 512;
/// Memory for a small pool and four running containers, MiB.
const MEMORY_COMFORT_MIB: u64 = 2048;
/// The kernel's default on small machines; 50 containers with their limit of processes fit into it.
const PID_MAX: u64 = 32_768;
/// About a dozen descriptors (control socket, pipes, mounts, proxy) for each of 200 containers, with reserve.
const OPEN_FILES: u64 = 4096;

pub(super) fn checks(host: &Host) -> Vec<Check> {
    let path = std::env::var("PATH").unwrap_or_default();
    vec![
        memory(host),
        pid_max(host),
        open_files(getrlimit(Resource::Nofile).maximum),
        tool(host, &path, "mmdebstrap", "Only for building images: apt-get install mmdebstrap."),
        tool(host, &path, "npm", "Only for building images: apt-get install npm."),
    ]
}

fn memory(host: &Host) -> Check {
    let available = host.read("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:").map(str::to_owned))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    let (status, found) = match available.map(|kib| kib / 1024) {
        Some(mib) if mib < MEMORY_ONE_MIB => (Status::Fail, format!("{mib} MiB available")),
        Some(mib) if mib < MEMORY_COMFORT_MIB => (Status::Warn, format!("{mib} MiB available")),
        Some(mib) => (Status::Ok, format!("{mib} MiB available")),
        None => (Status::Warn, "/proc/meminfo names no available memory".to_owned()),
    };
    let fix = "Free memory or add some: a running container may use 512 MiB, so keep 2 GiB for a small pool.";
    Check::new("free memory", status, found, fix)
}

fn pid_max(host: &Host) -> Check {
    let (status, found) = match host.number("/proc/sys/kernel/pid_max") {
        Some(max) if max >= PID_MAX => (Status::Ok, max.to_string()),
        Some(max) => (Status::Warn, max.to_string()),
        None => (Status::Warn, "/proc/sys/kernel/pid_max is not readable".to_owned()),
    };
    Check::new("process ids", status, found, "Raise the number with sysctl -w kernel.pid_max=4194304.")
}

/// `None` is no limit. Only the hard limit counts: the daemon can raise the soft one by itself.
fn open_files(hard: Option<u64>) -> Check {
    let (status, found) = match hard {
        None => (Status::Ok, "no limit".to_owned()),
        Some(max) if max >= OPEN_FILES => (Status::Ok, format!("up to {max}")),
        Some(max) => (Status::Warn, format!("up to {max}")),
    };
    Check::new("open files", status, found, "Raise the hard limit: LimitNOFILE=65536 in the unit, or ulimit -Hn 65536.")
}

fn tool(host: &Host, path: &str, name: &str, fix: &str) -> Check {
    let is_program = |file: &String| {
        let file = host.path(file).metadata();
        file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{name}")).find(is_program);
    let status = if found.is_some() { Status::Ok } else { Status::Warn };
    Check::new(name, status, found.unwrap_or_else(|| "not on the PATH".to_owned()), fix)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    #[test]
    fn memory_is_judged_by_what_is_available() {
        let with = |kib: &str| host(&[("/proc/meminfo", &format!("MemFree: 9 kB\nMemAvailable:   {kib} kB\n"))]);
        let (_dir, plenty) = with("4194304");
        assert_eq!((memory(&plenty).status, memory(&plenty).found.as_str()), (Status::Ok, "4096 MiB available"));
        let (_dir, little) = with("1048576");
        assert_eq!(memory(&little).status, Status::Warn);
        let (_dir, none) = with("102400");
        assert_eq!(memory(&none).status, Status::Fail);
    }

    #[test]
    fn limits_are_judged_by_number() {
        assert_eq!(open_files(Some(1024)).status, Status::Warn);
        assert_eq!(open_files(None).status, Status::Ok);
        let (_dir, small) = host(&[("/proc/sys/kernel/pid_max", "4096\n")]);
        assert_eq!(pid_max(&small).status, Status::Warn);
    }

    #[test]
    fn a_tool_must_be_an_executable_file_on_the_path() {
        let (_dir, host) = host(&[("/usr/bin/npm", "#!"), ("/bin/npm", "not executable")]);
        let fix = "Install it.";
        assert_eq!(tool(&host, "/bin:/usr/bin", "npm", fix).status, Status::Warn);
        std::fs::set_permissions(host.path("/usr/bin/npm"), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(tool(&host, "/bin:/usr/bin", "npm", fix).found, "/usr/bin/npm");
    }
}
