//! An execution's log as Server-Sent Events (WHATWG HTML, section 9.2).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;

use super::ApiError;
use crate::execution::{Numbered, Reader};

/// Media type of an event stream.
pub const MEDIA_TYPE: &str = "text/event-stream";

/// After which time a client that lost its connection is to come back.
pub const RETRY: Duration = Duration::from_secs(1);

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
    let state = (reader, after, VecDeque::<Numbered>::new(), true);
    let events = futures_util::stream::unfold(state, |(reader, mut after, mut waiting, is_first)| async move {
        if waiting.is_empty() {
            waiting = reader.next(after, BATCH).await.into();
        }
        let next = waiting.pop_front()?;
        after = next.sequence;
        // The data is JSON on one line and the name is ours: nothing can break out of the frame.
        let event = Event::default().event(next.event.name).id(next.sequence.to_string()).data(&*next.event.data);
        let event = if is_first { event.retry(RETRY) } else { event };
        Some((Ok(event), (reader, after, waiting, false)))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("heartbeat"))
}
