//! Readers at their own pace.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::support::{Daemon, Outcome, eventually, header_end, in_bed, resident_bytes, shell};

#[tokio::test]
async fn a_reader_who_never_reads_holds_up_nobody() {
    let daemon = Daemon::start(|setup| setup.set("execution.output_bytes", 64 << 20)).await;
    let (mebibytes, readers) = if in_bed() { (4, 4) } else { (12, 6) };
    let mut request = shell(&format!("sleep 1; head -c {} /dev/zero | tr '\\0' y", mebibytes << 20));
    request.timeout_ms = Some(120_000);
    let id = daemon.client.create(&request).await.unwrap().id;
    let path = format!("GET /v1/executions/{id}/events");
    // Connected, asked, and then nothing is ever read.
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(daemon.open(&path, &[], b"").await);
    }
    let before = resident_bytes(daemon.pid());
    let mut tasks = Vec::new();
    for _ in 0..readers {
        let stream = daemon.client.events(&id, None).await.unwrap();
        tasks.push(tokio::spawn(Outcome::of(stream)));
    }
    for task in tasks {
        let outcome = task.await.unwrap().exited(0);
        assert_eq!(outcome.stdout.len(), mebibytes << 20);
        assert!(outcome.stdout.iter().all(|byte| *byte == b'y'));
    }
    let grown = resident_bytes(daemon.pid()).saturating_sub(before);
    let bound = (mebibytes << 20) as u64 * 3;
    assert!(grown < bound, "one copy is kept for all readers, not one for each: grew by {grown} bytes");
    drop(stalled);
    daemon.stop().await;
}

#[tokio::test]
async fn the_daemon_stops_although_somebody_never_reads() {
    let daemon = Daemon::start(|setup| setup).await;
    let mut request = shell("head -c 8000000 /dev/zero | tr '\\0' y; sleep 1000");
    request.background = true;
    let id = daemon.client.create(&request).await.unwrap().id;
    let stalled = daemon.open(&format!("GET /v1/executions/{id}/events"), &[], b"").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = std::time::Instant::now();
    daemon.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?} to stop", begun.elapsed());
    drop(stalled);
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats() {
    let daemon = Daemon::start(|setup| setup.set("api.heartbeat_seconds", 1)).await;
    let body = serde_json::to_vec(&shell("sleep 2.5; echo done")).unwrap();
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let mut stream = daemon.open("POST /v1/executions", &headers, &body).await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let end = header_end(&bytes).unwrap();
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("location: /v1/executions/e-"), "{head}");
    let text = String::from_utf8_lossy(&bytes[end..]).into_owned();
    assert!(text.matches(": heartbeat").count() >= 2, "{text}");
    let order = ["event: started", ": heartbeat", "event: stdout", "event: exit"];
    let places: Vec<usize> = order.iter().map(|part| text.find(part).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn many_executions_at_once_do_not_mix() {
    let daemon = Arc::new(Daemon::start(|setup| setup.pool(2).set("container.max", 40)).await);
    let count = if in_bed() { 8 } else { 20 };
    let mut tasks = Vec::new();
    for number in 0..count {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move {
            let outcome = daemon.sh(&format!("for i in 1 2 3 4 5; do echo {number} $i; sleep 0.05; done")).await;
            let expected: String = (1..=5).map(|line| format!("{number} {line}\n")).collect();
            assert_eq!(outcome.exited(0).text(), expected);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    eventually("the pool is full again", || async { (daemon.pool().await.warm == 2).then_some(()) }).await;
    Arc::into_inner(daemon).unwrap().stop().await;
}
