//! Limits that the whole host has once: are they at least what all containers together may have?

use thaw_client::config::Config;

use super::{Check, Host, Status};

/// Terminals of one container: `max` of its devpts (thaw-os, spawner).
const TERMINALS: u64 = 48;
/// The least that the kernel charges for an open file, bytes (`struct file`).
const OPEN_FILE_BYTES: u64 = 256;
/// Room for the two compiled filters of a container, bytes.
const FILTER_BYTES: u64 = 128 << 10;
/// Processes of the host itself.
const PROCESSES_OF_THE_HOST: u64 = 1000;
/// Inotify instances that a container expects for each user (thaw-os, spawner).
const INOTIFY_INSTANCES: u64 = 128;

/// A limit of the host, and what all containers together may come to.
struct Share {
    name: &'static str,
    setting: &'static str,
    needed: u64,
    fix: &'static str,
}

pub(super) fn checks(host: &Host, config: &Config) -> Vec<Check> {
    let max = config.container.max as u64;
    let processes = max * u64::from(config.image_run.pids_max) + PROCESSES_OF_THE_HOST;
    let shares = [
        Share {
            name: "share of process ids",
            setting: "kernel/pid_max",
            needed: processes,
            fix: "Raise it with sysctl -w kernel.pid_max=4194304, or lower `container.max`.",
        },
        Share {
            name: "share of threads",
            setting: "kernel/threads-max",
            needed: processes,
            fix: "Raise it with sysctl -w kernel.threads-max=1000000, or lower `container.max`.",
        },
        Share {
            name: "share of open files",
            setting: "fs/file-max",
            needed: max * (config.image_run.memory_bytes / OPEN_FILE_BYTES),
            fix: "Raise it as systemd does: sysctl -w fs.file-max=9223372036854775807.",
        },
        Share {
            name: "share of compiled filters",
            setting: "net/core/bpf_jit_limit",
            needed: max * FILTER_BYTES,
            fix: "Raise it with sysctl -w net.core.bpf_jit_limit=528482304, or lower `container.max`.",
        },
        Share {
            name: "inotify instances of each user",
            setting: "user/max_inotify_instances",
            needed: INOTIFY_INSTANCES,
            fix: "Raise it with sysctl -w user.max_inotify_instances=128.",
        },
    ];
    let mut checks: Vec<_> =
        shares.iter().map(|share| judged(share, host.number(&format!("/proc/sys/{}", share.setting)))).collect();
    let terminals = Share {
        name: "share of terminals",
        setting: "kernel/pty/max",
        needed: max * TERMINALS,
        fix: "Raise it with sysctl -w kernel.pty.max=65536, or lower `container.max`.",
    };
    let number = |name: &str| host.number(&format!("/proc/sys/kernel/pty/{name}"));
    // Containers leave the reserve to the host.
    checks.push(judged(&terminals, number("max").map(|max| max.saturating_sub(number("reserve").unwrap_or(0)))));
    checks
}

fn judged(share: &Share, found: Option<u64>) -> Check {
    let Share { name, setting, needed, fix } = share;
    let (status, found) = match found {
        Some(found) if found >= *needed => (Status::Ok, format!("{found}")),
        Some(found) => (Status::Warn, format!("{found}, where containers may come to {needed}")),
        // No such limit in this kernel.
        None => (Status::Ok, format!("no /proc/sys/{setting}")),
    };
    Check::new(name, status, found, fix)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    #[test]
    fn the_host_has_to_have_what_all_containers_may_have_together() {
        let mut config = Config::default();
        config.container.max = 10;
        let files = [
            ("/proc/sys/kernel/pid_max", "3560\n"),
            ("/proc/sys/kernel/threads-max", "3559\n"),
            ("/proc/sys/kernel/pty/max", "1504\n"),
            ("/proc/sys/kernel/pty/reserve", "1024\n"),
            ("/proc/sys/fs/file-max", "9223372036854775807\n"),
        ];
        let (_dir, host) = host(&files);
        let found: Vec<_> = checks(&host, &config).into_iter().map(|check| (check.name, check.status)).collect();
        let status = |name: &str| found.iter().find(|(have, _)| have == name).unwrap().1;
        assert_eq!(status("share of process ids"), Status::Ok, "10 times 256, and 1,000");
        assert_eq!(status("share of threads"), Status::Warn);
        assert_eq!(status("share of terminals"), Status::Ok);
        assert_eq!(status("share of open files"), Status::Ok);
        assert_eq!(status("share of compiled filters"), Status::Ok, "a kernel without that limit");
        config.container.max = 11;
        let few = checks(&host, &config).into_iter().find(|check| check.name == "share of terminals").unwrap();
        assert_eq!((few.status, few.found.as_str()), (Status::Warn, "480, where containers may come to 528"));
    }
}
