//! Hardly any memory left on the host. Only in the bed, whose memory nobody else needs.

use std::fs;
use std::path::PathBuf;

use thaw_client::client::ClientError;

use crate::Counting;
use crate::support::{Daemon, eventually, in_bed, shell};

/// What the kernel says is available, MiB.
fn available() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<u64>().unwrap() >> 10
}

/// Memory that is used up until this is dropped: a file on a file system in memory.
struct Used(PathBuf);

impl Used {
    fn mib(mib: u64) -> Self {
        let path = PathBuf::from("/dev/shm/thawd-test-memory");
        fs::write(&path, vec![1; (mib << 20) as usize]).unwrap();
        Self(path)
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[tokio::test]
async fn with_little_memory_left_nothing_is_created_and_what_runs_and_waits_stays() {
    if !in_bed() {
        eprintln!("not run: it would use up the memory of this machine");
        return;
    }
    let reserve = available() - 300;
    let daemon = Daemon::start(|setup| {
        setup.pool(2).set("admission.min_available_bytes", (reserve << 20) as i64).set("queue.timeout_ms", 0)
    })
    .await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 300).await;
    daemon.settled_beside(1).await;
    let used = Used::mib(400);
    // What is warm is paid for and handed out.
    for _ in 0..2 {
        daemon.sh("echo served").await.exited(0);
    }
    let paused = eventually("refilling pauses", || async { daemon.pool().await.paused }).await;
    assert!(paused.contains("of memory available") && paused.contains(&format!("{reserve} MiB")), "{paused}");
    let problem = match daemon.client.create(&shell("true")).await.unwrap_err() {
        ClientError::Problem(problem) => problem,
        other => panic!("{other}"),
    };
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (503, "host_pressure", true));
    assert!(problem.detail.contains("admission.min_available_bytes"), "{}", problem.detail);
    // One that waits is served as soon as there is memory again.
    let mut patient = shell("echo at last");
    patient.queue_timeout_ms = Some(60_000);
    let (outcome, ()) = tokio::join!(daemon.run(&patient), async {
        eventually("it waits", || async { (daemon.pool().await.queued == 1).then_some(()) }).await;
        drop(used);
    });
    assert_eq!(outcome.exited(0).text(), "at last\n");
    counting.assert_complete(&daemon).await;
    daemon.settled().await;
    daemon.stop().await;
}
