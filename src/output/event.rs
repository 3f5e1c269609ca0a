//! Events in the form in which they go out.

use std::sync::Arc;

use thaw_client::types::Event;

/// Name of the last event.
pub const EXIT: &str = "exit";

/// The names of all that are not output.
pub const NAMES: [&str; 5] = ["queued", "started", "delta", "gap", EXIT];

/// An event in the form in which it goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Name of the event.
    pub name: &'static str,
    /// Its payload as JSON, on one line.
    pub data: Arc<str>,
}

/// An event with its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Counts from 1 without holes.
    pub sequence: u64,
    /// The event.
    pub event: Rendered,
}

/// As it goes out.
pub fn render(event: &Event) -> Rendered {
    let (name, data) = match event {
        Event::Queued(data) => ("queued", serde_json::to_string(data)),
        Event::Started(data) => ("started", serde_json::to_string(data)),
        Event::Stdout(data) => ("stdout", serde_json::to_string(data)),
        Event::Stderr(data) => ("stderr", serde_json::to_string(data)),
        Event::Delta(data) => ("delta", serde_json::to_string(data)),
        Event::Gap(data) => ("gap", serde_json::to_string(data)),
        Event::Exit(data) => (EXIT, serde_json::to_string(data)),
    };
    Rendered { name, data: data.expect("strings and numbers always serialize").into() }
}
