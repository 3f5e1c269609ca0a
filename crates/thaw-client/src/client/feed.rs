//! What happens in the daemon as a whole, resumed when the connection breaks.

use std::fmt;

use eventsource_stream::Event as RawEvent;
use futures_util::StreamExt;
use reqwest::Method;
use reqwest::header::ACCEPT;

use super::stream::{Body, FIRST_DELAY, LONGEST_DELAY, MEDIA_TYPE, body};
use super::{Client, ClientError};
use crate::types::DaemonEvent;

/// The events of a daemon, one after the other, with no end but that of the connection to it.
///
/// When the connection breaks, the stream goes on after the last event seen; a `gap` event stands for what the daemon no
/// longer has, also when it was another daemon.
pub struct DaemonEvents {
    client: Client,
    query: Vec<(String, String)>,
    last: Option<String>,
    body: Option<Body>,
    tries: u32,
}

impl fmt::Debug for DaemonEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaemonEvents").field("query", &self.query).field("last", &self.last).finish_non_exhaustive()
    }
}

impl DaemonEvents {
    pub(super) async fn open(client: Client, query: Vec<(String, String)>) -> Result<Self, ClientError> {
        let mut this = Self { client, query, last: None, body: None, tries: 0 };
        this.connect().await?;
        Ok(this)
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        // Where to go on takes the place of where to begin.
        let query = self.query.iter().filter(|(name, _)| self.last.is_none() || name != "since");
        let query: Vec<_> = query.collect();
        let mut request = self.client.request(Method::GET, "/v1/events").header(ACCEPT, MEDIA_TYPE).query(&query);
        if let Some(last) = &self.last {
            request = request.header("last-event-id", last);
        }
        self.body = body(self.client.send(request).await?)?;
        Ok(())
    }

    /// The next event, as `T`; kinds that this version does not know are left out.
    ///
    /// # Errors
    /// Those of [`ClientError`]; the stream is over after one.
    pub async fn next(&mut self) -> Result<DaemonEvent, ClientError> {
        loop {
            let cause = match self.body.as_mut() {
                None => "the connection is closed".to_owned(),
                Some(body) => match body.next().await {
                    Some(Ok(RawEvent { id, data, .. })) => {
                        (self.last, self.tries) = (Some(id), 0);
                        match serde_json::from_str(&data) {
                            Ok(event) => return Ok(event),
                            Err(_) => continue,
                        }
                    }
                    Some(Err(error)) => error.to_string(),
                    None => "the daemon ended the stream".to_owned(),
                },
            };
            self.body = None;
            self.resume(cause).await?;
        }
    }

    async fn resume(&mut self, cause: String) -> Result<(), ClientError> {
        if self.tries >= self.client.resume_tries {
            let message = format!("{cause}; gave up after {} tries to follow the daemon's events", self.tries);
            return Err(ClientError::Broken(message));
        }
        let delay = FIRST_DELAY.saturating_mul(1 << self.tries.min(8)).min(LONGEST_DELAY);
        self.tries += 1;
        tokio::time::sleep(delay).await;
        match self.connect().await {
            Err(error) if !error.is_retryable() => Err(error),
            _ => Ok(()),
        }
    }
}
