//! Whoever reads the daemon's log may stop doing so: nothing waits for that.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{Daemon, PATIENCE, shell};
use thaw_client::types::ExitReason;

/// Makes the daemon log more than the pipe and its own queue hold.
async fn make_it_log(daemon: &Daemon) -> u64 {
    let begun = Instant::now();
    loop {
        for _ in 0..50 {
            assert_eq!(daemon.http("GET /v1/executions/e-none", &[], b"").await.status, 404);
        }
        daemon.sh("true").await.exited(0);
        let metrics = daemon.client.metrics().await.unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("thawd_log_lines_dropped_total ")).unwrap();
        let dropped: u64 = line.parse().unwrap();
        if dropped > 0 {
            return dropped;
        }
        assert!(begun.elapsed() < 4 * PATIENCE, "it logs too little");
    }
}

#[tokio::test]
async fn a_standard_error_that_nobody_reads_holds_up_nothing() {
    let change = |setup: support::Setup| setup.pool(2).set("log.filter", "trace").set("log.queue_bytes", 64 << 10);
    let mut daemon = Daemon::prepare(change);
    let (mut reader, writer) = std::io::pipe().unwrap();
    daemon.begin(writer, &[]);
    daemon.ready().await;
    make_it_log(&daemon).await;
    // Time limits are enforced.
    let mut request = shell("sleep 1000");
    request.timeout_ms = Some(300);
    daemon.run(&request).await.ended(ExitReason::Timeout);
    // Once somebody reads again, it is said how much is missing.
    let taken = std::thread::spawn(move || {
        let (mut text, mut buffer) = (String::new(), vec![0; 1 << 16]);
        while !text.contains("log lines are missing here") {
            let length = reader.read(&mut buffer).unwrap();
            assert!(length > 0, "the daemon ended");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        reader
    });
    let begun = Instant::now();
    while !taken.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "nothing is said of what is missing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let reader = taken.join().unwrap();
    // Nor does its end wait.
    make_it_log(&daemon).await;
    let family = daemon.family();
    daemon.signal(Signal::TERM);
    let begun = Instant::now();
    assert!(daemon.ended().await.success());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    daemon.assert_nothing_left(&family);
    drop(reader);
}

#[tokio::test]
async fn a_start_that_fails_says_why_or_ends_all_the_same() {
    let mut daemon = Daemon::prepare(|setup| setup.set("paths.layouts_dir", "/nowhere").set("log.filter", "trace"));
    // Full from the beginning.
    let (reader, writer) = std::io::pipe().unwrap();
    let filler = writer.try_clone().unwrap();
    rustix::io::ioctl_fionbio(&filler, true).unwrap();
    while rustix::io::write(&filler, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&filler, false).unwrap();
    std::fs::write(daemon.path("providers/broken.toml"), "this is no manifest").unwrap();
    daemon.begin(writer, &[]);
    assert!(!daemon.ended().await.success());
    drop((reader, filler));
}
