//! Stream of an execution's events, which resumes when the connection breaks.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use eventsource_stream::{Event as RawEvent, EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt};
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;

use super::{Client, ClientError, content_type};
use crate::types::Event;

/// Media type of a stream of events.
pub(super) const MEDIA_TYPE: &str = "text/event-stream";

/// Delay before the first try to resume; doubled for each further one.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay between two tries to resume.
pub(super) const LONGEST_DELAY: Duration = Duration::from_secs(2);

pub(super) type Body = Pin<Box<dyn Stream<Item = Result<RawEvent, EventStreamError<reqwest::Error>>> + Send>>;

/// Events of one execution with their sequence numbers; ends after `exit`.
///
/// When the connection breaks, the stream resumes after the last event seen (`Last-Event-ID`): no event is lost or
/// repeated, and events that the daemon no longer has are replaced by a `gap` event. The stream gives up after a
/// bounded number of tries in a row without a new event.
pub struct EventStream {
    client: Client,
    execution: Option<String>,
    last: Option<u64>,
    body: Option<Body>,
    /// Whether this connection has brought no event yet.
    silent: bool,
    tries: u32,
    cause: String,
    done: bool,
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("execution", &self.execution).field("last", &self.last).finish()
    }
}

impl EventStream {
    pub(super) fn opened(
        client: Client,
        execution: Option<String>,
        last: Option<u64>,
        response: Response,
    ) -> Result<Self, ClientError> {
        let body = body(response)?;
        let done = body.is_none();
        Ok(Self { client, execution, last, body, silent: true, tries: 0, cause: String::new(), done })
    }

    /// Id of the execution: from the answer's `Location`, or from the `started` event.
    pub fn execution(&self) -> Option<&str> {
        self.execution.as_deref()
    }

    /// Sequence number of the last event seen.
    pub fn last_event_id(&self) -> Option<u64> {
        self.last
    }

    /// The next event and its sequence number; `None` after `exit`. Dropping the future loses no event.
    ///
    /// # Errors
    /// Those of [`ClientError`]; the stream ends after an error.
    pub async fn next(&mut self) -> Option<Result<(u64, Event), ClientError>> {
        if self.done {
            return None;
        }
        let result = self.advance().await.transpose();
        self.done = matches!(result, None | Some(Err(_) | Ok((_, Event::Exit(_)))));
        result
    }

    async fn advance(&mut self) -> Result<Option<(u64, Event)>, ClientError> {
        loop {
            let Some(body) = self.body.as_mut() else {
                if !self.resume().await? {
                    return Ok(None);
                }
                continue;
            };
            match body.next().await {
                Some(Ok(raw)) => {
                    if let Some(item) = self.accept(&raw)? {
                        return Ok(Some(item));
                    }
                }
                // A connection that is cut within an event leaves text that cannot be parsed.
                Some(Err(error)) => self.broken(error.to_string()),
                None => {
                    // If the stream was opened after the `exit` event, no more events come.
                    let opened_behind = if self.silent { self.last.and(self.execution.clone()) } else { None };
                    if let Some(id) = opened_behind
                        && has_ended(self.client.clone(), id).await
                    {
                        return Ok(None);
                    }
                    self.broken("the stream ended before the exit event".to_owned());
                }
            }
        }
    }

    /// Records an event; returns `None` for an event that was seen before or that this version does not know.
    fn accept(&mut self, raw: &RawEvent) -> Result<Option<(u64, Event)>, ClientError> {
        let bad = |what: String| ClientError::Protocol(format!("the daemon sent an event that {what}"));
        let event = parse(&raw.event, &raw.data).map_err(|e| bad(format!("cannot be read ({}): {e}", raw.event)))?;
        let id: u64 = match (raw.id.parse(), &event) {
            (Ok(id), _) => id,
            (Err(_), None) => return Ok(None),
            (Err(_), Some(_)) => return Err(bad(format!("has no sequence number but {:?}", raw.id))),
        };
        self.silent = false;
        if self.last.is_some_and(|last| id <= last) {
            return Ok(None);
        }
        self.last = Some(id);
        self.tries = 0;
        if let (Some(Event::Started(started)), None) = (&event, &self.execution) {
            self.execution = Some(started.execution.clone());
        }
        Ok(event.map(|event| (id, event)))
    }

    fn broken(&mut self, cause: String) {
        self.body = None;
        self.cause = cause;
    }

    /// Opens the stream again. Counts the try before it waits, so that a caller who drops the future and returns cannot
    /// extend the total time. Returns whether more events can follow.
    async fn resume(&mut self) -> Result<bool, ClientError> {
        let Some(id) = self.execution.clone() else {
            return Err(ClientError::Broken(format!("{}, and the execution's id is not known yet", self.cause)));
        };
        if self.tries >= self.client.resume_tries {
            let message = format!("{}; gave up after {} tries to resume execution {id}", self.cause, self.tries);
            return Err(ClientError::Broken(message));
        }
        let delay = FIRST_DELAY.saturating_mul(1 << self.tries.min(8)).min(LONGEST_DELAY);
        self.tries += 1;
        tokio::time::sleep(delay).await;
        match self.client.open_events(&id, self.last).await.and_then(body) {
            Ok(None) => return Ok(false),
            Ok(body) => (self.body, self.silent) = (body, true),
            Err(error) if error.is_retryable() => self.cause = error.to_string(),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

/// Whether the execution has ended, if the daemon answers.
async fn has_ended(client: Client, id: String) -> bool {
    client.execution(&id).await.is_ok_and(|execution| execution.exit.is_some())
}

/// The body of the stream; `None` if the execution has ended and all its events have been seen.
pub(super) fn body(response: Response) -> Result<Option<Body>, ClientError> {
    if response.status() == StatusCode::NO_CONTENT {
        return Ok(None);
    }
    if !content_type(&response).starts_with(MEDIA_TYPE) {
        return Err(ClientError::Protocol(format!(
            "the daemon answered {} instead of a stream of events",
            content_type(&response)
        )));
    }
    Ok(Some(Box::pin(response.bytes_stream().eventsource())))
}

/// The event of this name; `None` for a name that this version does not know.
fn parse(name: &str, data: &str) -> Result<Option<Event>, serde_json::Error> {
    fn payload<T: DeserializeOwned>(
        data: &str,
        event: impl FnOnce(T) -> Event,
    ) -> Result<Option<Event>, serde_json::Error> {
        serde_json::from_str(data).map(|payload| Some(event(payload)))
    }
    match name {
        "queued" => payload(data, Event::Queued),
        "started" => payload(data, Event::Started),
        "stdout" => payload(data, Event::Stdout),
        "stderr" => payload(data, Event::Stderr),
        "delta" => payload(data, Event::Delta),
        "gap" => payload(data, Event::Gap),
        "exit" => payload(data, Event::Exit),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_read_as_serde_writes_it() {
        let exit = r#"{"code":0,"reason":"exited","success":true,"duration_ms":1,"cpu_ms":1,"memory_peak_bytes":1}"#;
        let started = r#"{"execution":"e","container":"c","path":"warm","claim_us":540}"#;
        let wire = [
            ("queued", r#"{"position":3}"#),
            ("started", started),
            ("stdout", r#"{"data":"a"}"#),
            ("stderr", r#"{"data":"/w==","encoding":"base64"}"#),
            ("delta", r#"{"text":"201"}"#),
            ("gap", r#"{"from":1,"to":4}"#),
            ("exit", exit),
        ];
        for (name, data) in wire {
            let event = parse(name, data).unwrap().unwrap();
            let tagged = serde_json::to_value(&event).unwrap();
            assert_eq!(tagged["event"], name);
            assert_eq!(tagged["data"], serde_json::from_str::<serde_json::Value>(data).unwrap(), "{name}");
        }
    }

    #[test]
    fn unknown_names_are_skipped_and_unknown_fields_ignored() {
        assert!(parse("hello", "anything").unwrap().is_none());
        assert!(parse("delta", r#"{"text":"a","more":1}"#).unwrap().is_some());
        assert!(parse("delta", r#"{"txet":"a"}"#).is_err());
    }
}
