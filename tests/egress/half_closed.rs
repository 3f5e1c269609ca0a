//! Clients that close their sending half and wait for the answer, and clients that are gone.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use thawd::egress::{EgressMetrics, Outside, Policy, Proxy};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{Bed, Client, Namespace, PATIENCE, listen};

/// Answers each request, after it has been silent for a moment.
async fn slow() -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer_slowly(stream));
        }
    });
    port
}

async fn answer_slowly(stream: TcpStream) {
    let mut client = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.unwrap() == 0 {
            return;
        }
        let last = head.lines().last().unwrap_or_default().to_ascii_lowercase();
        length = last.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap());
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Something in between shows that the connection lives on.
    let _ = client.get_mut().write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst ").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _ = client.get_mut().write_all(b"second").await;
}

/// What a client gets that sends this, closes its sending half, and reads to the end.
async fn exchange(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn a_client_that_closes_its_sending_half_gets_its_answer() {
    let port = slow().await;
    let bed = Bed::new(&["upstream.test:*"]);
    let plain = format!("GET http://upstream.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    let closing = format!("GET http://upstream.test:{port}/ HTTP/1.0\r\n\r\n");
    let post = format!("POST http://upstream.test:{port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody");
    let connect = format!("CONNECT upstream.test:{port} HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    for request in [plain, closing, post, connect] {
        for _ in 0..5 {
            let answer = exchange(bed.port, &request).await;
            assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{request}: {answer:?}");
            assert!(answer.contains("first ") && answer.contains("second"), "{request}: {answer:?}");
        }
    }
    // What was cut off is no request.
    let cut = format!("POST http://upstream.test:{port}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbody");
    let answer = exchange(bed.port, &cut).await;
    assert!(!answer.contains("first"), "{answer:?}");
    let refused = exchange(bed.port, "GET http://forbidden.test/ HTTP/1.1\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused:?}");
}

#[tokio::test]
async fn socat_and_nc_and_wget_get_their_answer() {
    let port = slow().await;
    let bed = Bed::new(&["upstream.test:*"]);
    let plain = format!("GET http://upstream.test:{port}/ HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n");
    let connect = format!("CONNECT upstream.test:{port} HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n");
    let proxy = bed.port;
    for script in [
        format!("printf '{plain}' | socat -t 20 - TCP:127.0.0.1:{proxy}"),
        format!("printf '{connect}' | socat -t 20 - TCP:127.0.0.1:{proxy}"),
        format!("printf '{plain}' | nc.openbsd -N 127.0.0.1 {proxy}"),
        format!("printf '{connect}' | nc.openbsd -N 127.0.0.1 {proxy}"),
        format!("printf '{plain}' | busybox nc 127.0.0.1 {proxy}"),
        format!("http_proxy=http://127.0.0.1:{proxy} busybox wget -q -O - http://upstream.test:{port}/"),
        format!("http_proxy=http://127.0.0.1:{proxy} curl -sS http://upstream.test:{port}/"),
        format!("curl -sS -p -x http://127.0.0.1:{proxy} http://upstream.test:{port}/"),
    ] {
        let mut turns = JoinSet::new();
        for _ in 0..10 {
            turns.spawn(Command::new("sh").args(["-c", &script]).stderr(Stdio::piped()).output());
        }
        for output in timeout(PATIENCE, turns.join_all()).await.unwrap() {
            let output = output.unwrap();
            let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(said.contains("first ") && said.contains("second"), "{script}: {said}{errors}");
        }
    }
}

/// An upstream that has got a request and does not answer it.
async fn asked(bed: &Bed, listener: &TcpListener) -> (Client, Client) {
    let port = listener.local_addr().unwrap().port();
    let mut client = bed.connect().await;
    client.send(&format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n\r\n")).await;
    let mut upstream = Client(BufReader::new(listener.accept().await.unwrap().0));
    while upstream.line().await != "\r\n" {}
    (client, upstream)
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_upstream() {
    let (listener, _) = listen().await;
    let bed = Bed::new(&["upstream.test:*"]);
    // Reset, as by a client that dies with something unread.
    let (client, mut upstream) = asked(&bed, &listener).await;
    client.0.get_ref().set_zero_linger().unwrap();
    drop(client);
    assert!(upstream.is_closed().await, "it was reset");
    // Closed: the first byte of the answer finds nobody.
    let (client, mut upstream) = asked(&bed, &listener).await;
    drop(client);
    upstream.send("HTTP/1.1 200 OK\r\n\r\n").await;
    let stuffed = async {
        while upstream.0.get_mut().write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, stuffed).await.expect("the upstream's connection ends");
}

#[tokio::test]
async fn a_client_that_closed_is_noticed_although_nothing_is_sent_to_it() {
    // In it, the kernel answers for a closed socket only for a second.
    let namespace = Namespace::new();
    let listener = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:3128").unwrap());
    let (upstream, port) = listen().await;
    let resolve = [("upstream.test".to_owned(), vec!["127.0.0.1".parse().unwrap()])].into();
    let policy = Policy::new(&["upstream.test:*"], resolve, vec![]).unwrap();
    let metrics = Outside::direct(Arc::new(EgressMetrics::new(&mut Registry::default())));
    let _proxy = Proxy::serve(listener, Arc::new(policy), "c-1".into(), metrics).unwrap();
    let ask = || {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:3128").unwrap();
        let request = format!("GET http://upstream.test:{port}/ HTTP/1.1\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream
    };
    let (gone, waiting) = (namespace.enter(ask), namespace.enter(ask));
    let mut upstreams = Vec::new();
    for _ in 0..2 {
        let mut client = Client(BufReader::new(upstream.accept().await.unwrap().0));
        while client.line().await != "\r\n" {}
        upstreams.push(client);
    }
    // Nothing tells which is whose: the one that is closed is the one that is gone.
    drop(gone);
    let (mut one, mut two) = (upstreams.remove(0), upstreams.remove(0));
    let (mut byte, mut other) = ([0], [0]);
    let end = async {
        tokio::select! {
            read = one.0.read(&mut byte) => (read.unwrap(), &mut two),
            read = two.0.read(&mut other) => (read.unwrap(), &mut one),
        }
    };
    let (read, left) = timeout(PATIENCE, end).await.expect("the upstream of the client that is gone ends");
    assert_eq!(read, 0);
    left.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstill y").await;
    waiting.set_nonblocking(true).unwrap();
    let mut answer = String::new();
    let mut waiting = TcpStream::from_std(waiting).unwrap();
    timeout(PATIENCE, waiting.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("still y"), "{answer:?}");
}
