//! Waiting for a container: the client is notified, and the request leaves the queue when the client goes away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::plan::Plan;
use super::state::Step;
use super::{Handle, StartError};
use crate::output;
use crate::pool::{ClaimRequest, Claimed};
use thaw_client::types::{DaemonEventKind, Event, Queued};

/// Shortest time between two `queued` events of one execution.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// State of an execution's waiting.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Whether the client reads events: it is then notified at once that it waits, and of the end.
    events: bool,
    /// The execution continues although its client disconnected.
    background: bool,
    begun: Notify,
    /// Whether the client has its answer: the events, beginning with `queued`.
    told: AtomicBool,
    left: CancellationToken,
    last: Mutex<Option<(Instant, usize)>>,
}

impl Waiting {
    /// For a client that reads events or not; for an execution that continues without its client or not.
    pub fn new(events: bool, background: bool) -> Self {
        Self { events, background, ..Self::default() }
    }

    /// Returns when a client that reads events has to be notified that its execution waits.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// Whether the client was notified.
    pub fn was_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }
}

/// The client that waits for the answer. Dropping this without an answer takes the request out of the queue.
#[derive(Debug)]
pub struct Client(Option<Arc<Handle>>);

impl Client {
    /// The client of this execution.
    pub fn new(handle: &Arc<Handle>) -> Self {
        Self(Some(Arc::clone(handle)))
    }

    /// Records that the client has its answer.
    pub fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.waiting.left.cancel();
        }
    }
}

impl Handle {
    /// Waits until its command has started; false when it has ended before, and nobody was told of it.
    pub(super) async fn has_begun(&self) -> bool {
        let mut after = 0;
        loop {
            let events = self.log.next(None, after, 1).await;
            let Some(event) = events.last() else { break };
            match event.event.name {
                "queued" => after = event.sequence,
                "exit" => break,
                _ => return true,
            }
        }
        self.state().assignment().is_some() || self.waiting.was_told()
    }

    fn waits(&self, position: usize) {
        self.step(Step::Wait(position));
        self.times().waits();
        let now = Instant::now();
        let mut last = self.waiting.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|(at, told)| told == position || now.duration_since(at) < TOLD_EVERY) {
            return;
        }
        *last = Some((now, position));
        self.publish(DaemonEventKind::ExecutionQueued, |event| event.position = Some(position));
        if self.waiting.events && !self.is_kept() {
            // The client knows of the execution from now on, and must learn of its end, even from another daemon.
            self.keep(None);
        }
        self.log.push(&Event::Queued(Queued { position, request_id: self.request_id.clone(), at: None }));
        if self.waiting.events {
            self.waiting.told.store(true, Ordering::Release);
            self.waiting.begun.notify_one();
        }
    }

    fn waits_no_longer(&self) {
        self.step(Step::Assign);
        self.times().waits_no_longer();
    }

    /// Returns when nobody wants the execution any more: the client went away before it had an answer, or it streamed
    /// events and has not come back for `grace`.
    async fn left(&self, grace: Duration) {
        if self.waiting.events && self.waiting.background {
            return std::future::pending().await;
        }
        tokio::select! {
            () = self.waiting.left.cancelled() => {}
            () = self.abandoned(grace, grace), if self.waiting.events => {}
        }
    }

    /// Returns when no reader has been connected for `grace`, the first time for `first_grace`. Never returns for an
    /// execution that may run in the background.
    pub(super) async fn abandoned(&self, first_grace: Duration, grace: Duration) {
        if self.background {
            return std::future::pending().await;
        }
        let mut readers = self.readers.subscribe();
        let mut patience = first_grace;
        loop {
            // The handle owns the sender, so this cannot fail.
            let _ = readers.wait_for(|readers| *readers == 0).await;
            // Time without a reader that began under an earlier daemon counts.
            let since = self.log.alone_since().map_or_else(tokio::time::Instant::now, output::instant);
            if tokio::time::timeout_at(since + patience, readers.wait_for(|readers| *readers > 0)).await.is_err() {
                return;
            }
            patience = grace;
        }
    }
}

/// Claims a container, after waiting for one if necessary, but without a reader no longer than `grace`.
pub async fn claim(handle: &Handle, plan: &Plan, grace: Duration) -> Result<Claimed, StartError> {
    let on_position = |position| handle.waits(position);
    let prestarted = plan.late.as_ref().and_then(|_| plan.origin.prestarted());
    let want = ClaimRequest { user: &handle.user, wait: plan.queue_timeout, on_position: &on_position, prestarted };
    let claimed = tokio::select! {
        biased;
        claimed = plan.origin.claim(&want) => claimed,
        () = handle.left(grace) => return Err(StartError::Left),
    };
    handle.waits_no_longer();
    Ok(claimed?)
}
