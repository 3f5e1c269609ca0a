//! Server-sent events: framing, pacing, and the cut in the middle.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

/// One event of a scripted stream.
#[derive(Debug, Clone)]
pub struct Frame {
    bytes: Bytes,
    /// Whether the pause between tokens comes before it.
    is_token: bool,
}

impl Frame {
    /// An event with a name, as OpenAI and Anthropic send them: the name is the payload's `type`.
    pub fn named(payload: &Value) -> Self {
        let name = payload["type"].as_str().unwrap_or("message");
        Self { bytes: Bytes::from(format!("event: {name}\ndata: {payload}\n\n")), is_token: false }
    }

    /// An event without a name, as Google sends them.
    pub fn unnamed(payload: &Value) -> Self {
        Self { bytes: Bytes::from(format!("data: {payload}\r\n\r\n")), is_token: false }
    }

    /// Marks the event as one that carries a token.
    pub fn token(self) -> Self {
        Self { is_token: true, ..self }
    }
}

/// Streams `frames`, pausing `delay` before each token. With `cut`, the connection breaks after the first half of
/// the tokens (at least one).
pub fn respond(mut frames: Vec<Frame>, delay: Duration, cut: bool) -> Response {
    if cut {
        let tokens = frames.iter().filter(|frame| frame.is_token).count();
        let keep = frames.iter().scan(0, |seen, frame| {
            *seen += usize::from(frame.is_token);
            Some(*seen)
        });
        let last = keep.take_while(|&seen| seen <= (tokens / 2).max(1)).count();
        frames.truncate(last);
    }
    let events = stream::iter(frames).then(move |frame| async move {
        if frame.is_token {
            tokio::time::sleep(delay).await;
        }
        Ok::<_, Infallible>(frame.bytes)
    });
    let body = if cut {
        let broken = stream::once(async { Err(std::io::Error::other("cut on request")) });
        Body::from_stream(events.map(|event| event.map_err(std::io::Error::other)).chain(broken))
    } else {
        Body::from_stream(events)
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-request-id", HeaderValue::from_static("req_offline"));
    headers.insert("request-id", HeaderValue::from_static("req_offline"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    fn script() -> Vec<Frame> {
        vec![
            Frame::named(&json!({"type": "start"})),
            Frame::named(&json!({"type": "delta", "text": "20"})).token(),
            Frame::named(&json!({"type": "delta", "text": "1"})).token(),
            Frame::named(&json!({"type": "end"})),
        ]
    }

    #[tokio::test]
    async fn frames_arrive_in_order() {
        let body = respond(script(), Duration::ZERO, false).into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        assert_eq!(text.matches("event: delta\ndata: {").count(), 2);
        assert!(text.starts_with("event: start\ndata: {\"type\":\"start\"}\n\n"));
        assert!(text.ends_with("event: end\ndata: {\"type\":\"end\"}\n\n"));
        assert_eq!(Frame::unnamed(&json!({})).bytes, "data: {}\r\n\r\n");
    }

    #[tokio::test]
    async fn a_cut_stream_breaks_after_half_of_the_tokens() {
        let mut body = respond(script(), Duration::ZERO, true).into_body();
        let mut seen = String::new();
        let error = loop {
            match body.frame().await.expect("the stream must break, not end") {
                Ok(frame) => seen.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap()),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("cut"));
        assert!(seen.contains("\"20\"") && !seen.contains("\"1\"") && !seen.contains("end"), "{seen}");
    }

    #[tokio::test]
    async fn the_delay_comes_before_each_token() {
        let started = std::time::Instant::now();
        respond(script(), Duration::from_millis(40), false).into_body().collect().await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(80), "two tokens took {:?}", started.elapsed());
    }
}
