//! The metrics' own listener (`metrics.listen`): whoever reaches its address may ask, so connections are few, short and
//! cheap, and what they read is read once for all of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request};
use axum::response::Response;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::server::{ACCEPT_PAUSE, BUFFER_BYTES, MAX_HEADER_BYTES};
use super::stall::Stalling;
use super::{ApiError, metrics};

/// How it serves; see `[metrics]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct MetricsLimits {
    /// Connections at the same time; further ones wait in the kernel.
    pub connections: usize,
    /// How long a client may be silent, or take nothing of its answer.
    pub patience: Duration,
    /// For how long an answer is given again.
    pub max_age: Duration,
}

/// The last answer, for all who ask.
struct Scrapes {
    state: Arc<super::State>,
    max_age: Duration,
    last: Mutex<Option<(Instant, Arc<str>)>>,
}

impl Scrapes {
    /// One at a time reads the containers' files; the others wait and get the same.
    async fn read(&self) -> Result<Arc<str>, ApiError> {
        let mut last = self.last.lock().await;
        if let Some((_, text)) = last.as_ref().filter(|(at, _)| at.elapsed() < self.max_age) {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = metrics::read(&self.state).await?.into();
        *last = Some((Instant::now(), Arc::clone(&text)));
        Ok(text)
    }
}

async fn scrape(State(scrapes): State<Arc<Scrapes>>, headers: HeaderMap) -> Result<Response, ApiError> {
    Ok(metrics::answer(&headers, &scrapes.read().await?))
}

/// Serves nothing but metrics on `listener` until `stop`.
pub async fn serve_metrics(
    listener: TcpListener,
    state: Arc<super::State>,
    limits: MetricsLimits,
    stop: CancellationToken,
) {
    let scrapes = Scrapes { state, max_age: limits.max_age, last: Mutex::default() };
    let router = Router::new()
        .route("/metrics", get(scrape))
        .fallback(super::problem::not_found)
        .method_not_allowed_fallback(super::problem::method_not_allowed)
        .with_state(Arc::new(scrapes));
    let tasks = TaskTracker::new();
    // `None` means stopped.
    let _ = stop.run_until_cancelled(accept(&listener, &router, limits, &stop, &tasks)).await;
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    limits: MetricsLimits,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    serve_connection(stream, router, limits.patience, &stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept connections for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router, patience: Duration, stop: &CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move { router.oneshot(request.map(Body::new)).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Stalling::new(stream, patience)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = match stop.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // The client's doing: nonsense, too slow, or gone.
        tracing::debug!(%error, "connection for metrics ended early");
    }
}
