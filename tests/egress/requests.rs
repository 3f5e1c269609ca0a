//! What clients write and what reaches the upstream: one reading of each request, or none.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::bed::{Bed, PATIENCE, listen};

/// Reports all that it gets on each connection, once that ends.
async fn recorder() -> (u16, UnboundedReceiver<String>) {
    let (listener, port) = listen().await;
    let (send, seen) = unbounded_channel();
    let send = Arc::new(send);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let send = Arc::clone(&send);
            tokio::spawn(async move {
                let mut got = Vec::new();
                while crate::requests::head_end(&got).is_none() {
                    if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _ = stream.read_to_end(&mut got).await;
                let _ = send.send(String::from_utf8_lossy(&got).into_owned());
            });
        }
    });
    (port, seen)
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Sends bytes and the end, and returns the status of the first answer, and how many there were.
async fn ask(bed: &Bed, request: &[u8]) -> (u16, usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", bed.port)).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.matches("HTTP/1.").count())
}

/// `{H}` stands for the upstream's name and port, `{P}` for the port. A line ends as it is written.
struct Row(&'static str, Expected);

enum Expected {
    /// One request whose head begins so and has these lines; with the body behind it.
    Sent(&'static str, &'static [&'static str], &'static str),
    /// Answered with one of these, and nothing is sent anywhere.
    Refused(&'static [u16]),
}

use Expected::{Refused, Sent};

const BAD: Expected = Refused(&[400]);
/// Bad, or a transfer coding that the proxy does not know.
const CODING: Expected = Refused(&[400, 501]);

const fn plain(line: &'static str) -> Expected {
    Sent(line, &[], "")
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // The target's path: nothing is added or taken away but the fragment, and it is never empty.
    Row("GET http://{H}/ HTTP/1.1\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H} HTTP/1.1\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H}#x HTTP/1.1\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H}/#x HTTP/1.1\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H}/a#x?y HTTP/1.1\r\n\r\n", plain("GET /a HTTP/1.1")),
    Row("GET http://{H}?x=1 HTTP/1.1\r\n\r\n", plain("GET /?x=1 HTTP/1.1")),
    Row("GET http://{H}?x#y HTTP/1.1\r\n\r\n", plain("GET /?x HTTP/1.1")),
    Row("GET http://{H}/? HTTP/1.1\r\n\r\n", plain("GET /? HTTP/1.1")),
    Row("GET http://{H}//a//../b/. HTTP/1.1\r\n\r\n", plain("GET //a//../b/. HTTP/1.1")),
    Row("GET http://{H}/%2e%2e/%00%0d%0a HTTP/1.1\r\n\r\n", plain("GET /%2e%2e/%00%0d%0a HTTP/1.1")),
    Row("GET http://{H}/http://other.test/ HTTP/1.1\r\n\r\n", plain("GET /http://other.test/ HTTP/1.1")),
    Row("GET http://{H}/@other.test HTTP/1.1\r\n\r\n", plain("GET /@other.test HTTP/1.1")),
    // The host: one form, whatever the Host header says.
    Row("GET HTTP://{H}/ HTTP/1.1\r\n\r\n", Sent("GET / HTTP/1.1", &["host: {H}"], "")),
    Row("GET http://UPSTREAM.Test.:{P}/ HTTP/1.1\r\n\r\n", Sent("GET / HTTP/1.1", &["host: {H}"], "")),
    Row("GET http://{H}/ HTTP/1.1\r\nHost: other.test\r\n\r\n", Sent("GET / HTTP/1.1", &["host: {H}"], "")),
    Row("GET http://{H}/ HTTP/1.1\r\nHost:\r\n\r\n", Sent("GET / HTTP/1.1", &["host: {H}"], "")),
    Row("GET http://{H}/ HTTP/1.1\r\nConnection: host\r\n\r\n", Sent("GET / HTTP/1.1", &["host: {H}"], "")),
    Row("GET http://{H}/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nHost: {H}\r\nHost: {H}\r\n\r\n", BAD),
    // Methods and versions.
    Row("HEAD http://{H}/ HTTP/1.1\r\n\r\n", plain("HEAD / HTTP/1.1")),
    Row("OPTIONS http://{H}/ HTTP/1.1\r\n\r\n", plain("OPTIONS / HTTP/1.1")),
    Row("M-SEARCH http://{H}/ HTTP/1.1\r\n\r\n", plain("M-SEARCH / HTTP/1.1")),
    Row("GET http://{H}/ HTTP/1.0\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("\r\nGET http://{H}/ HTTP/1.1\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H}/ HTTP/1.1\nX-A: b\n\n", Sent("GET / HTTP/1.1", &["x-a: b"], "")),
    // Headers.
    Row("GET http://{H}/ HTTP/1.1\r\nX-A:\r\nX-B:  c  \r\n\r\n", Sent("GET / HTTP/1.1", &["x-a: ", "x-b: c"], "")),
    Row("GET http://{H}/ HTTP/1.1\r\nConnection: x-a\r\nX-A: b\r\n\r\n", plain("GET / HTTP/1.1")),
    Row("GET http://{H}/ HTTP/1.1\r\nCookie: a\r\nCookie: b\r\n\r\n", Sent("GET / HTTP/1.1", &["cookie: a", "cookie: b"], "")),
    // Bodies: one length.
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", Sent("POST / HTTP/1.1", &["content-length: 2"], "ab")),
    Row("GET http://{H}/ HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", Sent("GET / HTTP/1.1", &["content-length: 2"], "ab")),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Sent("POST / HTTP/1.1", &["content-length: 0"], "")),
    Row("POST http://{H}/ HTTP/1.1\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nab", Sent("POST / HTTP/1.1", &["content-length: 2"], "ab")),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", Sent("POST / HTTP/1.1", &["content-length: 2"], "ab")),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Sent("POST / HTTP/1.1", &["transfer-encoding: chunked"], "2\r\nab\r\n0\r\n\r\n")),
    Row("GET http://{H}/ HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n0\r\n\r\n", Sent("GET / HTTP/1.1", &["transfer-encoding: chunked"], "2\r\nab\r\n0\r\n\r\n")),
    Row("POST http://{H}/ HTTP/1.1\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Sent("POST / HTTP/1.1", &["transfer-encoding: chunked"], "2\r\nab\r\n0\r\n\r\n")),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nGET http://{H}/2 HTTP/1.1\r\n\r\n", Sent("POST / HTTP/1.1", &["transfer-encoding: chunked"], "2\r\nab\r\n0\r\n\r\n")),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2\r\nab\r\n0\r\n\r\n", Sent("POST / HTTP/1.1", &["transfer-encoding: chunked"], "2\r\nab\r\n0\r\n\r\n")),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 2, 3\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: +2\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: -2\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 0x2\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 1 1\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length:\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nContent-Length: 18446744073709551618\r\n\r\nab", BAD),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", CODING),
    Row("POST http://{H}/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", CODING),
    // Not header lines.
    Row("GET http://{H}/ HTTP/1.1\r\nX-A : b\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX-A: b\r\n c\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\n X-A: b\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX-A\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\n: b\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX A: b\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX-A: b\0c\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX-A: b\rc\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1\r\nX-\u{e4}: b\r\n\r\n", BAD),
    // Not request lines.
    Row("GET http://{H}/a b HTTP/1.1\r\n\r\n", BAD),
    Row("GET  http://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET\thttp://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/2.0\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.2\r\n\r\n", BAD),
    Row("GET http://{H}/ HTTP/1.1x\r\n\r\n", BAD),
    Row("GET http://{H}/ http/1.1\r\n\r\n", BAD),
    Row("GET http://{H}/\r\n\r\n", BAD),
    Row("GET http://{H}/\r\nX: HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://{H}/a\rb HTTP/1.1\r\n\r\n", BAD),
    Row("G@T http://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(&[0, 400])),
    // Not whole http URLs.
    Row("GET / HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET //{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET * HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("OPTIONS * HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET {H} HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET http:/{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET http:{H}/ HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET http:///a HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET http:// HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("GET https://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET ftp://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET ws://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET file:///etc/passwd HTTP/1.1\r\n\r\n", BAD),
    // Authorities with more than one reading.
    Row("GET http://u@{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://u:p@{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://@{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://a@b@{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://{H}@other.test/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://{H}\\@other.test/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://{H}%2f@other.test/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test%00:{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test,other.test:{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test:{P}:80/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test:0{P}0/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test:+{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test:{P}a/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream..test:{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://[::1/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://[::1]x:{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://[upstream.test]:{P}/ HTTP/1.1\r\n\r\n", BAD),
    Row("GET http://upstream.test:/ HTTP/1.1\r\n\r\n", Refused(&[400, 403])),
    // Tunnels: host:port, and nothing else.
    Row("CONNECT http://{H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT {H}/ HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT {H}#x HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT {H}?x HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT u@{H} HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT upstream.test HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT upstream.test: HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT :{P} HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT * HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT / HTTP/1.1\r\nHost: {H}\r\n\r\n", BAD),
    Row("CONNECT upstream.test:0 HTTP/1.1\r\n\r\n", BAD),
    Row("CONNECT {H} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", BAD),
    Row("CONNECT {H} HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", BAD),
    Row("CONNECT {H} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    Row("connect {H} HTTP/1.1\r\n\r\n", BAD),
];

#[tokio::test]
async fn each_request_is_read_in_one_way_or_refused() {
    let (port, mut seen) = recorder().await;
    let here = format!("upstream.test:{port}");
    let bed = Bed::new(&[&here]);
    let fill = |text: &str| text.replace("{H}", &here).replace("{P}", &port.to_string());
    for Row(request, expected) in TABLE {
        let request = fill(request);
        let (status, answers) = ask(&bed, request.as_bytes()).await;
        match expected {
            Refused(statuses) => {
                assert!(statuses.contains(&status), "{request:?}: {status}");
                // Whatever stands behind what is refused is not taken for a request.
                assert!(answers <= 1, "{request:?}");
                let sent = seen.try_recv();
                assert!(sent.is_err(), "{request:?}: {sent:?}");
            }
            Sent(line, lines, body) => {
                assert_eq!(status, 200, "{request:?}");
                let sent = timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
                let (head, rest) = sent.split_once("\r\n\r\n").unwrap();
                let head: Vec<String> = head.split("\r\n").map(str::to_owned).collect();
                assert_eq!(head[0], *line, "{request:?}: {sent:?}");
                assert_eq!(rest, *body, "{request:?}: {sent:?}");
                let mut headers: Vec<String> = head[1..].iter().map(|line| line.to_ascii_lowercase()).collect();
                for wanted in [&["host: {H}", "connection: close"][..], *lines].concat() {
                    let wanted = fill(wanted).to_ascii_lowercase();
                    let at = headers.iter().position(|line| *line == wanted || line.trim_end() == wanted.trim_end());
                    match at {
                        Some(at) => drop(headers.remove(at)),
                        // The host is always looked for, and in some rows named once more.
                        None => assert!(wanted.starts_with("host:"), "{request:?}: {wanted:?} is missing: {sent:?}"),
                    }
                }
                assert!(headers.is_empty(), "{request:?}: more headers: {headers:?}");
                assert!(seen.try_recv().is_err(), "{request:?}");
            }
        }
    }
    // Nothing comes late either.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(seen.try_recv().is_err());
    assert!(TABLE.len() >= 60);
}
