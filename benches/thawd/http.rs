//! A small blocking HTTP/1.1 client for the daemon's socket. It costs the measured path as little as a client can:
//! one write for the request, plain reads for the answer, and a clock reading right after each read.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longest silence that is waited for.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A connection; kept open between requests if `keep` is used.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    kept: Option<BufReader<Timed>>,
}

/// A socket that remembers when the last bytes came.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    last: Rc<Cell<Instant>>,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream.read(buffer);
        self.last.set(Instant::now());
        length
    }
}

/// One server-sent event.
#[derive(Debug, Default)]
pub struct Event {
    /// `event:` field.
    pub name: String,
    /// `data:` field.
    pub data: Vec<u8>,
}

impl Event {
    /// The data as JSON.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.data)?)
    }
}

/// The answer to a request whose events are being read.
pub struct Events {
    body: BufReader<Body>,
    last: Rc<Cell<Instant>>,
    line: Vec<u8>,
    /// When the request was sent (or its connection begun, if it needed a new one).
    pub sent: Instant,
}

impl Events {
    /// The next event and when its last bytes came; `None` at the end.
    pub fn next(&mut self, event: &mut Event) -> Result<Option<Instant>> {
        event.name.clear();
        event.data.clear();
        loop {
            self.line.clear();
            if self.body.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            let line = self.line.strip_suffix(b"\n").context("the stream broke off in a line")?;
            if let Some(data) = line.strip_prefix(b"data:") {
                event.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            } else if let Some(name) = line.strip_prefix(b"event:") {
                event.name.push_str(std::str::from_utf8(name)?.trim());
            } else if line.is_empty() && !event.name.is_empty() {
                return Ok(Some(self.last.get()));
            }
        }
    }
}

/// Body in chunks, or of a known length.
struct Body {
    inner: BufReader<Timed>,
    chunked: bool,
    remaining: usize,
    done: bool,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let broken = || std::io::Error::other("bad chunk");
        if self.done {
            return Ok(0);
        }
        if self.remaining == 0 && self.chunked {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            self.remaining = usize::from_str_radix(line.trim_end(), 16).map_err(|_| broken())?;
            if self.remaining == 0 {
                self.inner.read_line(&mut line)?;
                self.done = true;
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.remaining);
        let length = self.inner.read(&mut buffer[..wanted])?;
        self.remaining -= length;
        if self.remaining == 0 && self.chunked {
            let mut end = [0; 2];
            self.inner.read_exact(&mut end)?;
        }
        self.done = length == 0 && wanted > 0 || (self.remaining == 0 && !self.chunked);
        Ok(length)
    }
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), kept: None }
    }

    /// Connects now, so that the next request does not have to.
    pub fn connect(&mut self) -> Result<()> {
        if self.kept.is_none() {
            self.kept = Some(self.open()?);
        }
        Ok(())
    }

    fn open(&self) -> Result<BufReader<Timed>> {
        let stream = UnixStream::connect(&self.socket).context("connect to the daemon")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let timed = Timed { stream, last: Rc::new(Cell::new(Instant::now())) };
        Ok(BufReader::with_capacity(256 * 1024, timed))
    }

    fn exchange(&mut self, request: &[u8]) -> Result<(u16, Body, Rc<Cell<Instant>>, Instant)> {
        let sent = Instant::now();
        let mut connection = match self.kept.take() {
            Some(connection) => connection,
            None => self.open()?,
        };
        connection.get_mut().stream.write_all(request)?;
        let last = Rc::clone(&connection.get_ref().last);
        let mut line = String::new();
        connection.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP answer")?;
        let (mut chunked, mut remaining) = (false, 0);
        loop {
            line.clear();
            connection.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            match header.split_once(':') {
                None => break,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(("content-length", value)) => remaining = value.trim().parse()?,
                Some(_) => {}
            }
        }
        let done = !chunked && remaining == 0;
        Ok((status, Body { inner: connection, chunked, remaining, done }, last, sent))
    }

    /// Reads a resource.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: thawd\r\n\r\n");
        let (status, mut body, ..) = self.exchange(request.as_bytes())?;
        let mut text = Vec::new();
        body.read_to_end(&mut text)?;
        self.kept = Some(body.inner);
        ensure!(status == 200, "GET {path}: {status} {}", String::from_utf8_lossy(&text));
        Ok(serde_json::from_slice(&text)?)
    }

    /// Starts an execution and returns its events.
    pub fn execute(&mut self, request: &Request) -> Result<Events> {
        self.events(&request.0)
    }

    /// The events of an execution that runs already.
    pub fn follow(&mut self, id: &str) -> Result<Events> {
        self.events(format!("GET /v1/executions/{id}/events HTTP/1.1\r\nHost: thawd\r\n\r\n").as_bytes())
    }

    fn events(&mut self, request: &[u8]) -> Result<Events> {
        let (status, mut body, last, sent) = self.exchange(request)?;
        if status != 200 {
            let mut text = String::new();
            body.read_to_string(&mut text)?;
            bail!("the daemon answered {status}: {text}");
        }
        Ok(Events { body: BufReader::with_capacity(256 * 1024, body), last, line: Vec::new(), sent })
    }

    /// Starts an execution and reads its raw output to the end; `at_first` is called when the first bytes came.
    pub fn bytes(&mut self, request: &RawRequest, at_first: impl FnOnce() -> Result<()>) -> Result<Bytes> {
        let (status, mut body, last, _) = self.exchange(&request.0)?;
        let mut buffer = vec![0; 256 * 1024];
        let (mut count, mut first) = (0, None);
        let mut at_first = Some(at_first);
        loop {
            let length = body.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            if status != 200 {
                bail!("the daemon answered {status}: {}", String::from_utf8_lossy(&buffer[..length]));
            }
            count += length;
            first.get_or_insert(last.get());
            if let Some(at_first) = at_first.take() {
                at_first()?;
            }
        }
        ensure!(body.done && body.remaining == 0, "the stream broke off after {count} bytes");
        Ok(Bytes { count, time: first.map_or(Duration::ZERO, |first| last.get().duration_since(first)) })
    }

    /// Keeps the connection of a stream that was read to its end.
    pub fn keep(&mut self, events: Events) {
        let body = events.body.into_inner();
        if body.done {
            self.kept = Some(body.inner);
        }
    }
}

/// A request for an execution in the form that goes over the socket, made before the clock starts.
#[derive(Debug, Clone)]
pub struct Request(Vec<u8>);

impl Request {
    /// From the JSON body.
    pub fn new(body: &Value) -> Self {
        Self(encode(body, "text/event-stream"))
    }
}

/// The same for its raw output.
#[derive(Debug, Clone)]
pub struct RawRequest(Vec<u8>);

impl RawRequest {
    /// From the JSON body.
    pub fn new(body: &Value) -> Self {
        Self(encode(body, "application/octet-stream"))
    }
}

fn encode(body: &Value, accept: &str) -> Vec<u8> {
    let body = body.to_string();
    let head = format!(
        "POST /v1/executions HTTP/1.1\r\nHost: thawd\r\nContent-Type: application/json\r\n\
         Accept: {accept}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// A raw stream that was read to its end.
#[derive(Debug)]
pub struct Bytes {
    /// How many came.
    pub count: usize,
    /// From the first to the last.
    pub time: Duration,
}

/// A finished execution as its client saw it.
#[derive(Debug)]
pub struct Finished {
    /// From the request being sent to the first byte of standard output.
    pub first_byte: Duration,
    /// From the request being sent to its `exit` event.
    pub exit: Duration,
    /// `warm` or `cold`, as the daemon said.
    pub path: String,
    /// What the daemon measured from the request being parsed to the command being started, microseconds.
    pub claim_us: u64,
    /// Standard output.
    pub stdout: String,
}

/// Runs a command to its end; fails unless it exits with 0 and wrote to standard output.
pub fn run(client: &mut Client, request: &Request, keep: bool) -> Result<Finished> {
    let mut events = client.execute(request)?;
    let mut event = Event::default();
    let (mut first, mut exit) = (None, None);
    let (mut path, mut claim_us, mut stdout) = (String::new(), 0, String::new());
    while let Some(at) = events.next(&mut event)? {
        match event.name.as_str() {
            "stdout" => {
                first.get_or_insert(at);
                stdout.push_str(event.json()?["data"].as_str().unwrap_or_default());
            }
            "started" => {
                let started = event.json()?;
                path = started["path"].as_str().unwrap_or_default().to_owned();
                claim_us = started["claim_us"].as_u64().unwrap_or_default();
            }
            "exit" => {
                exit = Some(at);
                let ended = event.json()?;
                ensure!(ended["code"] == 0, "the command did not succeed: {ended}");
            }
            _ => {}
        }
    }
    let sent = events.sent;
    if keep {
        client.keep(events);
    }
    let first_byte = first.context("the command wrote nothing")?.duration_since(sent);
    let exit = exit.context("the stream ended without an exit")?.duration_since(sent);
    Ok(Finished { first_byte, exit, path, claim_us, stdout })
}
