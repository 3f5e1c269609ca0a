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

/// Connections of one container whose buffers are full: what makes the host's mark for TCP tell.
const FULL_CONNECTIONS: u64 = 32;
/// Largest window of a connection inside a container, bytes (`net.ipv4.tcp_rmem`; thaw-os, spawner), once for each direction.
const WINDOWS_BYTES: u64 = 2 * 65_536;
/// Unit of `net.ipv4.tcp_mem`, bytes: a page of x86-64.
const PAGE_BYTES: u64 = 4096;

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
    let connections = Share {
        name: "share of TCP's memory",
        setting: "net/ipv4/tcp_mem",
        needed: max * FULL_CONNECTIONS * WINDOWS_BYTES,
        fix: "Raise it with sysctl -w net.ipv4.tcp_mem='PAGES PAGES PAGES' (of 4096 bytes), or lower `container.max`.",
    };
    // Above the second number everybody's windows shrink (tcp(7)).
    let pressure = host.read("/proc/sys/net/ipv4/tcp_mem").ok();
    let pressure = pressure.as_deref().and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    checks.push(judged(&connections, pressure.map(|pages| pages.saturating_mul(PAGE_BYTES))));
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
            ("/proc/sys/net/ipv4/tcp_mem", "5000\t10240\t20000\n"),
        ];
        let (_dir, host) = host(&files);
        let found: Vec<_> = checks(&host, &config).into_iter().map(|check| (check.name, check.status)).collect();
        let status = |name: &str| found.iter().find(|(have, _)| have == name).unwrap().1;
        assert_eq!(status("share of process ids"), Status::Ok, "10 times 256, and 1,000");
        assert_eq!(status("share of threads"), Status::Warn);
        assert_eq!(status("share of terminals"), Status::Ok);
        assert_eq!(status("share of open files"), Status::Ok);
        assert_eq!(status("share of compiled filters"), Status::Ok, "a kernel without that limit");
        assert_eq!(status("share of TCP's memory"), Status::Ok, "10 times 4 MiB");
        config.container.max = 11;
        for (name, said) in [
            ("share of terminals", "480, where containers may come to 528"),
            ("share of TCP's memory", "41943040, where containers may come to 46137344"),
        ] {
            let few = checks(&host, &config).into_iter().find(|check| check.name == name).unwrap();
            assert_eq!((few.status, few.found.as_str()), (Status::Warn, said));
        }
    }
}
