//! State that the connections of one container share: account, limits, and their common end.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::Limits;
use super::budget::Charged;
use super::dial::Dialer;
use super::meter::Account;
use super::metrics::EgressMetrics;
use super::policy::Policy;
use super::refusal::Refusal;
use super::routes::{Route, Routes};
use crate::telemetry::escape_control;

/// Most that hyper buffers per connection and direction, bytes. Bounds memory, not message size.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Most log lines about refusals that one container causes per [`LOG_WINDOW`]. The metrics count all refusals.
const LOG_LINES: u32 = 20;
const LOG_WINDOW: Duration = Duration::from_secs(60);

/// What all proxies share: their metrics, and who goes out with which identity.
#[derive(Debug, Clone)]
pub struct Outside {
    /// Counts.
    pub metrics: Arc<EgressMetrics>,
    /// Identities, and who has which.
    pub routes: Arc<Routes>,
    /// Whose connections those of one proxy are, if that is known from the start.
    pub user: Option<String>,
}

impl Outside {
    /// Without identities: everybody goes out as it comes.
    pub fn direct(metrics: Arc<EgressMetrics>) -> Self {
        Self { metrics, routes: Arc::default(), user: None }
    }

    /// For the container of this user.
    pub fn of(mut self, user: Option<&str>) -> Self {
        self.user = user.map(str::to_owned);
        self
    }
}

/// What the tasks of one proxy share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) container: String,
    pub(super) dialer: Dialer,
    pub(super) limits: Limits,
    pub(super) account: Arc<Account>,
    /// Whether connections wait for a slot. Then connections that are kept alive for a next request are closed.
    pub(super) crowded: watch::Sender<bool>,
    log: Mutex<LogLimit>,
    /// Span of log lines about connections, once the container serves an execution.
    owner: OnceLock<tracing::Span>,
    routes: Arc<Routes>,
    /// Whose connections these are, once the container serves somebody.
    user: OnceLock<String>,
    tasks: TaskTracker,
    end: CancellationToken,
    runtime: tokio::runtime::Handle,
}

impl Shared {
    /// State of the proxy of this container. Tasks run on `runtime`.
    pub(super) fn new(
        policy: Arc<Policy>,
        container: &str,
        outside: Outside,
        limits: Limits,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let Outside { metrics, routes, user } = outside;
        Self {
            container: escape_control(container).into_owned(),
            dialer: Dialer::new(policy, limits.lookups, limits.connect_timeout),
            account: Arc::new(Account::new(metrics, &limits)),
            crowded: watch::Sender::new(false),
            log: Mutex::new(LogLimit::default()),
            owner: OnceLock::new(),
            routes,
            user: user.map_or_else(OnceLock::new, OnceLock::from),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            runtime,
            limits,
        }
    }

    /// See [`super::Proxy::belongs_to`].
    pub(super) fn belongs_to(&self, span: tracing::Span) {
        let _ = self.owner.set(span);
    }

    /// See [`super::Proxy::goes_out_for`].
    pub(super) fn goes_out_for(&self, user: &str) {
        let _ = self.user.set(user.to_owned());
    }

    /// How the next connection goes out.
    pub(super) fn route(&self) -> Route {
        self.routes.route(self.user.get().map(String::as_str))
    }

    /// Ends all tasks.
    pub(super) fn cancel(&self) {
        self.end.cancel();
    }

    /// Ends all tasks, and returns when they have ended.
    pub(super) async fn end(&self) {
        self.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs a task that ends with the proxy. Its CPU time is charged to the container.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        let task = Charged::new(task, Arc::clone(&self.account.budget));
        let bounded = async move {
            // `None` means cancelled: that drops the task and closes its sockets.
            let _ = end.run_until_cancelled_owned(task).await;
        };
        // The handle is not awaited: the tracker knows when the task has ended.
        let span = self.owner.get().cloned().unwrap_or_else(tracing::Span::none);
        drop(self.tasks.spawn_on(bounded.instrument(span), &self.runtime));
    }

    /// Counts and logs a refused request.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.account.count(refusal.outcome());
        // The state is plain data, valid also after a panic elsewhere.
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

/// Limits the log lines of one container.
#[derive(Debug, Default)]
struct LogLimit {
    window: Option<Instant>,
    lines: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Write,
    /// Write this line and one that says that no more follow.
    Last,
    Silent,
}

impl LogLimit {
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
        let mut gate = LogLimit::default();
        let turns: Vec<Turn> = (0..100).map(|_| gate.turn(start)).collect();
        assert_eq!(turns.iter().filter(|&&turn| turn == Turn::Write).count(), 19);
        assert_eq!(turns.iter().filter(|&&turn| turn == Turn::Last).count(), 1);
        assert_eq!(gate.turn(start + LOG_WINDOW / 2), Turn::Silent);
        assert_eq!(gate.turn(start + LOG_WINDOW), Turn::Write);
    }
}
