//! The task that owns a pool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Message, Offer, Prepare, Settings};
use crate::container::{Container, ContainerError, Containers, Place, Template};
use crate::types;

/// First pause after a failed creation or preparation; doubled each time up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// How often a pool that could not get a place under the limit looks again.
const PLACE_RETRY: Duration = Duration::from_millis(200);

enum Finished {
    Prepared(Result<Arc<Template>, String>),
    Created(Result<Box<Container>, ContainerError>),
}

pub struct Owner {
    provider: String,
    settings: Settings,
    containers: Arc<Containers>,
    prepare: Prepare,
    template: Option<Arc<Template>>,
    preparing: bool,
    warm: VecDeque<Container>,
    creating: usize,
    waiting: VecDeque<oneshot::Sender<Offer>>,
    work: JoinSet<Finished>,
    back_off: Duration,
    /// Nothing is created before this.
    not_before: Instant,
    hits: u64,
    misses: u64,
    last_error: Option<String>,
}

impl Owner {
    pub fn new(provider: String, settings: Settings, containers: Arc<Containers>, prepare: Prepare) -> Self {
        Self {
            provider,
            settings,
            containers,
            prepare,
            template: None,
            preparing: false,
            warm: VecDeque::new(),
            creating: 0,
            waiting: VecDeque::new(),
            work: JoinSet::new(),
            back_off: BACK_OFF_MIN,
            not_before: Instant::now(),
            hits: 0,
            misses: 0,
            last_error: None,
        }
    }

    pub async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut health = tokio::time::interval(self.settings.health_interval);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        health.reset();
        loop {
            let retry = self.refill();
            tokio::select! {
                // Claims first: refilling must not make anybody wait.
                biased;
                message = inbox.recv() => match message {
                    Some(Message::Stop) | None => return,
                    Some(message) => self.handle(message),
                },
                Some(finished) = self.work.join_next() => self.finished(finished),
                _ = health.tick() => { self.check_health(); }
                () = sleep_until(retry) => {}
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Claim(reply) => {
                let offer = match (self.warm.pop_front(), &self.template) {
                    (Some(container), _) => {
                        self.hits += 1;
                        Offer::Warm(Box::new(container))
                    }
                    (None, Some(template)) => {
                        self.misses += 1;
                        Offer::Empty(Arc::clone(template))
                    }
                    (None, None) => Offer::NotReady(self.not_ready()),
                };
                self.give(reply, offer);
            }
            Message::Wait(reply) => {
                if let Some(container) = self.warm.pop_front() {
                    // Finished since the claim was told that nothing is warm.
                    self.hits += 1;
                    self.give(reply, Offer::Warm(Box::new(container)));
                } else if self.waiting.len() < self.creating {
                    self.waiting.push_back(reply);
                } else {
                    let _ = reply.send(Offer::NotReady("the pool is creating nothing".to_owned()));
                }
            }
            Message::SetTarget(target) => {
                self.settings.target = target;
                // Too many: the oldest go. Dropping a container destroys it.
                while self.warm.len() > target {
                    self.warm.pop_front();
                }
            }
            Message::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Message::Prepared(reply) => {
                let _ = reply.send(self.template.is_some() || self.last_error.is_some());
            }
            Message::CheckHealth(reply) => {
                let replaced = self.check_health();
                let _ = reply.send(replaced);
            }
            // Ends the loop before it comes here.
            Message::Stop => {}
        }
    }

    /// Hands an offer over; a warm container whose claimant has gone away was never used and stays.
    fn give(&mut self, reply: oneshot::Sender<Offer>, offer: Offer) {
        if let Err(Offer::Warm(container)) = reply.send(offer) {
            self.warm.push_front(*container);
        }
    }

    fn not_ready(&self) -> String {
        self.last_error.clone().unwrap_or_else(|| "its image is being unpacked".to_owned())
    }

    /// Starts whatever should be started; returns when to look again if something has to wait.
    fn refill(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.not_before > now {
            return Some(self.not_before);
        }
        let Some(template) = &self.template else {
            if !self.preparing {
                self.preparing = true;
                let prepare = Arc::clone(&self.prepare);
                self.work.spawn_blocking(move || Finished::Prepared(prepare()));
            }
            return None;
        };
        while self.warm.len() + self.creating < self.settings.target
            && self.creating < self.settings.concurrent_creations
        {
            let Ok(place) = self.containers.place() else { return Some(now + PLACE_RETRY) };
            let (containers, template) = (Arc::clone(&self.containers), Arc::clone(template));
            self.creating += 1;
            self.work.spawn(async move { Finished::Created(ready(&containers, template, place).await.map(Box::new)) });
        }
        None
    }

    fn finished(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let error = match finished {
            Ok(Finished::Prepared(Ok(template))) => {
                self.preparing = false;
                self.template = Some(template);
                tracing::info!(provider = %self.provider, target = self.settings.target, "pool ready to fill");
                None
            }
            Ok(Finished::Prepared(Err(reason))) => {
                self.preparing = false;
                Some(reason)
            }
            Ok(Finished::Created(Ok(container))) => {
                self.creating -= 1;
                self.add(*container);
                None
            }
            Ok(Finished::Created(Err(error))) => {
                self.creating -= 1;
                Some(error.to_string())
            }
            // A task of ours panicked: with panic = "abort" this cannot happen, but counts must not drift.
            Err(error) => {
                self.creating = self.creating.saturating_sub(1);
                self.preparing = false;
                Some(error.to_string())
            }
        };
        match error {
            None => {
                self.back_off = BACK_OFF_MIN;
                self.last_error = None;
            }
            Some(reason) => {
                tracing::warn!(provider = %self.provider, %reason, pause_ms = self.back_off.as_millis() as u64, "pool cannot be filled");
                self.last_error = Some(reason);
                self.not_before = Instant::now() + self.back_off;
                self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
                // Whoever waits for what failed gets an answer.
                while self.waiting.len() > self.creating {
                    if let Some(reply) = self.waiting.pop_front() {
                        let _ = reply.send(Offer::NotReady(self.not_ready()));
                    }
                }
            }
        }
    }

    fn add(&mut self, container: Container) {
        let mut container = Box::new(container);
        while let Some(reply) = self.waiting.pop_front() {
            match reply.send(Offer::Warm(container)) {
                Ok(()) => {
                    self.hits += 1;
                    return;
                }
                Err(Offer::Warm(back)) => container = back,
                Err(_) => return,
            }
        }
        self.warm.push_back(*container);
    }

    /// Destroys what is not as it has to be; the refill replaces it.
    fn check_health(&mut self) -> usize {
        let before = self.warm.len();
        self.warm.retain(|container| {
            let healthy = container.is_resting();
            if !healthy {
                tracing::warn!(provider = %self.provider, container = container.id(), "warm container is broken");
            }
            healthy
        });
        before - self.warm.len()
    }

    fn status(&self) -> types::Pool {
        types::Pool {
            provider: self.provider.clone(),
            stage: self.settings.stage,
            model: self.settings.model.clone(),
            target: self.settings.target,
            warm: self.warm.len(),
            creating: self.creating,
            claimed: self.containers.claimed(&self.provider),
            hits: self.hits,
            misses: self.misses,
            last_error: self.last_error.clone(),
            memory: types::PoolMemory::default(),
        }
    }
}

/// Creates a container and takes it as far as its template says: frozen, with or without a CLI that waits in it.
async fn ready(
    containers: &Arc<Containers>,
    template: Arc<Template>,
    place: Place,
) -> Result<Container, ContainerError> {
    let prestarted = template.prestarted.clone();
    let mut container = containers.create(template, place).await?;
    if let Some(prestarted) = prestarted {
        container.prestart(&prestarted).await?;
    }
    container.rest().await?;
    Ok(container)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
