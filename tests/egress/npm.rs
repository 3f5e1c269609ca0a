//! A package manager as it is: npm, in a network namespace with nothing but the proxy.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use prometheus_client::registry::Registry;
use thawd::egress::{EgressMetrics, Limits, Outside, Policy, Proxy, Total};

use crate::bed::Namespace;

const PACKAGES: usize = 300;

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_ci_of_three_hundred_packages_needs_no_more_places_than_there_are() {
    let project = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/egress/registry.mjs");
    let mut node = Command::new("node");
    node.arg(script).arg(PACKAGES.to_string()).arg(project.path()).stdout(Stdio::piped());
    let mut server = Server(node.spawn().unwrap());
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let port = port.trim().to_owned();

    let namespace = Namespace::new();
    let listener = namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:3128").unwrap());
    let resolve = [("registry.test".to_owned(), vec!["127.0.0.1".parse().unwrap()])].into();
    let policy = Arc::new(Policy::new(&[format!("registry.test:{port}")], resolve, vec![]).unwrap());
    let metrics = Outside::direct(Arc::new(EgressMetrics::limited(&mut Registry::default(), Total::new(400, 100))));
    // As configured by default, but with fewer places than npm opens connections.
    let limits = Limits { connections: 16, cpu_percent: 0, ..Limits::default() };
    let proxy = Proxy::serve_with(listener, policy, "c-1".into(), metrics, limits).unwrap();
    let mut npm = Command::new("npm");
    npm.current_dir(project.path())
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--maxsockets=200"])
        // A kept-alive connection can be closed in the moment of the next request on it, which a client then makes again
        // (RFC 9112 section 9.3.1).
        .args(["--fetch-retries=2", "--fetch-retry-mintimeout=100", "--proxy=http://127.0.0.1:3128", "--cache"])
        .arg(project.path().join("cache"))
        .arg(format!("--registry=http://registry.test:{port}/"));
    let output = tokio::task::block_in_place(|| namespace.enter(|| npm.output().unwrap()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    let installed = std::fs::read_dir(project.path().join("node_modules")).unwrap();
    let installed =
        installed.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("part-"));
    assert_eq!(installed.count(), PACKAGES);
    let usage = proxy.usage();
    assert_eq!((usage.allowed, usage.refused), (PACKAGES as u64, 0));
}
