//! The bytes of an execution, without events around them.

use std::time::Duration;

use thaw_client::types::{Execution, ExecutionState};
use tokio::io::AsyncReadExt;

use crate::support::{Daemon, eventually, in_bed, resident_bytes, shell};

const RAW: [(&str, &str); 2] = [("content-type", "application/json"), ("accept", "application/octet-stream")];

/// Every byte value, many times, cut where it pleases the pipe.
const BINARY: &str = r"i=0; while [ $i -lt 256 ]; do printf \\$(printf %o $i); i=$((i+1)); done > /tmp/all
    i=0; while [ $i -lt 500 ]; do cat /tmp/all; i=$((i+1)); done; printf '\342\202'; echo problem >&2";

fn binary() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..500).flat_map(|_| 0..=255).collect();
    bytes.extend_from_slice(b"\xe2\x82");
    bytes
}

#[tokio::test]
async fn output_comes_byte_for_byte_and_from_any_offset() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let body = serde_json::to_vec(&shell(BINARY)).unwrap();
    let answer = daemon.http("POST /v1/executions", &RAW, &body).await;
    assert_eq!((answer.status, answer.header("content-type").as_deref()), (200, Some("application/octet-stream")));
    assert!(answer.body == binary(), "{} bytes", answer.body.len());
    let location = answer.header("location").unwrap();
    let execution: Execution = daemon.client.get(&location).await.unwrap();
    assert!(execution.exit.unwrap().success);

    let get = |rest: &'static str| daemon.http_owned(format!("GET {location}/{rest}"));
    assert!(get("stdout").await.body == binary());
    assert!(get("stdout?offset=70001").await.body == binary()[70001..]);
    assert!(get("stdout?offset=128002").await.body.is_empty(), "the end");
    for beyond in ["stdout?offset=128003", "stdout?offset=18446744073709551615"] {
        let answer = get(beyond).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (416, "offset_beyond_end"), "{beyond}");
    }
    assert_eq!(get("stderr").await.body, b"problem\n");
    for wrong in ["stdout?offset=-1", "stdout?offset=x", "stdout?from=1"] {
        let answer = get(wrong).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (400, "invalid_query"), "{wrong}");
    }
    let answer = daemon.http("GET /v1/executions/e-none/stdout", &[], b"").await;
    assert_eq!(answer.status, 404);
    daemon.stop().await;
}

#[tokio::test]
async fn much_more_than_is_kept_passes_whole_in_bounded_memory() {
    let mebibytes = if in_bed() { 8 } else { 64 };
    let daemon = Daemon::start(|setup| setup.pool(1).set("execution.output_bytes", 1 << 20)).await;
    let before = resident_bytes(daemon.pid());
    let script = format!("sleep 0.3; yes 'a line of some length, again and again' | head -c {}", mebibytes << 20);
    let mut request = shell(&script);
    request.timeout_ms = Some(120_000);
    let id = daemon.client.create(&request).await.unwrap().id;
    // Somebody who asked and never reads must change nothing for the others.
    let stalled = daemon.open(&format!("GET /v1/executions/{id}/stdout"), &[], b"").await;
    let raw = daemon.http_owned(format!("GET /v1/executions/{id}/stdout"));
    let grown = async {
        let mut most = 0;
        loop {
            most = most.max(resident_bytes(daemon.pid()));
            tokio::time::sleep(Duration::from_millis(20)).await;
            if daemon.client.execution(&id).await.unwrap().state == ExecutionState::Exited {
                return most.saturating_sub(before);
            }
        }
    };
    let (answer, grown) = tokio::join!(raw, grown);
    assert_eq!(answer.body.len(), mebibytes << 20);
    assert!(answer.body.chunks_exact(39).all(|line| line == b"a line of some length, again and again\n"));
    assert!(grown < 12 << 20, "the daemon grew by {grown} bytes");
    drop(stalled);
    daemon.stop().await;
}

#[tokio::test]
async fn a_lone_reader_that_stalls_holds_up_a_command_for_a_moment_only_and_misses_what_was_dropped() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("execution.output_bytes", 64 << 10)).await;
    let mut request = shell("head -c 3000000 /dev/zero | tr '\\0' z");
    request.timeout_ms = Some(60_000);
    let body = serde_json::to_vec(&request).unwrap();
    let mut stalled = daemon.open("POST /v1/executions", &RAW, &body).await;
    let ended = || async {
        let execution = daemon.client.executions().await.unwrap().pop()?;
        (execution.state == ExecutionState::Exited).then_some(execution)
    };
    let execution = eventually("the command ends", ended).await;
    assert!(execution.exit.unwrap().success);
    let gone = daemon.http_owned(format!("GET /v1/executions/{}/stdout", execution.id)).await;
    assert_eq!((gone.status, gone.problem().code.as_str()), (410, "output_dropped"));
    // What it has not read was dropped: its stream breaks off instead of going on elsewhere.
    let mut bytes = Vec::new();
    stalled.read_to_end(&mut bytes).await.unwrap();
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    assert!(head.starts_with("HTTP/1.1 200") && !bytes.ends_with(b"0\r\n\r\n"), "it must not look complete: {head}");
    assert!(bytes.len() < 3_000_000);
    daemon.stop().await;
}
