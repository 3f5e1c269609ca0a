//! Clients that send too much, too slowly or too cleverly, and clients that do not read.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use support::{Answer, Daemon, PATIENCE, eventually, open_files, shell};
use thaw_client::types::{ExecutionState, ExitReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Sends bytes as they are and reads what comes back until the connection ends.
async fn exchange(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
    // It may be refused before it is all written.
    let _ = stream.write_all(bytes).await;
    read_to_end(stream).await
}

async fn read_to_end(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset after the answer is an end, too.
    let _ = read.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

const CREATE: &str = "POST /v1/executions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

fn body() -> String {
    serde_json::to_string(&shell("echo served")).unwrap()
}

#[tokio::test]
async fn more_connections_than_allowed_are_told_so_and_the_daemon_can_still_be_asked_how_it_is() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("api.connections.max", 3)).await;
    daemon.settled().await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(UnixStream::connect(daemon.socket()).await.unwrap());
    }
    let refused: Answer = daemon.http("GET /v1/pools", &[], b"").await;
    let problem = refused.problem();
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (503, "too_many_connections", true));
    assert!(problem.detail.contains("`api.connections.max`"), "{}", problem.detail);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection").as_deref(), Some("close"));
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(daemon.http(&format!("GET {path}"), &[], b"").await.status, 200, "{path}");
    }
    idle.pop();
    eventually("there is a place again", || async {
        (daemon.http("GET /v1/pools", &[], b"").await.status == 200).then_some(())
    })
    .await;
    drop(idle);
    daemon.sh("echo served").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn many_more_connections_than_allowed_wait_and_cost_nothing() {
    let change = |setup: support::Setup| {
        setup.pool(0).set("api.connections.max", 2).set("api.connections.header_timeout_seconds", 1)
    };
    let daemon = Daemon::start(change).await;
    let before = open_files(daemon.pid()).len();
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(UnixStream::connect(daemon.socket()).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let files = open_files(daemon.pid()).len();
    assert!(files <= before + 2 + 16 + 2, "{files} descriptors instead of {before}");
    // Each of them says nothing and is closed after a second, so everybody's turn comes.
    assert_eq!(daemon.http("GET /healthz", &[], b"").await.status, 200);
    drop(idle);
    daemon.stop().await;
}

#[tokio::test]
async fn half_a_head_and_half_a_body_are_waited_for_only_so_long() {
    let change = |setup: support::Setup| {
        let setup = setup.pool(1).set("api.connections.header_timeout_seconds", 1);
        setup.set("api.connections.body_timeout_seconds", 1)
    };
    let daemon = Daemon::start(change).await;
    for head in ["", "POST /v1/exec", CREATE] {
        let begun = Instant::now();
        let answer = exchange(&daemon, head.as_bytes()).await;
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(900) && begun.elapsed() < PATIENCE / 2, "{head:?}");
    }
    // Byte by byte does not help.
    let mut slow = UnixStream::connect(daemon.socket()).await.unwrap();
    let begun = Instant::now();
    for byte in CREATE.repeat(3).bytes() {
        if slow.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let answer = exchange(&daemon, format!("{CREATE}content-length: 100\r\n\r\n{{\"provider\"").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#""code":"body_timeout""#), "{answer}");
    assert!(answer.contains("api.connections.body_timeout_seconds"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_millis(900) && begun.elapsed() < PATIENCE / 2);
    // A client that only takes its time between two requests is served, and an answer may take as long as it likes.
    let mut events = daemon
        .open("POST /v1/executions", &[("accept", "text/event-stream")], shell_body("sleep 3; echo done").as_bytes())
        .await;
    let mut stream = String::new();
    tokio::time::timeout(PATIENCE, events.read_to_string(&mut stream)).await.unwrap().unwrap();
    assert!(stream.contains("done") && stream.contains("event: exit"), "{stream}");
    assert!(daemon.client.executions().await.unwrap().len() == 1, "nothing else was started");
    daemon.stop().await;
}

fn shell_body(script: &str) -> String {
    serde_json::to_string(&shell(script)).unwrap()
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_connection_and_its_execution_its_reader() {
    let change = |setup: support::Setup| {
        let setup = setup.pool(1).set("api.connections.write_stall_seconds", 1);
        // Room enough that the command goes on while nobody reads.
        setup.set("execution.disconnect_grace_ms", 500).set("execution.reader_stall_ms", 100)
    };
    let daemon = Daemon::start(change).await;
    daemon.settled().await;
    let endless = shell_body("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done");
    let stalled = daemon.open("POST /v1/executions", &[("accept", "text/event-stream")], endless.as_bytes()).await;
    let running = eventually("it runs", || async {
        let all = daemon.client.executions().await.unwrap();
        all.into_iter().find(|execution| execution.state == ExecutionState::Running)
    })
    .await;
    let ended = eventually("it is cancelled, as nobody reads it", || async {
        daemon.client.execution(&running.id).await.unwrap().exit
    })
    .await;
    assert_eq!(ended.reason, ExitReason::Cancelled);
    assert!(daemon.log().contains("api.connections.write_stall_seconds"), "the log says why");
    // What it had not taken is gone with the connection.
    let got = read_to_end(stalled).await;
    assert!(got.starts_with("HTTP/1.1 200") && !got.contains("event: exit"));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_waits_for_its_readers_as_long_as_configured() {
    for (stall_ms, at_least) in [(0, Duration::ZERO), (1500, Duration::from_millis(1300))] {
        let change = |setup: support::Setup| {
            setup.pool(1).set("execution.reader_stall_ms", stall_ms).set("execution.output_bytes", 65_536)
        };
        let daemon = Daemon::start(change).await;
        daemon.settled().await;
        let begun = Instant::now();
        // More than the log and the socket's buffers hold, to somebody who does not read.
        let script = shell_body("head -c 3000000 /dev/zero | tr '\\0' x; echo over >&2");
        let stalled = daemon.open("POST /v1/executions", &[("accept", "text/event-stream")], script.as_bytes()).await;
        let ended = eventually("it ends all the same", || async {
            daemon.client.executions().await.unwrap().pop().and_then(|execution| execution.exit)
        })
        .await;
        assert_eq!(ended.code, Some(0));
        let took = begun.elapsed();
        assert!(took >= at_least && took < at_least + PATIENCE / 4, "{stall_ms} ms: {took:?}");
        drop(stalled);
        daemon.stop().await;
    }
}

#[tokio::test]
async fn the_length_of_a_body_is_understood_in_one_way_only() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let body = body();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    let close = "connection: close\r\n";
    // Both: chunks count (RFC 9112, section 6.3), so that what the other would cut off is no second request.
    for both in [
        format!("{CREATE}{close}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"),
        format!("{CREATE}{close}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{chunked}"),
    ] {
        let answer = exchange(&daemon, both.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 201 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "one request: {answer}");
    }
    let started = daemon.client.executions().await.unwrap().len();
    let smuggled = format!("{body}GET /v1/pools HTTP/1.1\r\nhost: x\r\n\r\n");
    for (what, framing) in [
        ("two lengths", format!("content-length: {length}\r\ncontent-length: {}\r\n", smuggled.len())),
        ("two lengths in one", format!("content-length: {length}, {}\r\n", smuggled.len())),
        ("a signed length", format!("content-length: +{length}\r\n")),
        ("a negative length", "content-length: -1\r\n".to_owned()),
        ("no number", "content-length: 0x10\r\n".to_owned()),
        ("an overflow", "content-length: 18446744073709551616\r\n".to_owned()),
        ("another coding", "transfer-encoding: gzip\r\n".to_owned()),
        ("chunked, but not last", "transfer-encoding: chunked, gzip\r\n".to_owned()),
        ("a space before the colon", format!("content-length : {length}\r\n")),
        ("a folded header", format!("content-length:\r\n {length}\r\n")),
    ] {
        let answer = exchange(&daemon, format!("{CREATE}{framing}\r\n{smuggled}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
    }
    for (what, chunks) in [
        ("no number", format!("xyz\r\n{body}\r\n0\r\n\r\n")),
        ("an overflow", format!("fffffffffffffffff\r\n{body}\r\n0\r\n\r\n")),
        ("more than announced", format!("4\r\n{body}\r\n0\r\n\r\n")),
    ] {
        let answer = exchange(&daemon, format!("{CREATE}transfer-encoding: chunked\r\n\r\n{chunks}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
    }
    // The same length twice says one thing.
    let twice = format!("{CREATE}{close}content-length: {length}\r\ncontent-length: {length}\r\n\r\n{body}");
    assert!(exchange(&daemon, twice.as_bytes()).await.starts_with("HTTP/1.1 201 "));
    eventually("it is the only one that was started", || async {
        (daemon.client.executions().await.unwrap().len() == started + 1).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn heads_and_bodies_have_a_largest_size() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("api.max_body_bytes", 2048)).await;
    let long = "x".repeat(40_000);
    for head in [
        format!("GET /v1/pools HTTP/1.1\r\nhost: x\r\nx-long: {long}\r\n\r\n"),
        format!("GET /v1/pools HTTP/1.1\r\nhost: x\r\n{long}: x\r\n\r\n"),
        format!("GET /v1/pools HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(200)),
    ] {
        let answer = exchange(&daemon, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{}: {answer}", &head[..60]);
    }
    let answer = exchange(&daemon, format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "), "{answer}");
    // By what it says, before it has come, and by what has come when it said nothing.
    let announced = format!("{CREATE}content-length: 2049\r\n\r\n");
    let chunk = format!("{:x}\r\n{}\r\n", 1500, " ".repeat(1500));
    let chunked = format!("{CREATE}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}");
    for request in [format!("{announced}{}", " ".repeat(2049)), chunked] {
        let answer = exchange(&daemon, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_answered_while_it_is_being_sent() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("api.max_body_bytes", 2048)).await;
    let chunk = format!("{:x}\r\n{}\r\n", 4000, " ".repeat(4000));
    for (head, piece) in
        [("content-length: 10000000\r\n\r\n", " ".repeat(4000)), ("transfer-encoding: chunked\r\n\r\n", chunk)]
    {
        let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
        stream.write_all(format!("{CREATE}{head}{piece}").as_bytes()).await.unwrap();
        // The answer is there although most of the body is not.
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("body_too_large") {
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("it is answered");
            assert_ne!(read.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 413 "));
        // And one that goes on sending is not reset for it.
        for _ in 0..200 {
            stream.write_all(piece.as_bytes()).await.expect("it may go on");
        }
    }
    // Real clients, which send first and read then.
    let file = daemon.path("large");
    std::fs::write(&file, vec![b' '; 3_000_000]).unwrap();
    for expect in ["Expect:", "Expect: 100-continue"] {
        let output = tokio::process::Command::new("curl")
            .args(["-sS", "--unix-socket", daemon.socket().to_str().unwrap(), "-H", expect, "-X", "POST"])
            .args(["--data-binary", &format!("@{}", file.display()), "http://x/v1/executions"])
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("body_too_large"), "{expect} {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_answered_before_its_body_was_read_is_answered_all_the_same() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    for (request, status) in [
        // No vault, no such path, no such method, a user that is none, a parameter that is none.
        ("PUT /v1/users/u1/credentials/test", 409),
        ("POST /v1/nothing", 404),
        ("PUT /v1/executions", 405),
        ("PUT /v1/users/a%20b/egress", 400),
        ("POST /v1/executions?nothing=1", 400),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 200000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("it is answered");
            assert_ne!(read.unwrap(), 0, "{request}: {}", String::from_utf8_lossy(&answer));
        }
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {text}");
        for _ in 0..50 {
            stream.write_all(&[b' '; 4000]).await.unwrap_or_else(|error| panic!("{request}: {error}"));
        }
        stream.read_to_end(&mut answer).await.unwrap_or_else(|error| panic!("{request}: {error}"));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn users_who_are_not_listed_are_refused_although_they_may_open_the_socket() {
    const LISTED: u32 = 64_001;
    let daemon = Daemon::start(|setup| {
        setup.pool(0).set("api.connections.allowed_uids", vec![toml::Value::Integer(LISTED.into())])
    })
    .await;
    // Everybody may get to it, and open it.
    for path in [daemon.path(""), daemon.socket()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Where it lies, others may not get to it.
    let program = daemon.path("thawctl");
    std::fs::copy(support::programs::thawctl(), &program).unwrap();
    let ask = |uid: u32| {
        let mut command = std::process::Command::new(&program);
        let output = command.arg("--socket").arg(daemon.socket()).args(["pool", "ls"]).uid(uid).gid(uid).output();
        let output = output.unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (success, said) = ask(LISTED + 1);
    assert!(!success && said.contains(&format!("user {} may not use this API", LISTED + 1)), "{said}");
    for uid in [LISTED, 0] {
        let (success, said) = ask(uid);
        assert!(success, "{uid}: {said}");
    }
    assert!(daemon.log().contains("allowed_uids"), "it is logged");
    daemon.stop().await;
}

#[tokio::test]
async fn silent_connections_do_not_keep_anybody_from_asking_how_the_daemon_is() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1).set("api.connections.max", 4));
    // What systemd would be told.
    let told = tokio::net::UnixDatagram::bind(daemon.path("notify.sock")).unwrap();
    let notify = daemon.path("notify.sock").to_str().unwrap().to_owned();
    daemon.spawn(&[("NOTIFY_SOCKET", &notify), ("WATCHDOG_USEC", "3000000")]);
    daemon.ready().await;
    daemon.settled().await;
    let mut silent = Vec::new();
    for _ in 0..4 + 40 {
        silent.push(UnixStream::connect(daemon.socket()).await.unwrap());
    }
    let (begun, mut alive) = (Instant::now(), 0);
    let answered = daemon.http("GET /healthz", &[], b"").await;
    assert_eq!(answered.status, 200);
    // Each that was turned away is waited for only so long; one that has a place, for `header_timeout_seconds`.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // And signs of life need no connection at all.
    let mut buffer = [0; 4096];
    while alive < 3 {
        for _ in 0..40 {
            silent.push(UnixStream::connect(daemon.socket()).await.unwrap());
        }
        let received = tokio::time::timeout(Duration::from_secs(10), told.recv(&mut buffer)).await.expect("alive");
        alive += usize::from(buffer[..received.unwrap()].starts_with(b"WATCHDOG=1"));
        assert!(begun.elapsed() < PATIENCE, "{alive} signs of life");
    }
    assert!(!daemon.log().contains("no sign of life"), "{}", daemon.log());
    drop(silent);
    daemon.stop().await;
}

#[tokio::test]
async fn health_is_told_at_once_beside_six_hundred_idle_connections() {
    // With the default of 512 connections: 16 more are turned away, and the others wait in the kernel.
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let mut idle = Vec::new();
    let mut times = Vec::new();
    for _ in 0..20 {
        // Those that have been turned away come again, so that 600 idle ones are there each time.
        idle.retain(|stream: &UnixStream| !matches!(stream.try_read(&mut [0]), Ok(0)));
        while idle.len() < 600 {
            idle.push(UnixStream::connect(daemon.socket()).await.unwrap());
        }
        let begun = Instant::now();
        assert_eq!(daemon.http("GET /healthz", &[], b"").await.status, 200);
        times.push(begun.elapsed());
    }
    times.sort();
    println!("/healthz beside 600 idle connections: median {:?}, slowest {:?}", times[10], times[19]);
    let patience = Duration::from_millis(if support::in_bed() { 1000 } else { 100 });
    // On a busy machine one may be late; all of them are not.
    assert!(times[15] < patience, "{times:?}");
    assert_eq!(daemon.http("GET /v1/pools", &[], b"").await.problem().code, "too_many_connections");
    drop(idle);
    daemon.stop().await;
}

/// A port that nobody uses.
fn free_port() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn scrape(address: std::net::SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    answer
}

#[tokio::test]
async fn the_port_of_the_metrics_serves_few_at_a_time_and_nobody_for_long() {
    let address = free_port();
    let change = |setup: support::Setup| {
        let setup = setup.pool(0).set("metrics.listen", address.to_string());
        setup.set("metrics.max_connections", 2).set("metrics.timeout_seconds", 1)
    };
    let daemon = Daemon::start(change).await;
    assert!(scrape(address).await.contains("thawd_build_info"));
    let files = open_files(daemon.pid()).len();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(open_files(daemon.pid()).len() <= files + 2, "further ones wait in the kernel");
    let begun = Instant::now();
    let mut first = silent.swap_remove(0);
    let closed = tokio::time::timeout(PATIENCE, first.read(&mut [0; 16])).await.unwrap().unwrap_or(0);
    assert_eq!(closed, 0, "it said nothing");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    scrape(address).await;
    // The API's own socket is another matter.
    daemon.client.metrics().await.unwrap();
    let other = daemon_answer(address, "GET /v1/pools").await;
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    daemon.stop().await;
}

async fn daemon_answer(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn the_port_of_the_metrics_reads_the_containers_only_so_often() {
    let address = free_port();
    let change = |setup: support::Setup| {
        setup.pool(1).set("metrics.listen", address.to_string()).set("metrics.max_age_ms", 3_600_000)
    };
    let daemon = Daemon::start(change).await;
    daemon.settled().await;
    let body = |answer: String| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    let first = body(scrape(address).await);
    daemon.sh("true").await.exited(0);
    let now = daemon.client.metrics().await.unwrap();
    let ended = "thawd_executions_total{provider=\"test\",reason=\"success\"} 1";
    assert!(now.contains(ended), "{now}");
    let asked: Vec<_> = (0..8).map(|_| tokio::spawn(scrape(address))).collect();
    for one in asked {
        assert!(body(one.await.unwrap()) == first, "read again");
    }
    daemon.stop().await;

    let address = free_port();
    let daemon =
        Daemon::start(|setup| setup.pool(1).set("metrics.listen", address.to_string()).set("metrics.max_age_ms", 0))
            .await;
    daemon.sh("true").await.exited(0);
    eventually("it is read anew", || async { scrape(address).await.contains(ended).then_some(()) }).await;
    daemon.stop().await;
}
