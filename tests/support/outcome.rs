//! What an execution said, from `started` to `exit`.

use base64::Engine;
use thaw_client::client::EventStream;
use thaw_client::types::{Encoding, Event, ExecutionRequest, Exit, ExitReason, Output, Started};

/// A request of the provider `test` to run `argv`.
pub fn command<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> ExecutionRequest {
    ExecutionRequest {
        provider: "test".to_owned(),
        user: "u1".to_owned(),
        command: Some(argv.into_iter().map(|argument| argument.as_ref().to_owned()).collect()),
        ..ExecutionRequest::default()
    }
}

/// A request of the provider `test` to run a shell script.
pub fn shell(script: &str) -> ExecutionRequest {
    command(["/bin/sh", "-c", script])
}

/// A request to ask `provider` something.
pub fn prompt(provider: &str, text: &str) -> ExecutionRequest {
    ExecutionRequest {
        provider: provider.to_owned(),
        user: "u1".to_owned(),
        prompt: Some(text.to_owned()),
        ..ExecutionRequest::default()
    }
}

/// The whole of an execution.
#[derive(Debug)]
pub struct Outcome {
    pub events: Vec<(u64, Event)>,
    pub started: Started,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Exit,
}

impl Outcome {
    /// Reads a stream from its beginning to its end. Asserts what must hold for each: numbered from 1 without holes
    /// or repetitions (but for announced gaps), `started` first (but for `queued`), `exit` last and once.
    pub async fn of(stream: EventStream) -> Self {
        Self::from_events(collect(stream).await)
    }

    /// The same for events that were read already.
    pub fn from_events(events: Vec<(u64, Event)>) -> Self {
        let mut expected = 1;
        for (sequence, event) in &events {
            if let Event::Gap(gap) = event {
                assert_eq!((gap.from, gap.to), (expected, *sequence), "a gap says what is missing");
            } else {
                assert_eq!(*sequence, expected, "numbered without holes");
            }
            expected = sequence + 1;
        }
        let first = events.iter().find(|(_, event)| !matches!(event, Event::Queued(_)));
        let Some((_, Event::Started(started))) = first else { panic!("not started first: {events:?}") };
        let exits = events.iter().filter(|(_, event)| matches!(event, Event::Exit(_))).count();
        assert_eq!(exits, 1, "exactly one exit");
        let Some((_, Event::Exit(exit))) = events.last() else { panic!("exit is not last: {events:?}") };
        let (started, exit) = (started.clone(), exit.clone());
        let (stdout, stderr) = (bytes(&events, false), bytes(&events, true));
        Self { events, started, stdout, stderr, exit }
    }

    /// What it wrote to its standard output, which must be text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// What it wrote to its standard error, which must be text.
    pub fn errors(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }

    /// The same, asserting that it exited with `code`.
    pub fn exited(self, code: i32) -> Self {
        let exit = &self.exit;
        assert_eq!((exit.reason, exit.code), (ExitReason::Exited, Some(code)), "{:?} {}", exit, self.report());
        self
    }

    /// The same, asserting why it ended.
    pub fn ended(self, reason: ExitReason) -> Self {
        assert_eq!(self.exit.reason, reason, "{:?} {}", self.exit, self.report());
        self
    }

    fn report(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        format!("stdout: {}\nstderr: {}", text(&self.stdout), text(&self.stderr))
    }
}

/// Reads all events of a stream.
pub async fn collect(mut stream: EventStream) -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event.unwrap());
    }
    events
}

/// The bytes of all pieces of one stream, in order.
pub fn bytes(events: &[(u64, Event)], of_stderr: bool) -> Vec<u8> {
    let mut all = Vec::new();
    for (_, event) in events {
        match event {
            Event::Stdout(output) if !of_stderr => all.extend(decode(output)),
            Event::Stderr(output) if of_stderr => all.extend(decode(output)),
            _ => {}
        }
    }
    all
}

fn decode(output: &Output) -> Vec<u8> {
    match output.encoding {
        None => output.data.clone().into_bytes(),
        Some(Encoding::Base64) => base64::engine::general_purpose::STANDARD.decode(&output.data).unwrap(),
    }
}
