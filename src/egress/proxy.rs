//! One container's proxy: accepts, bounds and ends its connections.

use std::convert::Infallible;
use std::future::Future;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::dial::Dialer;
use super::forward;
use super::meter::{Account, Meter, Usage};
use super::metrics::EgressMetrics;
use super::policy::Policy;
use super::refusal::Refusal;
use super::{EgressError, Limits};
use crate::telemetry::escape_control;

/// Most that hyper buffers per connection and direction, bytes. Bounds memory, not message size.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Connections above the limit that are accepted only to be told so. When these are taken too, further ones wait in
/// the kernel's backlog.
const TURNED_AWAY: usize = 8;

/// Log lines about refusals that one container can cause per [`LOG_WINDOW`]; the metrics count them all.
const LOG_LINES: u32 = 20;
const LOG_WINDOW: Duration = Duration::from_secs(60);

/// Pause after a failed accept (most likely out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running proxy. Dropping it closes the listener and every connection and tunnel; [`Proxy::shutdown`] does so and
/// waits until they are closed.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Serves `listener`, a socket that listens inside a container's network namespace, with [`Limits::default`].
    ///
    /// `container` names it in log lines. Connections go out from the namespace of the calling process.
    ///
    /// # Errors
    /// [`EgressError::NoRuntime`] outside of tokio, [`EgressError::Listener`] when the socket is not usable.
    pub fn serve(
        listener: TcpListener,
        policy: Arc<Policy>,
        container: String,
        metrics: Arc<EgressMetrics>,
    ) -> Result<Self, EgressError> {
        Self::serve_with(listener, policy, container, metrics, Limits::default())
    }

    /// As [`Proxy::serve`], with other limits.
    ///
    /// # Errors
    /// As [`Proxy::serve`].
    pub fn serve_with(
        listener: TcpListener,
        policy: Arc<Policy>,
        container: String,
        metrics: Arc<EgressMetrics>,
        limits: Limits,
    ) -> Result<Self, EgressError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| EgressError::NoRuntime)?;
        listener.set_nonblocking(true).map_err(EgressError::Listener)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(EgressError::Listener)?;
        let shared = Arc::new(Shared {
            container: escape_control(&container).into_owned(),
            dialer: Dialer::new(policy, limits.lookups, limits.connect_timeout),
            account: Arc::new(Account::new(metrics, limits.idle_mbit_per_second)),
            served: Arc::new(Semaphore::new(limits.connections)),
            accepted: Arc::new(Semaphore::new(limits.connections + TURNED_AWAY)),
            log: Mutex::new(LogGate::default()),
            owner: OnceLock::new(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            runtime,
            limits,
        });
        shared.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Connections made from now on belong to what `span` says, on log lines. Only the first call counts.
    pub fn belongs_to(&self, span: tracing::Span) {
        let _ = self.shared.owner.set(span);
    }

    /// Tells what the container has used, also once the proxy is gone.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.shared.account))
    }

    /// The container serves an execution from now on: its bytes may pass at the rate for that.
    pub fn serve_execution(&self) {
        self.shared.account.set_rate(self.shared.limits.run_mbit_per_second);
    }

    /// What the container has used so far.
    pub fn usage(&self) -> Usage {
        self.shared.account.usage()
    }

    /// Closes the listener and every connection and tunnel, and returns when they are closed.
    pub async fn shutdown(self) -> Usage {
        self.shared.end.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.usage()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

/// What the tasks of one proxy share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) container: String,
    pub(super) dialer: Dialer,
    pub(super) limits: Limits,
    pub(super) account: Arc<Account>,
    served: Arc<Semaphore>,
    accepted: Arc<Semaphore>,
    log: Mutex<LogGate>,
    /// What log lines about connections belong to, once the container serves an execution.
    owner: OnceLock<tracing::Span>,
    tasks: TaskTracker,
    end: CancellationToken,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    /// Runs a task that ends with the proxy.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        let bounded = async move {
            // `None` means cancelled, which drops the task and with it its sockets.
            let _ = end.run_until_cancelled_owned(task).await;
        };
        // Not awaited by handle: the tracker knows when it has ended.
        let span = self.owner.get().cloned().unwrap_or_else(tracing::Span::none);
        drop(self.tasks.spawn_on(bounded.instrument(span), &self.runtime));
    }

    /// Counts and logs a request that did not go out.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.account.count(refusal.outcome());
        // The gate is plain data, valid whoever held it.
        let turn = self.log.lock().unwrap_or_else(PoisonError::into_inner).turn(Instant::now());
        match turn {
            Turn::Silent => {}
            Turn::Write | Turn::Last => {
                let (host, port) = refusal.destination().map_or((None, None), |(host, port)| (Some(host), port));
                let reason = refusal.to_string();
                tracing::warn!(
                    target: "egress",
                    container = %self.container,
                    host = host.map(escape_control).as_deref(),
                    port,
                    reason = &*escape_control(&reason),
                    "egress refused"
                );
            }
        }
        if turn == Turn::Last {
            tracing::warn!(target: "egress", container = %self.container, "further refusals are not logged for a minute");
        }
    }
}

/// A place among a container's connections, held until its last task has ended.
#[derive(Debug)]
pub(super) struct Slot {
    account: Arc<Account>,
    served: Option<OwnedSemaphorePermit>,
    _accepted: OwnedSemaphorePermit,
}

impl Slot {
    fn new(shared: &Shared, accepted: OwnedSemaphorePermit) -> Self {
        shared.account.opened();
        let served = Arc::clone(&shared.served).try_acquire_owned().ok();
        Self { account: Arc::clone(&shared.account), served, _accepted: accepted }
    }

    /// Whether the connection is within the limit; otherwise it only gets to know that it is not.
    pub(super) fn is_served(&self) -> bool {
        self.served.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.account.closed();
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let mut failing = false;
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&shared.accepted).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                failing = false;
                let slot = Arc::new(Slot::new(&shared, place));
                shared.spawn(serve_connection(client, slot, Arc::clone(&shared)));
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(target: "egress", container = %shared.container, %error, "cannot accept");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(client: TcpStream, slot: Arc<Slot>, shared: Arc<Shared>) {
    // Tokens are small and must not wait for each other; failure only costs latency.
    let _ = client.set_nodelay(true);
    let service = {
        let shared = Arc::clone(&shared);
        service_fn(move |request| {
            let (shared, slot) = (Arc::clone(&shared), Arc::clone(&slot));
            // Boxed: it holds a whole exchange, and a waiting connection should stay small.
            Box::pin(async move { Ok::<_, Infallible>(forward::answer(&shared, &slot, request).await) })
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.header_timeout)
        .max_header_size(shared.limits.header_bytes)
        .max_buf_size(BUFFER_BYTES.max(shared.limits.header_bytes))
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        // The client's doing: malformed bytes (answered with 400 or 431 by hyper), a time-out or a reset.
        tracing::debug!(target: "egress", container = %shared.container, %error, "connection ended early");
    }
}

/// Keeps one container from filling the log.
#[derive(Debug, Default)]
struct LogGate {
    window: Option<Instant>,
    lines: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Write,
    /// Write, and say that no more follow.
    Last,
    Silent,
}

impl LogGate {
    fn turn(&mut self, now: Instant) -> Turn {
        if self.window.is_none_or(|start| now.duration_since(start) >= LOG_WINDOW) {
            *self = Self { window: Some(now), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            ..LOG_LINES => Turn::Write,
            LOG_LINES => Turn::Last,
            _ => Turn::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_twenty_times_a_minute() {
        let start = Instant::now();
        let mut gate = LogGate::default();
        let turns: Vec<Turn> = (0..100).map(|_| gate.turn(start)).collect();
        assert_eq!(turns.iter().filter(|&&turn| turn == Turn::Write).count(), 19);
        assert_eq!(turns.iter().filter(|&&turn| turn == Turn::Last).count(), 1);
        assert_eq!(gate.turn(start + LOG_WINDOW / 2), Turn::Silent);
        assert_eq!(gate.turn(start + LOG_WINDOW), Turn::Write);
    }
}
