//! Memory of the kernel: each kind that a command can take is charged to its container, refused, or bounded by number.

use crate::bed::{Bed, host_used, kinds};
use crate::support::in_bed;

/// What has to happen to who takes more and more of a kind.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// The container's memory grows by as much as the host has less.
    Charged,
    /// The host has less by at most twice of what is charged.
    Half,
    /// The host never loses more than so many MiB beside what is charged; so many there are at most, and with that error
    /// the next one is refused.
    Bounded { mib: i64, count: i64, errno: i32 },
    /// Not even the first.
    Refused(i32),
}

use Fate::{Bounded, Charged, Half, Refused};

/// Kinds of `probe.c`. Numbers of 0 are not checked.
const FATES: &[(&str, Fate)] = &[
    ("netlink", Bounded { mib: 32, count: 64, errno: libc::ENOBUFS }),
    ("ping", Bounded { mib: 48, count: 128, errno: libc::ENOBUFS }),
    ("udp", Charged),
    ("tcp_accepted", Charged),
    ("tcp_unaccepted", Bounded { mib: 192, count: 0, errno: libc::ENOBUFS }),
    ("unix_stream", Charged),
    ("unix_datagrams", Charged),
    ("unix_descriptors", Charged),
    ("names_of_sockets", Charged),
    ("pipes", Charged),
    ("epolls", Charged),
    ("eventfds", Charged),
    ("timerfds", Half),
    ("inotify_instances", Bounded { mib: 16, count: 128, errno: libc::EMFILE }),
    ("inotify_watches", Charged),
    ("posix_timers", Bounded { mib: 16, count: 8192, errno: libc::EAGAIN }),
    ("queued_signals", Bounded { mib: 16, count: 8192, errno: libc::EAGAIN }),
    ("posix_messages", Bounded { mib: 16, count: 0, errno: 0 }),
    ("sysv_messages", Charged),
    ("sysv_semaphores", Charged),
    ("sysv_memory", Charged),
    ("byte_locks", Bounded { mib: 16, count: 16_384, errno: libc::ENOLCK }),
    ("open_files", Charged),
    ("terminals", Bounded { mib: 32, count: 48, errno: libc::ENOSPC }),
    ("missing_names", Charged),
    ("small_files", Charged),
    ("attributes_of_files", Charged),
    ("page_tables", Charged),
    ("mappings", Charged),
    ("named_mappings", Charged),
    ("processes", Bounded { mib: 16, count: 0, errno: libc::EAGAIN }),
    ("memory_files", Charged),
    ("process_descriptors", Charged),
    ("locked_memory", Bounded { mib: 16, count: 128, errno: libc::ENOMEM }),
    ("landlock_rules", Charged),
    ("leases", Refused(libc::EPERM)),
    ("directory_marks", Refused(libc::EINVAL)),
    ("socket_filters", Refused(libc::EPERM)),
    ("call_filters", Refused(libc::EINVAL)),
    ("memberships", Refused(libc::EPERM)),
    ("signatures", Refused(libc::EPERM)),
    ("requests_of_aio", Refused(libc::ENOSYS)),
    ("rings", Refused(libc::EPERM)),
    ("keys", Refused(libc::EPERM)),
    ("programs_of_bpf", Refused(libc::EPERM)),
    ("namespaces", Refused(libc::EPERM)),
    ("mounts", Refused(libc::EPERM)),
    ("fault_descriptors", Refused(libc::EPERM)),
];

/// What small differences there are anyway, MiB: per-CPU caches, and what others do meanwhile.
const NOISE_MIB: i64 = 12;

#[tokio::test]
async fn kernel_memory_is_charged_refused_or_bounded() {
    let bed = Bed::start(192).await;
    let known = kinds(&bed, "/probe").await;
    assert_eq!(known, FATES.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "each kind has its fate");
    let mut wrong = Vec::new();
    println!("| kind | count | refused | host lost, MiB | charged, MiB | |\n|---|---|---|---|---|---|");
    for (name, fate) in FATES {
        // On a machine on which others work as well, only numbers say something.
        if !in_bed() && matches!(fate, Charged | Half) {
            continue;
        }
        let before = host_used();
        // Where others take memory as well, they must not be what ends it; and what is bounded comes to its end.
        let mib = if !in_bed() {
            "256"
        } else if *name == "tcp_unaccepted" {
            "320"
        } else {
            "64"
        };
        let seconds = match fate {
            Bounded { count: 1.., .. } => "60",
            Bounded { .. } => "20",
            _ => "4",
        };
        let env = [("PROBE_MIB", mib), ("PROBE_SECONDS", seconds)];
        let running = bed.begin(&["/probe", name], &env).await;
        let line = bed.first_line(&running).await.unwrap_or_else(|| panic!("{name} ended"));
        let figures: Vec<i64> = line.split(' ').skip(1).map(|figure| figure.parse().unwrap()).collect();
        let [count, errno] = figures[..] else { panic!("{line}") };
        let mib = |bytes: i64| (bytes + (1 << 19)) >> 20;
        let (lost, charged) = (mib(host_used() - before), mib(running.cgroup.memory_now() as i64));
        println!("| {name} | {count} | {errno} | {lost} | {charged} | {fate:?} |");
        let unpaid = if in_bed() { lost - charged } else { 0 };
        let fine = match *fate {
            Charged => unpaid <= NOISE_MIB.max(lost / 4),
            Half => unpaid <= NOISE_MIB.max(charged),
            Bounded { mib, count: most, errno: expected } => {
                let at_most = most == 0 || (errno == i64::from(expected) && count <= most && count > most / 2);
                unpaid <= mib + NOISE_MIB && at_most
            }
            Refused(expected) => count == 0 && errno == i64::from(expected),
        };
        if !fine {
            wrong.push(format!("{name}: {count} until {errno}, {lost} MiB lost, {charged} MiB charged, not {fate:?}"));
        }
        bed.end(running).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    bed.stop().await;
}
