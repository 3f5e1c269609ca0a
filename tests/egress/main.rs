//! The egress proxy against real servers on loopback: what passes, what does not, and what it costs.

#![allow(clippy::unwrap_used)]

mod bed;
mod budget;
mod crowd;
mod half_closed;
mod identities;
mod names;
mod npm;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bed::{Bed, Client, Namespace, PATIENCE, echo, listen, once, tunnel, unlimited};
use prometheus_client::registry::Registry;
use thawd::egress::{EgressError, EgressMetrics, Limits, Outside, Policy, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const MIB: usize = 1024 * 1024;
#[tokio::test]
async fn connect_opens_a_tunnel_to_an_allowed_static_name() {
    let (port, _) = echo().await;
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let mut client = tunnel(&bed, &format!("Upstream.TEST.:{port}")).await;
    client.send("hello\n").await;
    assert_eq!(client.line().await, "hello\n");
    // Half-closing passes through: the echo server sees the end and closes its side.
    client.0.get_mut().shutdown().await.unwrap();
    assert!(client.is_closed().await);

    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"allowed\"}"), 1);
    assert_eq!(bed.metric("thawd_egress_bytes_total{direction=\"out\"}"), 6);
    assert_eq!(bed.metric("thawd_egress_bytes_total{direction=\"in\"}"), 6);
    let usage = bed.proxy.usage();
    assert_eq!((usage.bytes_out, usage.bytes_in, usage.allowed, usage.refused), (6, 6, 1, 0));
}

#[tokio::test]
async fn bytes_sent_right_behind_the_connect_request_reach_the_upstream() {
    let (port, _) = echo().await;
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let mut client = bed.connect().await;
    client.send(&format!("CONNECT upstream.test:{port} HTTP/1.1\r\n\r\nearly\n")).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.line().await, "early\n");
}

#[tokio::test]
async fn plain_requests_are_rewritten_to_origin_form_without_hop_by_hop_headers() {
    let (port, seen) = once(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Secret-Hop\r\nX-Secret-Hop: 1\r\nProxy-Authenticate: x\r\nX-Kept: y\r\n\r\nok",
    )
    .await;
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let answer = bed
        .ask(&format!(
            "GET http://upstream.test:{port}/a%20b?q=1 HTTP/1.1\r\nHost: internal.example\r\nX-Kept: z\r\n\
             Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop, keep-alive\r\n\
             X-Hop: 1\r\nTE: trailers\r\nUpgrade: websocket\r\n\r\n"
        ))
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert!(answer.head.contains("x-kept: y"), "{}", answer.head);
    for gone in ["x-secret-hop", "proxy-", "via:"] {
        assert!(!answer.head.contains(gone), "{gone} in {}", answer.head);
    }
    let seen = seen.await.unwrap();
    assert!(seen.starts_with("GET /a%20b?q=1 HTTP/1.1\r\n"), "{seen}");
    let seen = seen.to_ascii_lowercase();
    assert!(
        seen.contains(&format!("\r\nhost: upstream.test:{port}\r\n")) && seen.contains("\r\nx-kept: z\r\n"),
        "{seen}"
    );
    for gone in ["proxy-", "x-hop", "te:", "upgrade", "via:", "internal.example", "c2vjcmv0"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
}

#[tokio::test]
async fn a_plain_response_streams_chunk_by_chunk() {
    let (listener, port) = listen().await;
    let (go, mut wait) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let mut upstream = Client(BufReader::new(listener.accept().await.unwrap().0));
        upstream.line().await;
        upstream.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for n in 0..3 {
            wait.recv().await.unwrap();
            upstream.send(&format!("9\r\ndata: {n}\n\n\r\n")).await;
        }
        upstream.send("0\r\n\r\n").await;
    });
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let mut client = bed.connect().await;
    client.send(&format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n\r\n")).await;
    // The head comes before any byte of the body was written, and each event before the next one is.
    assert_eq!(client.head().await.0, 200);
    for n in 0..3 {
        go.send(()).await.unwrap();
        let chunk: [String; 4] = [client.line().await, client.line().await, client.line().await, client.line().await];
        assert_eq!(chunk, ["9\r\n".to_owned(), format!("data: {n}\n"), "\n".to_owned(), "\r\n".to_owned()]);
    }
    assert_eq!(client.line().await, "0\r\n");
}

#[tokio::test]
async fn a_request_body_streams_before_it_is_complete() {
    for method in ["POST", "GET"] {
        let (listener, port) = listen().await;
        let bed = Bed::new(&[&format!("upstream.test:{port}")]);
        let mut client = bed.connect().await;
        client
            .send(&format!(
                "{method} http://upstream.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\none\r\n\r\n"
            ))
            .await;
        let mut upstream = Client(BufReader::new(timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push_str(&upstream.line().await);
        }
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        assert_eq!((upstream.line().await, upstream.line().await), ("5\r\n".into(), "one\r\n".into()), "{method}");
        client.send("5\r\ntwo\r\n\r\n0\r\n\r\n").await;
        assert_eq!([upstream.line().await, upstream.line().await, upstream.line().await], ["\r\n", "5\r\n", "two\r\n"]);
        upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(client.head().await.0, 204);
    }
}

#[tokio::test]
async fn one_connection_carries_requests_to_different_hosts() {
    let (one, _) = once("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    let (two, _) = once("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    let bed = Bed::new(&[&format!("upstream.test:{one}"), &format!("other.test:{two}")]);
    let mut client = bed.connect().await;
    client.send(&format!("GET http://upstream.test:{one}/ HTTP/1.1\r\n\r\n")).await;
    assert_eq!(client.answer().await.body, "1");
    client.send("GET http://forbidden.test/ HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 403);
    client.send(&format!("GET http://other.test:{two}/ HTTP/1.1\r\n\r\n")).await;
    assert_eq!(client.answer().await.body, "2");
}

#[tokio::test]
async fn hosts_outside_of_the_list_get_403_with_the_way_out() {
    let (port, count) = echo().await;
    let bed = Bed::new(&["upstream.test:1"]);
    for request in [
        format!("CONNECT upstream.test:{port} HTTP/1.1\r\n\r\n"),
        format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n\r\n"),
    ] {
        let answer = bed.ask(&request).await;
        assert_eq!(answer.status, 403);
        let expected = format!(
            "thawd: egress to upstream.test:{port} is not allowed for this provider; \
             add \"upstream.test:{port}\" to `egress` in its manifest\n"
        );
        assert_eq!(answer.body, expected);
    }
    assert_eq!(count.load(SeqCst), 0);
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"not_allowed\"}"), 2);
    assert_eq!(bed.proxy.usage().refused, 2);
}

#[tokio::test]
async fn a_refused_upload_still_learns_why() {
    let bed = Bed::new(&[]);
    let part = "x".repeat(MIB / 4);
    let mut client = bed.connect().await;
    client.send(&format!("POST http://a.test/ HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 3 * part.len())).await;
    // Most clients read the answer only when they have sent everything; the connection must last until then.
    for _ in 0..3 {
        client.send(&part).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.answer().await.status, 403);
}

#[tokio::test]
async fn a_refused_upload_that_waits_or_stalls_is_answered() {
    let bed = Bed::new(&[]);
    let expecting = "POST http://a.test/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(bed.ask(expecting).await.status, 403);
    let stalling = "POST http://a.test/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc";
    assert_eq!(bed.ask(stalling).await.status, 403);
}

#[tokio::test]
async fn allowed_names_do_not_open_private_addresses() {
    let (port, count) = echo().await;
    let hosts = ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]"];
    let mut patterns: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    patterns.extend(["169.254.169.254:80".into(), "*:*".into()]);
    let policy = Policy::new(&patterns, BTreeMap::new(), vec![]).unwrap();
    let bed = Bed::serve(policy, unlimited());
    let mut targets: Vec<String> = hosts.iter().map(|host| format!("{host}:{port}")).collect();
    targets.push("169.254.169.254:80".into());
    for target in &targets {
        for request in
            [format!("CONNECT {target} HTTP/1.1\r\n\r\n"), format!("GET http://{target}/latest HTTP/1.1\r\n\r\n")]
        {
            let answer = bed.ask(&request).await;
            assert_eq!(answer.status, 403, "{target}");
            assert!(
                answer.body.contains("is not public") && answer.body.contains("`egress.allow_private`"),
                "{answer:?}"
            );
        }
    }
    assert_eq!(count.load(SeqCst), 0);
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"private_address\"}"), 2 * targets.len() as u64);
}

#[tokio::test]
async fn whoever_asks_the_proxy_for_the_own_container_is_told_to_connect_directly() {
    let (port, count) = echo().await;
    let everywhere = Policy::new(&["*:*".to_owned()], BTreeMap::new(), vec![]).unwrap();
    for bed in [Bed::new(&["upstream.test:1"]), Bed::serve(everywhere, unlimited())] {
        for host in ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::]"] {
            for request in [
                format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n"),
                format!("GET http://{host}:{port}/ HTTP/1.1\r\n\r\n"),
            ] {
                let body = bed.ask(&request).await.body;
                assert!(body.contains("this is your own container: connect directly"), "{host}: {body}");
                assert!(!body.contains("manifest"), "{host}: {body}");
            }
        }
    }
    let answer = Bed::new(&[]).ask("CONNECT a.localhost:80 HTTP/1.1\r\n\r\n").await;
    assert!(answer.body.contains("connect directly"), "{}", answer.body);
    assert_eq!(count.load(SeqCst), 0);
}

#[tokio::test]
async fn configured_private_networks_are_open_to_allowed_names_only() {
    let (port, _) = echo().await;
    let private = vec!["127.0.0.0/8".parse().unwrap()];
    let policy = Policy::new(&[format!("127.0.0.1:{port}"), format!("localhost:{port}")], BTreeMap::new(), private);
    let bed = Bed::serve(policy.unwrap(), unlimited());
    // localhost may also be ::1, which is not in the network and must be passed over.
    for host in ["127.0.0.1", "localhost"] {
        let mut client = tunnel(&bed, &format!("{host}:{port}")).await;
        client.send("hi\n").await;
        assert_eq!(client.line().await, "hi\n");
    }
    assert_eq!(bed.ask(&format!("CONNECT 127.0.0.2:{port} HTTP/1.1\r\n\r\n")).await.status, 403);
}

#[tokio::test]
async fn malformed_requests_are_answered_and_go_nowhere() {
    let (port, count) = echo().await;
    let bed = Bed::new(&["*:*", &format!("upstream.test:{port}")]);
    let long = format!("GET http://upstream.test:{port}/{} HTTP/1.1\r\n\r\n", "a".repeat(40_000));
    let many = format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    let table: Vec<(String, u16)> = vec![
        ("GET / HTTP/1.1\r\nHost: upstream.test\r\n\r\n".into(), 400),
        ("GET https://upstream.test/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET ftp://upstream.test/ HTTP/1.1\r\n\r\n".into(), 400),
        (format!("GET http://user:secret@upstream.test:{port}/ HTTP/1.1\r\n\r\n"), 400),
        (format!("GET http://upstream.test:{port}1/ HTTP/1.1\r\n\r\n"), 400),
        ("GET http://upstream.test:0/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET http://2130706433/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET http://0x7f.1/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET http://[fe80::1%25eth0]/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET http://b\u{fc}cher.test/ HTTP/1.1\r\n\r\n".into(), 400),
        ("CONNECT upstream.test HTTP/1.1\r\n\r\n".into(), 400),
        (format!("CONNECT http://upstream.test:{port}/ HTTP/1.1\r\n\r\n"), 400),
        (format!("CONNECT user@upstream.test:{port} HTTP/1.1\r\n\r\n"), 400),
        (format!("CONNECT upstream.test:{port} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), 400),
        (
            format!("POST http://upstream.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            501,
        ),
        (
            format!("POST http://upstream.test:{port}/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            400,
        ),
        ("NOT HTTP\r\n\r\n".into(), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into(), 400),
        (long, 431),
        (many, 431),
    ];
    for (request, status) in &table {
        let answer = bed.ask(request).await;
        let line = request.lines().next().unwrap_or_default();
        assert_eq!(answer.status, *status, "{line:.80}: {answer:?}");
        assert!(!answer.body.contains("secret"), "{line:.80}: {answer:?}");
    }
    assert_eq!(count.load(SeqCst), 0);
}

#[tokio::test]
async fn an_ambiguous_length_is_not_passed_on() {
    let (port, seen) = once("HTTP/1.1 204 No Content\r\n\r\n").await;
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let answer = bed
        .ask(&format!(
            "POST http://upstream.test:{port}/ HTTP/1.1\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ))
        .await;
    assert_eq!(answer.status, 204);
    let seen = seen.await.unwrap().to_ascii_lowercase();
    assert!(seen.contains("transfer-encoding: chunked") && !seen.contains("content-length"), "{seen}");
}

#[tokio::test]
async fn upstream_trouble_is_told_apart() {
    // A port that was free a moment ago.
    let closed = listen().await.1;
    let (garbage, _) = once("SSH-2.0-OpenSSH\r\n").await;
    let (switching, _) = once("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    // A listener whose backlog is full drops further connection attempts: nobody answers.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let full_port = full.local_addr().unwrap().port();
    let _first = TcpStream::connect(("127.0.0.1", full_port)).await.unwrap();

    let limits = Limits { connect_timeout: Duration::from_millis(300), ..unlimited() };
    let bed = Bed::with(&["upstream.test:*", "no-such-name.invalid:80"], limits);
    let table = [
        (format!("http://upstream.test:{closed}/"), 502, "cannot connect to upstream.test"),
        ("http://no-such-name.invalid/".to_owned(), 502, "cannot resolve no-such-name.invalid"),
        (format!("http://upstream.test:{garbage}/"), 502, "no valid HTTP response"),
        (format!("http://upstream.test:{switching}/"), 502, "no valid HTTP response"),
        (format!("http://upstream.test:{full_port}/"), 504, "did not answer in time"),
    ];
    for (url, status, text) in table {
        let answer = bed.get(&url).await;
        assert_eq!(answer.status, status, "{url}: {answer:?}");
        assert!(answer.body.starts_with("thawd: ") && answer.body.contains(text), "{url}: {answer:?}");
    }
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"failed\"}"), 5);
}

#[tokio::test]
async fn idle_tunnels_and_silent_upstreams_end() {
    let (port, _) = echo().await;
    let (silent, silent_port) = listen().await;
    let limits = Limits { idle_timeout: Duration::from_millis(300), ..unlimited() };
    let bed = Bed::with(&["upstream.test:*"], limits);
    let mut client = tunnel(&bed, &format!("upstream.test:{port}")).await;
    // Activity postpones the end: this takes longer than the idle time in all.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send("tick\n").await;
        assert_eq!(client.line().await, "tick\n");
    }
    assert!(client.is_closed().await);
    assert_eq!(bed.get(&format!("http://upstream.test:{silent_port}/")).await.status, 504);
    drop(silent);
}

#[tokio::test]
async fn a_slow_request_head_is_cut_off() {
    let bed = Bed::with(&[], Limits { header_timeout: Duration::from_millis(200), ..unlimited() });
    let mut client = bed.connect().await;
    client.send("GET http://a.test/ HT").await;
    let mut rest = String::new();
    timeout(PATIENCE, client.0.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
}

#[tokio::test]
async fn shutdown_and_drop_close_the_listener_and_all_tunnels() {
    for by_drop in [false, true] {
        let (port, _) = echo().await;
        let target = format!("upstream.test:{port}");
        let bed = Bed::new(&[&target]);
        let mut open = tunnel(&bed, &target).await;
        let mut waiting = bed.connect().await;
        waiting.send("GET http://").await;
        let proxy_port = bed.port;
        if by_drop {
            drop(bed);
        } else {
            let usage = timeout(PATIENCE, bed.proxy.shutdown()).await.unwrap();
            assert_eq!(usage.open, 0);
        }
        assert!(open.is_closed().await && waiting.is_closed().await);
        assert!(TcpStream::connect(("127.0.0.1", proxy_port)).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_in_bounded_memory_even_to_a_slow_reader() {
    const SIZE: usize = 64 * MIB;
    let (listener, port) = listen().await;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    tokio::spawn(async move {
        let mut upstream = Client(BufReader::new(listener.accept().await.unwrap().0));
        while upstream.line().await != "\r\n" {}
        upstream.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let block = vec![7u8; 64 * 1024];
        while counter.load(SeqCst) < SIZE {
            upstream.0.get_mut().write_all(&block).await.unwrap();
            counter.fetch_add(block.len(), SeqCst);
        }
    });
    let bed = Bed::new(&[&format!("upstream.test:{port}")]);
    let before = resident();
    let mut client = bed.connect().await;
    client.send(&format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n\r\n")).await;
    assert_eq!(client.head().await.0, 200);
    // The reader stops: the upstream must come to a halt too, after what the kernel's socket buffers take.
    let mut seen = usize::MAX;
    while seen != written.load(SeqCst) {
        seen = written.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(seen < SIZE / 2, "{} MiB were taken from the upstream while nobody read", seen / MIB);
    let (mut total, mut peak) = (0, resident());
    let mut block = vec![0u8; 256 * 1024];
    while total < SIZE {
        let read = timeout(PATIENCE, client.0.read(&mut block)).await.unwrap().unwrap();
        assert_ne!(read, 0);
        assert!(block[..read].iter().all(|&byte| byte == 7));
        total += read;
        peak = peak.max(resident());
    }
    assert_eq!(total, SIZE);
    assert!(peak.saturating_sub(before) < 24 * MIB, "grew by {} MiB", (peak - before) / MIB);
    assert!(bed.proxy.usage().bytes_in > SIZE as u64);
}

/// Resident anonymous memory of this process, bytes. Mapped files do not count: a panicking neighbour maps debug info.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    kib.unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_proxy_needs_a_runtime() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = Outside::direct(Arc::new(EgressMetrics::new(&mut Registry::default())));
    let result = Proxy::serve(listener, Arc::new(Policy::default()), "c-1".into(), metrics);
    assert!(matches!(result, Err(EgressError::NoRuntime)));
}

#[tokio::test]
async fn a_namespace_with_only_lo_gets_out_through_the_proxy_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: entering a network namespace needs root");
        return;
    }
    let (port, count) = echo().await;
    let namespace = Namespace::new();
    let listener = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:3128").unwrap());
    let resolve = BTreeMap::from([("upstream.test".to_owned(), vec!["127.0.0.1".parse().unwrap()])]);
    let policy = Policy::new(&[format!("upstream.test:{port}")], resolve, vec![]).unwrap();
    let metrics = Outside::direct(Arc::new(EgressMetrics::new(&mut Registry::default())));
    let _proxy = Proxy::serve(listener, Arc::new(policy), "c-1".into(), metrics).unwrap();

    // The upstream's port exists on the host's loopback only.
    let direct = namespace.enter(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(direct, "the container reached the host's loopback directly");
    let stream = namespace.enter(|| std::net::TcpStream::connect("127.0.0.1:3128").unwrap());
    stream.set_nonblocking(true).unwrap();
    let mut client = Client(BufReader::new(TcpStream::from_std(stream).unwrap()));
    client.send(&format!("CONNECT upstream.test:{port} HTTP/1.1\r\n\r\nout\n")).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.line().await, "out\n");
    assert_eq!(count.load(SeqCst), 1);
}
