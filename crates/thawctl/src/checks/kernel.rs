//! What thawd needs of the kernel.

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsopen};

use super::{Check, Host, Status};

/// First kernel with `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst).
const KERNEL_MIN: (u32, u32) = (5, 14);
/// First kernel with idmapped mounts (mount_setattr(2)).
const KERNEL_IDMAP: (u32, u32) = (5, 12);
/// First kernel with idmapped mounts as layers of an overlay (Documentation/filesystems/overlayfs.rst).
const KERNEL_OVERLAY_IDMAP: (u32, u32) = (5, 19);
/// What the daemon and the processes that it makes need, and their numbers in the mask of `/proc/self/status`
/// (linux/capability.h): the same as in thawd.service.
const CAPABILITIES: [(&str, u32); 16] = [
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("DAC_READ_SEARCH", 2),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("NET_ADMIN", 12),
    ("SYS_CHROOT", 18),
    ("SYS_PTRACE", 19),
    ("SYS_ADMIN", 21),
    ("SYS_RESOURCE", 24),
    ("MKNOD", 27),
    ("SETFCAP", 31),
];
/// Fewest namespaces of a kind: two pools of 10, as many executions, and those that are being destroyed, with reserve.
const NAMESPACES_MIN: u64 = 100;
/// Fewest threads of the whole machine for as many containers with a few dozen threads each.
const THREADS_MIN: u64 = 10_000;
/// Kinds of namespaces that each container has of its own, as named below `/proc/sys/user`.
const NAMESPACES: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];

pub(super) fn checks(host: &Host, release: &str) -> Vec<Check> {
    vec![
        root(host),
        version(release),
        idmap(release),
        namespaces(host),
        seccomp(host),
        openat2(),
        process_descriptors(),
        sealed_memory(host),
        threads(host),
        mount_api(),
        overlay(release),
        noswap(),
        pressure(host),
    ]
}

fn root(host: &Host) -> Check {
    let uid = rustix::process::geteuid().as_raw();
    let capabilities = host.read("/proc/self/status").ok().as_deref().and_then(effective_capabilities);
    let (status, found) = match capabilities {
        _ if uid != 0 => (Status::Fail, format!("uid {uid}")),
        Some(mask) => {
            let missing: Vec<_> = missing_capabilities(mask).collect();
            match missing[..] {
                [] => (Status::Ok, "uid 0 with all capabilities that are needed".to_owned()),
                // Only for limits above the hard ones that it was started with.
                ["SYS_RESOURCE"] => (Status::Warn, "uid 0, but without CAP_SYS_RESOURCE".to_owned()),
                _ => (Status::Fail, format!("uid 0, but without CAP_{}", missing.join(", CAP_"))),
            }
        }
        None => (Status::Warn, "uid 0; /proc/self/status is not readable".to_owned()),
    };
    let fix = "Run thawd, and this check, as root on the host or in a container that keeps root's capabilities.";
    Check::new("root privileges", status, found, fix)
}

fn missing_capabilities(mask: u64) -> impl Iterator<Item = &'static str> {
    CAPABILITIES.into_iter().filter(move |(_, number)| mask & (1 << number) == 0).map(|(name, _)| name)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

pub(super) fn version(release: &str) -> Check {
    let (status, found) = match parse_release(release) {
        Some(version) if version >= KERNEL_MIN => (Status::Ok, release.to_owned()),
        Some(_) => (Status::Fail, release.to_owned()),
        None => (Status::Warn, format!("unknown version {release:?}")),
    };
    Check::new("kernel version", status, found, "Install a kernel of 5.14 or later, which has cgroup.kill.")
}

fn idmap(release: &str) -> Check {
    let (status, found) = match parse_release(release) {
        Some(version) if version >= KERNEL_IDMAP => (Status::Ok, "in the kernel; each file system must support it too"),
        Some(_) => (Status::Warn, "not in this kernel"),
        None => (Status::Warn, "unknown kernel version"),
    };
    let fix = "Install a kernel of 5.12 or later, and keep thawd's store on ext4, xfs or btrfs.";
    Check::new("idmapped mounts", status, found, fix)
}

pub(super) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespaces(host: &Host) -> Check {
    let missing = NAMESPACES.into_iter().filter(|kind| !host.path(&format!("/proc/self/ns/{kind}")).exists());
    let missing: Vec<_> = missing.collect();
    let forbidden = NAMESPACES
        .into_iter()
        .filter(|kind| host.number(&format!("/proc/sys/user/max_{kind}_namespaces")).is_some_and(|max| max == 0));
    let forbidden: Vec<_> = forbidden.collect();
    let few: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|kind| {
            let max = host.number(&format!("/proc/sys/user/max_{kind}_namespaces"));
            max.is_some_and(|max| (1..NAMESPACES_MIN).contains(&max))
        })
        .collect();
    let (status, found) = if !missing.is_empty() {
        (Status::Fail, format!("not in the kernel: {}", missing.join(", ")))
    } else if !forbidden.is_empty() {
        (Status::Fail, format!("forbidden by user.max_*_namespaces = 0: {}", forbidden.join(", ")))
    } else if !few.is_empty() {
        (Status::Warn, format!("fewer than {NAMESPACES_MIN} allowed by user.max_*_namespaces: {}", few.join(", ")))
    } else {
        (Status::Ok, NAMESPACES.join(", "))
    };
    let fix = "Use a kernel with all namespaces, and set the limit with sysctl -w user.max_NAME_namespaces=10000.";
    Check::new("namespaces", status, found, fix)
}

fn seccomp(host: &Host) -> Check {
    let (status, found) = match host.read("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_whitespace().any(|a| a == "kill_process") => (Status::Ok, actions),
        Ok(actions) => (Status::Fail, format!("only {actions}")),
        Err(_) => (Status::Fail, "/proc/sys/kernel/seccomp is missing".to_owned()),
    };
    Check::new("seccomp filters", status, found, "Use a kernel built with CONFIG_SECCOMP_FILTER.")
}

fn openat2() -> Check {
    let opened =
        rustix::fs::openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let (status, found) = match opened {
        Ok(_) => (Status::Ok, "works".to_owned()),
        Err(errno) => (Status::Fail, refusal(errno)),
    };
    let fix = "Use a kernel of 5.6 or later, and allow openat2 where a seccomp profile around thawd forbids it.";
    Check::new("openat2", status, found, fix)
}

/// `clone3` with `CLONE_PIDFD` is what makes containers; a kernel or profile without the one lacks the other too.
fn process_descriptors() -> Check {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    let (status, found) = match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => (Status::Ok, "works".to_owned()),
        Err(errno) => (Status::Fail, refusal(errno)),
    };
    let fix = "Use a kernel of 5.14 or later, and allow pidfd_open and clone3 where a seccomp profile forbids them.";
    Check::new("process descriptors", status, found, fix)
}

/// thaw-init is executed from such memory, so that nothing can change it.
fn sealed_memory(host: &Host) -> Check {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let sealed = memfd_create("thawd-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .and_then(|file| fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SEAL));
    let noexec = host.number("/proc/sys/vm/memfd_noexec").is_some_and(|level| level > 1);
    let (status, found) = match sealed {
        _ if noexec => (Status::Fail, "vm.memfd_noexec = 2 forbids executing it".to_owned()),
        Ok(()) => (Status::Ok, "works".to_owned()),
        Err(errno) => (Status::Fail, refusal(errno)),
    };
    let fix = "Use a kernel built with CONFIG_MEMFD_CREATE, and set vm.memfd_noexec to 0 or 1.";
    Check::new("sealed memory files", status, found, fix)
}

fn threads(host: &Host) -> Check {
    let (status, found) = match host.number("/proc/sys/kernel/threads-max") {
        Some(max) if max >= THREADS_MIN => (Status::Ok, max.to_string()),
        Some(max) => (Status::Warn, max.to_string()),
        None => (Status::Warn, "/proc/sys/kernel/threads-max is not readable".to_owned()),
    };
    Check::new("threads", status, found, "Raise the number with sysctl -w kernel.threads-max=100000.")
}

fn mount_api() -> Check {
    // A file system context without FSCONFIG_CMD_CREATE has no superblock, let alone a mount.
    let (status, found) = match fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => (Status::Ok, "fsopen works".to_owned()),
        Err(Errno::PERM) => (Status::Warn, "cannot tell without root".to_owned()),
        Err(errno) => (Status::Fail, refusal(errno)),
    };
    let fix = "Run this check as root on a kernel of 5.2 or later with tmpfs, where no seccomp profile forbids fsopen.";
    Check::new("mount API", status, found, fix)
}

fn noswap() -> Check {
    let set = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|fs| fsconfig_set_flag(&fs, "noswap"));
    let (status, found) = match set {
        Ok(()) => (Status::Ok, "supported".to_owned()),
        Err(Errno::PERM) => (Status::Warn, "cannot tell without root".to_owned()),
        Err(errno) => (Status::Warn, refusal(errno)),
    };
    let fix = "Use a kernel of 6.3 or later, or turn swap off: credentials in a tmpfs could be written to swap.";
    Check::new("tmpfs noswap", status, found, fix)
}

fn overlay(release: &str) -> Check {
    let known = parse_release(release).is_some_and(|version| version >= KERNEL_OVERLAY_IDMAP);
    let (status, found) = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) if known => (Status::Ok, "in the kernel, also over mapped owners".to_owned()),
        Ok(_) => (Status::Warn, "in the kernel, but not over mapped owners".to_owned()),
        Err(Errno::PERM) => (Status::Warn, "cannot tell without root".to_owned()),
        Err(errno) => (Status::Warn, refusal(errno)),
    };
    let fix = "Use a kernel of 5.19 or later with overlayfs: without it, containers of one image share its inodes, so that \
               file locks and inotify reach from one to another.";
    Check::new("overlayfs", status, found, fix)
}

fn refusal(errno: Errno) -> String {
    format!("refused: {}", std::io::Error::from(errno))
}

fn pressure(host: &Host) -> Check {
    let (status, found) = match host.read("/proc/pressure/memory") {
        Ok(_) => (Status::Ok, "/proc/pressure is readable".to_owned()),
        Err(error) => (Status::Warn, format!("/proc/pressure/memory: {error}")),
    };
    Check::new("pressure stall information", status, found, "Boot with psi=1 on a kernel built with CONFIG_PSI.")
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    #[test]
    fn kernel_versions_are_compared_by_number() {
        assert_eq!(parse_release("6.1.0-27-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.14-rc1"), Some((5, 14)));
        assert_eq!(parse_release("linux"), None);
        assert_eq!(version("5.9.16").status, Status::Fail);
        assert_eq!(version("5.14.0").status, Status::Ok);
        assert_eq!(version("odd").status, Status::Warn);
        assert_eq!(idmap("5.10.0").status, Status::Warn);
    }

    #[test]
    fn each_namespace_must_exist_and_be_allowed() {
        let all: Vec<String> = NAMESPACES.iter().map(|kind| format!("/proc/self/ns/{kind}")).collect();
        let mut files: Vec<(&str, &str)> = all.iter().map(|path| (path.as_str(), "")).collect();
        let (_dir, good) = host(&files);
        assert_eq!(namespaces(&good).status, Status::Ok);
        files.push(("/proc/sys/user/max_user_namespaces", "0\n"));
        let (_dir, forbidden) = host(&files);
        assert!(namespaces(&forbidden).found.ends_with("= 0: user"));
        assert_eq!(namespaces(&forbidden).status, Status::Fail);
        let (_dir, without) = host(&files[1..]);
        assert_eq!(namespaces(&without).found, "not in the kernel: user");
    }

    #[test]
    fn seccomp_must_be_able_to_kill_a_process() {
        let path = "/proc/sys/kernel/seccomp/actions_avail";
        let (_dir, good) = host(&[(path, "kill_process kill_thread errno allow\n")]);
        assert_eq!(seccomp(&good).status, Status::Ok);
        let (_dir, old) = host(&[(path, "kill_thread errno allow\n")]);
        assert_eq!(seccomp(&old).status, Status::Fail);
        let (_dir, none) = host(&[]);
        assert_eq!(seccomp(&none).status, Status::Fail);
    }

    #[test]
    fn capabilities_are_read_from_the_mask() {
        let mask = effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").unwrap();
        assert_eq!(missing_capabilities(mask).count(), 0);
        assert_eq!(missing_capabilities(mask & !(1 << 21) & !1).collect::<Vec<_>>(), ["CHOWN", "SYS_ADMIN"]);
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
