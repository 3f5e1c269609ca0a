//! `/v1/events`: what happens in the daemon, as Server-Sent Events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};

use super::lookup::is_id;
use super::{ApiError, events, filter};
use crate::feed::{Wanted, gap};
use thaw_client::time::Timestamp;
use thaw_client::types::{DaemonEvent, DaemonEventKind, Problem};

/// Query parameters of the stream, as they are described.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only; `parse` takes each by itself, for the sake of its errors")]
pub struct Parameters {
    /// Only these kinds, with commas between them: `execution_started,execution_exited`.
    #[param(pattern = "^[a-z_]+(,[a-z_]+)*$")]
    kind: Option<String>,
    /// Only this user's executions.
    #[param(pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$", max_length = 128)]
    user: Option<String>,
    /// Only of this provider.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 32)]
    provider: Option<String>,
    /// Only of this execution.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 64)]
    execution: Option<String>,
    /// Begin with what is kept of then or later (RFC 3339), instead of what is to come. Not with `Last-Event-ID`.
    #[param(format = DateTime, value_type = Option<String>)]
    since: Option<String>,
}

fn wrong(detail: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
}

fn parse(query: &str) -> Result<(Wanted, Option<Timestamp>), ApiError> {
    let (mut wanted, mut since) = (Wanted::default(), None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "kind" => {
                for name in value.split(',') {
                    let kind = DaemonEventKind::ALL.into_iter().find(|kind| kind.name() == name);
                    let known = || DaemonEventKind::ALL.map(DaemonEventKind::name).join(", ");
                    wanted.kinds.push(kind.ok_or_else(|| wrong(format!("`kind` must be of {}", known())))?);
                }
            }
            "user" => wanted.user = Some(filter::user(&value)?),
            "provider" => wanted.provider = Some(filter::provider(&value)?),
            "execution" if !is_id(&value) => return Err(wrong("`execution` must be an id".to_owned())),
            "execution" => wanted.execution = Some(value.into_owned()),
            _ => {
                let hint = "`since` is no time (a `+` in it has to be written %2B)";
                since = Some(value.parse().map_err(|error| wrong(format!("{hint}: {error}")))?);
            }
        }
    }
    Ok((wanted, since))
}

/// Streams what happens in the daemon: executions that wait, start, end and are deleted, and pools that change.
///
/// It begins with what happens from now on, or behind `Last-Event-ID`, or with what is kept `since` a time. The last
/// `api.events_kept` events are kept in memory. When events are missing that a client should have seen, a `gap` comes in
/// their place, also after a restart of the daemon: then list again what you watch. The stream ends when the daemon stops.
#[utoipa::path(get, path = "/v1/events", operation_id = "streamEvents", tag = "daemon", params(Parameters,
    ("Last-Event-ID" = Option<String>, Header, description = "id of the last event seen", pattern = "^[0-9a-z]{26}-[0-9]+$")),
    responses((status = 200, content_type = "text/event-stream", body = String, description = "the events; each has a `DaemonEvent` as its data"),
        (status = 400, body = Problem)))]
pub async fn stream(
    State(state): State<Arc<super::State>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (wanted, since) = parse(&query.unwrap_or_default())?;
    let feed = Arc::clone(&state.feed);
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default().to_owned());
    let (from, missed) = match (&last, since) {
        (Some(_), Some(_)) => return Err(wrong("give either `since` or `Last-Event-ID`".to_owned())),
        (Some(id), None) => feed.behind(id).ok_or_else(|| {
            let detail = "`Last-Event-ID` must be the id of an event of this stream";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_last_event_id", detail)
        })?,
        (None, Some(since)) => (feed.since(since), false),
        (None, None) => (feed.end(), false),
    };
    let first = missed.then(|| (from, gap()));
    let followed = futures_util::stream::unfold((feed, from, wanted, first, true), |at| async move {
        let (feed, after, wanted, first, is_first) = at;
        let (position, event) = match first {
            Some(first) => first,
            None => feed.next(after, &wanted).await?,
        };
        let sse = render(feed.id(position), &event);
        let sse = if is_first { sse.retry(events::RETRY) } else { sse };
        Some((Ok::<_, Infallible>(sse), (feed, position, wanted, None, false)))
    });
    Ok(Sse::new(followed).keep_alive(KeepAlive::new().interval(state.heartbeat).text("heartbeat")).into_response())
}

fn render(id: String, event: &DaemonEvent) -> Event {
    // Plain data on one line: nothing can break out of the frame.
    let data = serde_json::to_string(event).unwrap_or_default();
    Event::default().event(event.kind.name()).id(id).data(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_and_mistakes_are_named() {
        let (wanted, since) = parse("kind=execution_exited,gap&user=a%7Cb&provider=p&execution=e-1").unwrap();
        assert_eq!(wanted.kinds, [DaemonEventKind::ExecutionExited, DaemonEventKind::Gap]);
        assert_eq!((wanted.user.as_deref(), wanted.provider.as_deref()), (Some("a|b"), Some("p")));
        assert!(since.is_none() && parse("since=2026-11-30T02:15:00Z").unwrap().1.is_some());
        for (bad, about) in
            [("kind=exit", "execution_exited"), ("kind=", "`kind`"), ("user=", "`user`"), ("since=now", "RFC 3339")]
        {
            let problem = parse(bad).unwrap_err().problem();
            assert_eq!(problem.code, "invalid_query");
            assert!(problem.detail.contains(about), "{}", problem.detail);
        }
    }
}
