//! A client that comes back after each break and believes nothing: every event must come once, in order, and no other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use thaw_client::types::{Event, ExecutionRequest};

/// How long a daemon may stay away, and an execution silent.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pause before the next try to reach a daemon.
const AGAIN: Duration = Duration::from_millis(5);

/// What came of an execution.
#[derive(Debug)]
pub struct Seen {
    pub id: String,
    pub events: Vec<(u64, Event)>,
    /// How often it was read on after a break.
    pub reconnections: u64,
}

impl Seen {
    /// Whether it was answered by a CLI that waited for it.
    #[allow(dead_code, reason = "not every test has such CLIs")]
    pub fn is_prestarted(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Started(started) if started.prestarted))
    }
}

/// Why there was none.
#[derive(Debug)]
pub enum NotAccepted {
    /// No answer: it may run or not, but nobody was told.
    Broken,
    /// An answer that says why.
    Refused(u16, String),
}

#[derive(Debug, Clone)]
pub struct Strict {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Strict {
    pub fn new(socket: &Path) -> Self {
        // The library wants one even where nothing is encrypted; another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { http: reqwest::Client::builder().unix_socket(socket).build().unwrap(), socket: socket.to_owned() }
    }

    /// Starts an execution and reads it to its end, however often the daemon goes away meanwhile. Without `stream` it is
    /// started first and read then.
    pub async fn run(&self, request: &ExecutionRequest, stream: bool) -> Result<Seen, NotAccepted> {
        let mut post = self.http.post("http://thawd/v1/executions").json(request);
        if stream {
            post = post.header("accept", "text/event-stream");
        }
        let answer = post.send().await.map_err(|_| NotAccepted::Broken)?;
        let status = answer.status().as_u16();
        if !matches!(status, 200 | 201) {
            return Err(NotAccepted::Refused(status, answer.text().await.unwrap_or_default()));
        }
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let id = location.rsplit('/').next().unwrap().to_owned();
        Ok(self.follow(&id, stream.then_some(answer)).await)
    }

    /// Reads an execution to its end, however often the daemon goes away meanwhile; `body` is what is read already.
    pub async fn follow(&self, id: &str, mut body: Option<reqwest::Response>) -> Seen {
        let mut seen = Seen { id: id.to_owned(), events: Vec::new(), reconnections: 0 };
        let begun = Instant::now();
        loop {
            if let Some(answer) = body.take()
                && read(answer, &mut seen).await
            {
                return seen;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{} at {} has no end: {:?}",
                seen.id,
                self.socket.display(),
                seen.events.last()
            );
            tokio::time::sleep(AGAIN).await;
            let url = format!("http://thawd/v1/executions/{}/events", seen.id);
            let last = seen.events.last().map_or(0, |(last, _)| *last);
            let again = self.http.get(url).header("last-event-id", last).send().await;
            if let Ok(answer) = again {
                let status = answer.status();
                assert!(status.is_success(), "{} was accepted, and now it is {status}", seen.id);
                seen.reconnections += 1;
                body = Some(answer);
            }
        }
    }
}

/// Reads until the stream breaks; whether the exit has come.
async fn read(answer: reqwest::Response, seen: &mut Seen) -> bool {
    let mut events = answer.bytes_stream().eventsource();
    while let Some(Ok(raw)) = events.next().await {
        let sequence: u64 = raw.id.parse().unwrap();
        let last = seen.events.last().map_or(0, |(last, _)| *last);
        let tagged = format!(r#"{{"event":"{}","data":{}}}"#, raw.event, raw.data);
        let event: Event = serde_json::from_str(&tagged).unwrap_or_else(|error| panic!("{tagged}: {error}"));
        assert!(!matches!(event, Event::Gap(_)), "{}: a gap although all of it fits: {raw:?}", seen.id);
        assert_eq!(sequence, last + 1, "{}: neither lost nor repeated: {raw:?}", seen.id);
        assert!(!matches!(seen.events.last(), Some((_, Event::Exit(_)))), "{}: more after the exit: {raw:?}", seen.id);
        let ended = matches!(event, Event::Exit(_));
        seen.events.push((sequence, event));
        if ended {
            return true;
        }
    }
    false
}
