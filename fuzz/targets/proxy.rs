//! What a container sends to its proxy: any bytes get answers that are whole, or none, and reach nobody.
#![no_main]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::registry::Registry;
use thawd::egress::{EgressMetrics, Limits, Policy, Proxy};

/// A proxy that lets nobody through, served by threads of its own; its port.
fn port() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let policy = Policy::new(&Vec::<String>::new(), BTreeMap::new(), Vec::new()).expect("nothing is allowed");
        let metrics = Arc::new(EgressMetrics::new(&mut Registry::default()));
        let limits = Limits { requests_per_second: 0, cpu_percent: 0, ..Limits::default() };
        let proxy = Proxy::serve_with(listener, Arc::new(policy), "c-fuzz".to_owned(), metrics, limits);
        std::mem::forget(proxy.expect("it serves"));
        std::mem::forget(runtime);
        port
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut stream = TcpStream::connect(("127.0.0.1", port())).expect("the proxy is there");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
    // It may have refused before everything was said.
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("it neither answers nor closes"),
        _ => {}
    }
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    // Nothing is allowed, so that nothing can have succeeded.
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
});
