//! A proxy in this process, upstreams beside it, and clients by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use prometheus_client::registry::Registry;
use thawd::egress::{EgressMetrics, Limits, Outside, Policy, Proxy, Total};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing on loopback takes this long; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The usual limits, but as fast as can be.
pub fn unlimited() -> Limits {
    Limits {
        requests_per_second: 0,
        cpu_percent: 0,
        run_mbit_per_second: 0,
        idle_mbit_per_second: 0,
        ..Limits::default()
    }
}

/// A running proxy and where its listener is.
pub struct Bed {
    pub proxy: Proxy,
    pub port: u16,
    registry: Registry,
}

impl Bed {
    /// `upstream.test` and `other.test` are static names for 127.0.0.1.
    pub fn new(patterns: &[&str]) -> Self {
        Self::with(patterns, unlimited())
    }

    pub fn with(patterns: &[&str], limits: Limits) -> Self {
        let home: IpAddr = "127.0.0.1".parse().unwrap();
        let resolve = BTreeMap::from([("upstream.test".into(), vec![home]), ("other.test".into(), vec![home])]);
        Self::serve(Policy::new(patterns, resolve, vec![]).unwrap(), limits)
    }

    pub fn serve(policy: Policy, limits: Limits) -> Self {
        Self::outside(policy, limits, Outside::direct)
    }

    /// One that goes out as `outside` says.
    pub fn outside(policy: Policy, limits: Limits, outside: impl FnOnce(Arc<EgressMetrics>) -> Outside) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut registry = Registry::default();
        let outside = outside(Arc::new(EgressMetrics::new(&mut registry)));
        let proxy = Proxy::serve_with(listener, Arc::new(policy), "c-1".into(), outside, limits).unwrap();
        Self { proxy, port, registry }
    }

    /// Two containers of one daemon, which may use so much together.
    pub fn two(patterns: &[&str], limits: Limits, total: Total) -> (Self, Self) {
        let home: IpAddr = "127.0.0.1".parse().unwrap();
        let resolve = BTreeMap::from([("upstream.test".into(), vec![home])]);
        let policy = Arc::new(Policy::new(patterns, resolve, vec![]).unwrap());
        let metrics = Outside::direct(Arc::new(EgressMetrics::limited(&mut Registry::default(), total)));
        let serve = |name: &str| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let (policy, metrics) = (Arc::clone(&policy), metrics.clone());
            let proxy = Proxy::serve_with(listener, policy, name.into(), metrics, limits.clone()).unwrap();
            Self { proxy, port, registry: Registry::default() }
        };
        (serve("c-1"), serve("c-2"))
    }

    pub async fn connect(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()))
    }

    /// Sends one request and returns the whole answer, read until the proxy closes or the body's length is reached.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.ask(&format!("GET {url} HTTP/1.1\r\nHost: ignored.test\r\n\r\n")).await
    }

    pub fn metric(&self, line: &str) -> u64 {
        // Whole numbers, of seconds as well.
        self.number(line) as u64
    }

    pub fn number(&self, line: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0.0)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub struct Client(pub BufReader<TcpStream>);

impl Client {
    pub async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    pub async fn head(&mut self) -> (u16, String) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = timeout(PATIENCE, self.0.read_line(&mut head)).await.unwrap().unwrap();
            assert_ne!(read, 0, "connection closed inside of the head: {head:?}");
        }
        let status =
            head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("status in {head:?}"));
        (status, head.to_ascii_lowercase())
    }

    pub async fn answer(&mut self) -> Answer {
        let (status, head) = self.head().await;
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let mut body = vec![];
        match length {
            Some(length) => {
                body.resize(length, 0);
                timeout(PATIENCE, self.0.read_exact(&mut body)).await.unwrap().unwrap();
            }
            None => {
                timeout(PATIENCE, self.0.read_to_end(&mut body)).await.unwrap().unwrap();
            }
        }
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    /// The body that belongs to a head.
    pub async fn answer_body(&mut self, head: &str) -> String {
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        timeout(PATIENCE, self.0.read_exact(&mut body)).await.unwrap().unwrap();
        String::from_utf8(body).unwrap()
    }

    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.0.read_line(&mut line)).await.unwrap().unwrap();
        line
    }

    /// Whether the other end closes (or resets) the connection; bytes before that are an error.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = vec![];
        match timeout(PATIENCE, self.0.read_to_end(&mut rest)).await {
            Ok(_) => rest.is_empty(),
            Err(_) => false,
        }
    }
}

pub async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers each connection's bytes with the same bytes and counts connections.
pub async fn echo() -> (u16, Arc<AtomicUsize>) {
    let (listener, port) = listen().await;
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (port, count)
}

/// Takes one connection, reads one request head, sends `answer`, closes; returns the head.
pub async fn once(answer: &'static str) -> (u16, JoinHandle<String>) {
    let (listener, port) = listen().await;
    let head = tokio::spawn(async move {
        let mut client = Client(BufReader::new(listener.accept().await.unwrap().0));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(client.0.read_line(&mut head).await.unwrap(), 0, "{head:?}");
        }
        client.send(answer).await;
        head
    });
    (port, head)
}

pub async fn tunnel(bed: &Bed, target: &str) -> Client {
    let mut client = bed.connect().await;
    client.send(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
    let (status, head) = client.head().await;
    assert_eq!(status, 200, "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("via"), "{head}");
    client
}

/// A process that holds a network namespace with nothing but `lo`, as a container does.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let mut child = Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo 1 > /proc/sys/net/ipv4/tcp_fin_timeout && echo ready && exec sleep 60",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Runs `f` on a thread of its own inside the namespace.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(file.as_fd(), kind).unwrap();
                f()
            });
            inside.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
