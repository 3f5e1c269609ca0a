//! Events rendered for clients.

use std::sync::Arc;

use thaw_client::types::Event;

/// Name of the last event of a log.
pub const EXIT: &str = "exit";

/// Names of all events that are not output.
pub const NAMES: [&str; 5] = ["queued", "started", "delta", "gap", EXIT];

/// An event rendered for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Name of the event.
    pub name: &'static str,
    /// Its payload as JSON, on one line.
    pub data: Arc<str>,
}

/// A rendered event with its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Sequence number, from 1 without gaps.
    pub sequence: u64,
    /// The event.
    pub event: Rendered,
}

/// Renders an event.
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
