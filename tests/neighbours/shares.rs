//! What the kernel counts for each user of the host is each container's own.

use crate::bed::{Bed, Running};
use crate::support::{Daemon, in_bed, shell};

/// How many a program got until it was refused.
async fn got(bed: &Bed, running: &Running) -> i64 {
    let line = bed.first_line(running).await.unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_one_container_uses_up_others_and_root_have_all_the_same() {
    let bed = Bed::start(64).await;
    for (kind, each) in [("inotify_instances", 128), ("posix_timers", 8192), ("queued_signals", 8192)] {
        let first = bed.begin(&["/probe", kind], &[]).await;
        let had = got(&bed, &first).await;
        assert!(had > each / 2 && had <= each, "{kind}: the first one got {had}");
        // While the first one holds on to them.
        let second = bed.begin(&["/probe", kind], &[]).await;
        assert_eq!(got(&bed, &second).await, had, "{kind}: and the second one as many");
        let watching: Vec<_> =
            (0..8).map(|_| rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)).collect();
        assert!(watching.iter().all(Result::is_ok), "{kind}: root of the host has its own: {watching:?}");
        bed.end(first).await;
        bed.end(second).await;
    }
    bed.stop().await;
}

#[tokio::test]
async fn budgets_of_a_container_cannot_be_changed_from_inside() {
    let daemon = Daemon::start(|setup| setup).await;
    let names = ["max_inotify_instances", "max_inotify_watches", "max_user_namespaces"];
    let script = format!(
        "cd /proc/sys/user; cat {}; for f in {0} ../net/core/somaxconn ../net/ipv4/tcp_rmem; do echo 9 2>/dev/null > $f && echo wrote $f; done; true",
        names.join(" ")
    );
    assert_eq!(daemon.sh(&script).await.exited(0).text(), "128\n65536\n0\n");
    daemon.stop().await;
}

#[tokio::test]
async fn a_creation_that_a_limit_of_the_host_stops_names_it() {
    // Only where the host is the test's own.
    if !in_bed() {
        return;
    }
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    daemon.sh("true").await.exited(0);
    let limit = "/proc/sys/user/max_uts_namespaces";
    let before = std::fs::read_to_string(limit).unwrap();
    std::fs::write(limit, "0").unwrap();
    let refused = daemon.client.create(&shell("true")).await.unwrap_err().to_string();
    std::fs::write(limit, before.trim()).unwrap();
    assert!(refused.contains("user.max_uts_namespaces = 0"), "{refused}");
    daemon.sh("true").await.exited(0);
    daemon.stop().await;
}
