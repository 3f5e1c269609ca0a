//! An execution's log as Server-Sent Events (WHATWG HTML, section 9.2).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;

use super::ApiError;
use crate::execution::{Numbered, Reader};

/// Events taken from the log at once.
const BATCH: usize = 64;

/// Where to begin: what `Last-Event-ID` names has been seen already.
///
/// # Errors
/// 400 when the header is not a number.
pub fn last_event_id(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(0) };
    value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_last_event_id", "`Last-Event-ID` must be an event's id")
    })
}

/// The stream; it ends after the `exit` event. While it exists, it counts as a reader.
pub fn stream(reader: Reader, after: u64, heartbeat: Duration) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let state = (reader, after, VecDeque::<Numbered>::new());
    let events = futures_util::stream::unfold(state, |(reader, mut after, mut waiting)| async move {
        if waiting.is_empty() {
            waiting = reader.next(after, BATCH).await.into();
        }
        let next = waiting.pop_front()?;
        after = next.sequence;
        // The data is JSON on one line and the name is ours: nothing can break out of the frame.
        let event = Event::default().event(next.event.name).id(next.sequence.to_string()).data(&*next.event.data);
        Some((Ok(event), (reader, after, waiting)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("heartbeat"))
}
