//! Client of the HTTP API on thawd's Unix socket: one method for each endpoint, and resumable event streams.
//!
//! Used by `thawctl` and by the integration tests. It opens one connection for each request: a Unix socket costs
//! little to connect, and a connection kept idle would only break when the daemon restarts.

mod credentials;
mod egress;
mod error;
mod feed;
mod files;
mod images;
mod logins;
mod sandbox_files;
mod sandboxes;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;

pub use self::error::ClientError;
pub use self::feed::DaemonEvents;
pub use self::logins::LoginEvents;
pub use self::sandbox_files::{Download, LEFT_OUT, Upload};
pub use self::stream::EventStream;
use crate::types::{
    Container, DaemonVersion, Execution, ExecutionFilter, ExecutionRequest, ExecutionStats, Image, List, Page, Pool,
    PoolChange, Problem, Provider,
};

/// Where thawd listens unless it is configured otherwise (design: interfaces).
pub const DEFAULT_SOCKET: &str = "/run/thawd/thawd.sock";

/// Limit for an answer that is not a stream. Such answers come from the daemon's memory within milliseconds; a
/// daemon that needs longer is stuck, and waiting would only hide that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest silence on a stream: four heartbeats of 15 s. After that the connection counts as broken.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a broken stream is resumed in a row without any new event; with the delays of [`EventStream`] that
/// bridges about 9 s, enough for a daemon that restarts.
const RESUME_TRIES: u32 = 8;

/// A handle on one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    socket: Arc<PathBuf>,
    resume_tries: u32,
}

impl Client {
    /// A client of the daemon that listens on `socket`. Connects only when a request is made.
    ///
    /// # Errors
    /// [`ClientError::Protocol`] when the HTTP client cannot be set up, which does not depend on the daemon.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        Self::with_patience(socket, Some(SILENCE_TIMEOUT))
    }

    /// One that waits for an answer for as long as its request takes to be sent.
    fn patient(&self) -> Result<Self, ClientError> {
        Self::with_patience(&self.socket, None)
    }

    fn with_patience(socket: &Path, silence: Option<Duration>) -> Result<Self, ClientError> {
        // There is no TLS on a socket, but reqwest wants it set up, and would read the machine's authorities for it.
        let tls = crate::tls::client_config().map_err(|e| ClientError::Protocol(format!("cannot set up TLS: {e}")))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(socket)
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("thawctl/", env!("CARGO_PKG_VERSION")));
        let http = silence.into_iter().fold(http, reqwest::ClientBuilder::read_timeout);
        let http = http.build().map_err(|e| ClientError::Protocol(format!("cannot set up the HTTP client: {e}")))?;
        Ok(Self { http, socket: Arc::new(socket.to_path_buf()), resume_tries: RESUME_TRIES })
    }

    /// Sets how often in a row a broken stream is resumed without any new event; 0 means never.
    #[must_use]
    pub fn with_resume_tries(mut self, tries: u32) -> Self {
        self.resume_tries = tries;
        self
    }

    /// The socket that this client connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts an execution and streams its events in the same response.
    ///
    /// # Errors
    /// Those of [`ClientError`]; nothing was started when a [`ClientError::Problem`] comes back.
    pub async fn execute_stream(&self, request: &ExecutionRequest) -> Result<EventStream, ClientError> {
        self.stream_once(request, None).await
    }

    /// The same, and made again with the same key it streams the same execution from its first event on.
    ///
    /// # Errors
    /// As [`Self::execute_stream`].
    pub async fn execute_stream_once(&self, request: &ExecutionRequest, key: &str) -> Result<EventStream, ClientError> {
        self.stream_once(request, Some(key)).await
    }

    async fn stream_once(&self, request: &ExecutionRequest, key: Option<&str>) -> Result<EventStream, ClientError> {
        let request = self.request(Method::POST, "/v1/executions").header(ACCEPT, stream::MEDIA_TYPE).json(request);
        let response = self.send(with_key(request, key)).await?;
        let id = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).and_then(id_of_location);
        EventStream::opened(self.clone(), id, None, response)
    }

    /// Starts an execution and returns at once; its events are read with [`Client::events`].
    ///
    /// # Errors
    /// Those of [`ClientError`]; nothing was started when a [`ClientError::Problem`] comes back.
    pub async fn create(&self, request: &ExecutionRequest) -> Result<Execution, ClientError> {
        self.create_with(request, None).await
    }

    /// The same, and made again with the same key it starts nothing and returns the same execution.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_once(&self, request: &ExecutionRequest, key: &str) -> Result<Execution, ClientError> {
        self.create_with(request, Some(key)).await
    }

    async fn create_with(&self, request: &ExecutionRequest, key: Option<&str>) -> Result<Execution, ClientError> {
        // The daemon answers when it runs, and it may have to wait for a container first.
        let timeout = ANSWER_TIMEOUT + Duration::from_millis(request.queue_timeout_ms.unwrap_or_default());
        self.json(with_key(self.request(Method::POST, "/v1/executions").timeout(timeout).json(request), key)).await
    }

    /// Streams the events of an execution: all that are kept, or those after `last_event_id`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn events(&self, id: &str, last_event_id: Option<u64>) -> Result<EventStream, ClientError> {
        let response = self.open_events(id, last_event_id).await?;
        EventStream::opened(self.clone(), Some(id.to_owned()), last_event_id, response)
    }

    async fn open_events(&self, id: &str, last_event_id: Option<u64>) -> Result<Response, ClientError> {
        let path = format!("{}/events", execution_path(id)?);
        let mut request = self.request(Method::GET, &path).header(ACCEPT, stream::MEDIA_TYPE);
        if let Some(last) = last_event_id {
            request = request.header("last-event-id", last);
        }
        self.send(request).await
    }

    /// One execution.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn execution(&self, id: &str) -> Result<Execution, ClientError> {
        self.get(&execution_path(id)?).await
    }

    /// One execution, once it has ended or `wait` is over; the daemon takes a wait of up to five minutes.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn execution_after(&self, id: &str, wait: Duration) -> Result<Execution, ClientError> {
        let path = execution_path(id)?;
        let request = self.request(Method::GET, &path).query(&[("wait", format!("{}ms", wait.as_millis()))]);
        self.json(request.timeout(ANSWER_TIMEOUT + wait)).await
    }

    /// All executions that the daemon remembers, newest first.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn executions(&self) -> Result<Vec<Execution>, ClientError> {
        self.list("/v1/executions").await
    }

    /// The executions that fit, newest first, as `T`: one page of them if the filter has a limit.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn executions_where<T: DeserializeOwned>(
        &self,
        filter: &ExecutionFilter,
    ) -> Result<Page<T>, ClientError> {
        let request = self.request(Method::GET, "/v1/executions").query(&filter.query());
        self.json(request.timeout(ANSWER_TIMEOUT)).await
    }

    /// What an execution uses now, or has used.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn stats(&self, id: &str) -> Result<ExecutionStats, ClientError> {
        self.get(&format!("{}/stats", execution_path(id)?)).await
    }

    /// Deletes an execution that has ended, with all that it has written.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn delete(&self, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &execution_path(id)?).timeout(ANSWER_TIMEOUT);
        self.send(request).await.map(drop)
    }

    /// What happens in the daemon from now on, or from what `query` says (`since`); `kind`, `user`, `provider` and
    /// `execution` choose from it.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn daemon_events(&self, query: Vec<(String, String)>) -> Result<DaemonEvents, ClientError> {
        DaemonEvents::open(self.clone(), query).await
    }

    /// What the daemon is, can and allows.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn version(&self) -> Result<DaemonVersion, ClientError> {
        self.get("/v1/version").await
    }

    /// Asks the daemon to end an execution. Its stream still ends with an `exit` event.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn cancel(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("{}/cancel", execution_path(id)?);
        self.send(self.request(Method::POST, &path).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// The pools, one for each provider.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn pools(&self) -> Result<Vec<Pool>, ClientError> {
        self.list("/v1/pools").await
    }

    /// Changes how many warm containers a provider has; returns its pools as they are then, as `T`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn change_pool<T: DeserializeOwned>(
        &self,
        provider: &str,
        change: &PoolChange,
    ) -> Result<Vec<T>, ClientError> {
        if !is_id(provider) {
            let problem = format!("{provider:?} is no provider name; `thawctl providers` lists them");
            return Err(ClientError::Protocol(problem));
        }
        let path = format!("/v1/pools/{provider}");
        let request = self.request(Method::PUT, &path).timeout(ANSWER_TIMEOUT).json(change);
        self.json::<List<T>>(request).await.map(|list| list.items)
    }

    /// The containers that exist now.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn containers(&self) -> Result<Vec<Container>, ClientError> {
        self.list("/v1/containers").await
    }

    /// The providers that the daemon has manifests of.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn providers(&self) -> Result<Vec<Provider>, ClientError> {
        self.list("/v1/providers").await
    }

    /// The images in the daemon's store.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.list("/v1/images").await
    }

    /// Succeeds when the daemon is alive.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn healthz(&self) -> Result<(), ClientError> {
        self.text("/healthz").await.map(drop)
    }

    /// Succeeds when the daemon can serve executions.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn readyz(&self) -> Result<(), ClientError> {
        self.text("/readyz").await.map(drop)
    }

    /// The metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text("/metrics").await
    }

    /// The items of a list endpoint, as `T`; `serde_json::Value` keeps fields that this version does not know.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        self.get::<List<T>>(path).await.map(|list| list.items)
    }

    /// The JSON answer of `GET path`, as `T`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path).timeout(ANSWER_TIMEOUT)).await
    }

    async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(self.request(Method::GET, path).timeout(ANSWER_TIMEOUT)).await?;
        response.text().await.map_err(|e| self.error(e))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let path = response.url().path().to_owned();
        let body = response.bytes().await.map_err(|e| self.error(e))?;
        serde_json::from_slice(&body)
            .map_err(|e| ClientError::Protocol(format!("the daemon's answer at {path} is not the JSON expected: {e}")))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // The host is a formality of HTTP/1.1: the connection goes to the socket.
        self.http.request(method, format!("http://localhost{path}"))
    }

    /// Sends, and turns an answer that is no success into an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.error(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let path = response.url().path().to_owned();
        let is_problem = content_type(&response).starts_with("application/problem+json");
        let body = response.bytes().await.map_err(|e| self.error(e))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if is_problem => Err(ClientError::Problem(Box::new(problem))),
            _ => Err(ClientError::Protocol(format!(
                "the daemon answered {path} with status {status} and no problem document; is a thawd listening there?"
            ))),
        }
    }

    fn error(&self, error: reqwest::Error) -> ClientError {
        ClientError::from_reqwest(error, &self.socket)
    }
}

fn with_key(request: RequestBuilder, key: Option<&str>) -> RequestBuilder {
    match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    }
}

fn content_type(response: &Response) -> &str {
    response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Ids are checked before they become part of a path, so that one with `/` or `?` cannot name another resource.
pub fn execution_path(id: &str) -> Result<String, ClientError> {
    if is_id(id) { Ok(format!("/v1/executions/{id}")) } else { Err(ClientError::BadId(id.to_owned())) }
}

fn id_of_location(location: &str) -> Option<String> {
    location.rsplit('/').next().filter(|id| is_id(id)).map(str::to_owned)
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_name_another_resource() {
        assert_eq!(execution_path("01j-x").unwrap(), "/v1/executions/01j-x");
        for bad in ["", "../pools", "a/b", "a?b", "A", "a%2fb", "ä"] {
            assert!(matches!(execution_path(bad), Err(ClientError::BadId(_))), "{bad}");
        }
    }

    #[test]
    fn the_id_is_read_from_a_location() {
        assert_eq!(id_of_location("/v1/executions/e-1").as_deref(), Some("e-1"));
        assert_eq!(id_of_location("http://localhost/v1/executions/e-1").as_deref(), Some("e-1"));
        assert_eq!(id_of_location("/v1/executions/"), None);
    }
}
