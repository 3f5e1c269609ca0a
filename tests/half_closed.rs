//! Clients of the API that close their sending half and wait for the answer, and clients that are gone.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use support::{Daemon, PATIENCE, eventually, shell};
use thaw_client::types::{ExecutionState, ExitReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;

const SCRIPT: &str = "sleep 0.3; echo first; sleep 0.2; echo second";

fn request(accept: &str, script: &str) -> String {
    let body = serde_json::to_string(&shell(script)).unwrap();
    let accept = if accept.is_empty() { String::new() } else { format!("accept: {accept}\r\n") };
    format!("POST /v1/executions HTTP/1.1\r\nhost: x\r\n{accept}content-length: {}\r\n\r\n{body}", body.len())
}

/// A connection on which this was sent, and that sends no more.
async fn half_closed(daemon: &Daemon, request: &str) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    stream
}

async fn rest(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Kinds of answers, and what has to be in them.
const KINDS: [(&str, &[&str]); 3] = [
    ("", &["HTTP/1.1 201 ", "\"id\":\"e-"]),
    ("text/event-stream", &["HTTP/1.1 200 ", "first", "second", "event: exit", "0\r\n\r\n"]),
    ("application/octet-stream", &["HTTP/1.1 200 ", "first\n", "second\n", "0\r\n\r\n"]),
];

#[tokio::test]
async fn a_client_that_closes_its_sending_half_gets_its_answer() {
    // A client that counted as gone would have its execution cancelled at once.
    let daemon = Daemon::start(|setup| setup.pool(2).set("execution.disconnect_grace_ms", 0)).await;
    daemon.settled().await;
    for (accept, expected) in KINDS {
        for turn in 0..7 {
            let answer = rest(half_closed(&daemon, &request(accept, SCRIPT)).await).await;
            for part in expected {
                assert!(answer.contains(part), "{turn}, {accept}: {part:?} is missing: {answer}");
            }
        }
    }
    let answer = rest(half_closed(&daemon, "GET /v1/pools HTTP/1.1\r\nhost: x\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("items"), "{answer}");
    // What was cut off is no request.
    let whole = request("", SCRIPT);
    let before = daemon.client.executions().await.unwrap().len();
    let answer = rest(half_closed(&daemon, &whole[..whole.len() - 2]).await).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("incomplete_body"), "{answer}");
    assert_eq!(daemon.client.executions().await.unwrap().len(), before);
    daemon.stop().await;
}

#[tokio::test]
async fn socat_and_nc_get_their_answer() {
    let daemon = Daemon::start(|setup| setup.pool(2).set("execution.disconnect_grace_ms", 0)).await;
    daemon.settled().await;
    let socket = daemon.socket().display().to_string();
    for (accept, expected) in KINDS {
        let file = daemon.path("request");
        std::fs::write(&file, request(accept, SCRIPT)).unwrap();
        for client in [format!("socat -t 20 - UNIX-CONNECT:{socket}"), format!("nc.openbsd -N -U {socket}")] {
            for turn in 0..4 {
                let script = format!("{client} < {}", file.display());
                let output = tokio::time::timeout(PATIENCE, Command::new("sh").args(["-c", &script]).output());
                let output = output.await.expect("it ends").unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                for part in expected {
                    assert!(said.contains(part), "{turn}, {script}: {part:?} is missing: {said}");
                }
            }
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_half_closed_client_that_is_gone_cancels_its_execution() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("execution.disconnect_grace_ms", 300)).await;
    for accept in ["text/event-stream", "application/octet-stream"] {
        daemon.settled().await;
        let mut stream = half_closed(&daemon, &request(accept, "echo begun; sleep 1000")).await;
        let mut begun = Vec::new();
        while !String::from_utf8_lossy(&begun).contains("begun\\n") && !begun.ends_with(b"begun\n\r\n") {
            assert_ne!(stream.read_buf(&mut begun).await.unwrap(), 0, "{}", String::from_utf8_lossy(&begun));
        }
        let executions = daemon.client.executions().await.unwrap();
        let id = executions.into_iter().find(|one| one.state == ExecutionState::Running).unwrap().id;
        // As long as it is there, the grace does not begin.
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(daemon.client.execution(&id).await.unwrap().state, ExecutionState::Running, "{accept}");
        drop(stream);
        let exit = eventually("it is cancelled", || async { daemon.client.execution(&id).await.unwrap().exit }).await;
        assert_eq!(exit.reason, ExitReason::Cancelled, "{accept}");
    }
    daemon.stop().await;
}
