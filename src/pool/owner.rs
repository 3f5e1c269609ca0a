//! The task that owns a pool.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::renewal::{Renewal, Renewed};
use super::scaling::{Bounds, Observed, Scaler};
use super::scheduler::{Gauges, Reserved, Unavailable};
use super::{Change, Message, Offer, Prepare, PrepareError, Prepared, Readiness, Scheduler, Settings};
use crate::container::{Container, ContainerError, Containers, Creating, Hold, Orphan, Template, fingerprint};
use thaw_client::types::{self, DaemonEvent, DaemonEventKind};

/// First pause after a failed creation or preparation; doubled each time up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// Pause before a pool that got no lease, or that the host has no room for, tries again.
const LEASE_RETRY: Duration = Duration::from_millis(200);

/// Time between two looks at the target. Each claim looks at the target as well.
const SCALE_INTERVAL: Duration = Duration::from_millis(500);

enum Finished {
    Prepared(Result<Prepared, PrepareError>),
    /// For another image.
    Renewing(Result<Prepared, PrepareError>),
    /// The first container from another image.
    Tried(Result<Box<Container>, ContainerError>),
    Created(Result<Box<Container>, ContainerError>),
}

/// What the owner of a pool is started with.
pub struct Inputs {
    pub provider: String,
    pub settings: Settings,
    pub scheduler: Arc<Scheduler>,
    /// Gauges that the owner publishes for its handles and for other pools.
    pub gauges: Arc<Gauges>,
    pub prepare: Prepare,
    /// Sender of the pool's readiness; its handles hold the receiver.
    pub readiness: watch::Sender<Readiness>,
    /// Warm containers that an earlier daemon left in this pool.
    pub orphans: Vec<Orphan>,
}

/// State of one pool. One task runs [`Owner::run`].
pub struct Owner {
    provider: String,
    settings: Settings,
    scheduler: Arc<Scheduler>,
    /// Gauges that handles and other pools read.
    gauges: Arc<Gauges>,
    scaler: Scaler,
    /// Description of the last change of the target, for the API.
    scaled: Option<String>,
    prepare: Prepare,
    template: Option<Arc<Template>>,
    /// Readiness for requests that wait for the template.
    readiness: watch::Sender<Readiness>,
    preparing: bool,
    /// Renewal of the image in progress.
    renewal: Option<Renewal>,
    warm: VecDeque<Container>,
    /// Whether some warm containers are of an earlier image.
    has_stale: bool,
    /// Whether a warm container was destroyed to free a lease for a new one that does not exist yet.
    made_room: bool,
    /// Warm containers of an earlier daemon. They are adopted once the template shows what they must be made from.
    orphans: Vec<Orphan>,
    creating: usize,
    work: JoinSet<Finished>,
    back_off: Duration,
    /// Time before which nothing is created, after a failure.
    not_before: Instant,
    /// Time for which claims have kept this pool from creating.
    hold: Hold,
    /// Why the pool creates nothing although warm containers are missing.
    paused: Option<String>,
    hits: u64,
    misses: u64,
    last_error: Option<String>,
}

impl Owner {
    pub fn new(inputs: Inputs) -> Self {
        let Inputs { provider, settings, scheduler, gauges, prepare, readiness, orphans } = inputs;
        let this = Self {
            provider,
            scaler: Scaler::new(settings.rules, settings.bounds, settings.target),
            settings,
            scheduler,
            gauges,
            scaled: None,
            prepare,
            template: None,
            readiness,
            preparing: false,
            renewal: None,
            warm: VecDeque::new(),
            has_stale: false,
            made_room: false,
            orphans,
            creating: 0,
            work: JoinSet::new(),
            back_off: BACK_OFF_MIN,
            not_before: Instant::now(),
            hold: Hold::default(),
            paused: None,
            hits: 0,
            misses: 0,
            last_error: None,
        };
        this.publish();
        this
    }

    pub async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut health = tokio::time::interval(self.settings.health_interval);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        health.reset();
        let mut scale = tokio::time::interval(SCALE_INTERVAL);
        scale.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = earlier(self.try_renewal(), self.refill());
            self.publish();
            tokio::select! {
                // Messages first: refilling must not make a claim wait.
                biased;
                message = inbox.recv() => match message {
                    Some(Message::Stop) | None => break,
                    Some(message) => self.handle(message),
                },
                Some(finished) = self.work.join_next() => self.finished(finished),
                _ = health.tick() => { self.check_health(); }
                _ = scale.tick() => self.scale(),
                () = sleep_until(retry) => {}
            }
        }
        self.scheduler.remove_pool(&self.gauges);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Claim { queued, reply } => self.claim(queued, reply),
            Message::Take(reply) => {
                let container = self.take().map(Box::new);
                self.publish();
                if let Err(Some(back)) = reply.send(container) {
                    self.warm.push_front(*back);
                }
            }
            Message::GiveBack(container) => {
                self.has_stale |= self.is_stale(&container);
                self.warm.push_front(*container);
                self.scheduler.changed();
            }
            Message::Shed => {
                if self.warm.len() > self.floor() {
                    let provider = &self.provider;
                    tracing::info!(%provider, "destroying a warm container: another provider's request waits for its lease");
                    self.drop_one();
                }
            }
            Message::Renew(reply) => self.renew(reply),
            Message::Change { change, reply } => {
                let changed = self.change(change).map(|()| self.status());
                let _ = reply.send(changed);
            }
            Message::Set(target, bounds) => {
                // The container limit is the one from the start of the daemon; the configuration may name a larger one
                // meanwhile.
                let limit = self.scheduler.containers().limit().0;
                let bounds = Bounds { min: bounds.min.min(limit), max: bounds.max.min(limit), ..bounds };
                self.scaler.set(bounds, target);
                let reason = format!("set to {} by the configuration", self.scaler.target());
                self.tell(DaemonEventKind::PoolChanged, Some(reason.clone()));
                self.scaled = Some(reason);
                self.trim();
            }
            Message::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Message::Template(reply) => {
                let _ = reply.send(self.template.clone());
            }
            Message::Prepared(reply) => {
                let _ = reply.send(self.template.is_some() || self.last_error.is_some());
            }
            Message::CheckHealth(reply) => {
                let replaced = self.check_health();
                let _ = reply.send(replaced);
            }
            // `run` ends its loop before it calls `handle` with this message.
            Message::Stop => {}
        }
    }

    fn claim(&mut self, queued: bool, reply: oneshot::Sender<Offer>) {
        let Some(template) = self.template.clone() else {
            let offer = self.last_error.clone().map_or(Offer::NotYet, Offer::Broken);
            return self.reply_offer(reply, offer);
        };
        let warm = if queued { None } else { self.take() };
        let hit = warm.is_some();
        let offer = warm.map_or_else(|| Offer::Empty(template), |container| Offer::Warm(Box::new(container)));
        if hit {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        // Reply before any bookkeeping: the reply is on the claim's latency path.
        self.reply_offer(reply, offer);
        self.scaler.claimed(Instant::now(), hit);
        self.scale();
    }

    /// Changes the target if the scaler decides so.
    fn scale(&mut self) {
        let observed = Observed { warm: self.warm.len(), queued: self.scheduler.waiting_for(&self.provider) };
        if let Some(decision) = self.scaler.decide(Instant::now(), observed) {
            tracing::info!(provider = %self.provider, pool_target = decision.to, "pool scaled {decision}");
            self.tell(DaemonEventKind::PoolChanged, Some(decision.to_string()));
            self.scheduler.metrics.scaled(&self.provider, &decision);
            self.scaled = Some(decision.to_string());
            self.trim();
        }
    }

    /// Tells those who watch the daemon.
    fn tell(&self, kind: DaemonEventKind, detail: Option<String>) {
        self.scheduler.feed.publish(DaemonEvent {
            provider: Some(self.provider.clone()),
            stage: Some(self.settings.stage),
            target: Some(self.scaler.target()),
            detail,
            ..DaemonEvent::new(kind)
        });
    }

    fn change(&mut self, change: Change) -> Result<(), String> {
        let limit = self.scheduler.containers().limit().0;
        let is = self.scaler.bounds();
        let bounds_given = change.min.is_some() || change.max.is_some();
        let scaling = change.scaling.unwrap_or(match (bounds_given, change.target) {
            (true, _) => true,
            // A target that an operator asked for stays: scaling is switched off.
            (false, Some(_)) => false,
            (false, None) => is.scaling,
        });
        // A bound that was not given is moved to make room for the values that were given.
        let target = change.target;
        let min = change.min.unwrap_or_else(|| is.min.min(change.max.unwrap_or(limit)).min(target.unwrap_or(limit)));
        let max = change.max.unwrap_or_else(|| is.max.max(min).max(target.unwrap_or(0)));
        for (field, value) in [("target", target.unwrap_or(0)), ("min", min), ("max", max)] {
            if value > limit {
                return Err(format!("`{field}` is {value}, but the host's limit (`container.max`) is {limit}"));
            }
        }
        if min > max {
            return Err(format!("`min` is {min}, which is more than `max`, {max}"));
        }
        if let Some(target) = target.filter(|target| scaling && !(min..=max).contains(target)) {
            return Err(format!("`target` is {target}, which is not between `min`, {min}, and `max`, {max}"));
        }
        self.scaler.set(Bounds { min, max, scaling }, target.unwrap_or(self.scaler.target()));
        let target = self.scaler.target();
        tracing::info!(provider = %self.provider, pool_target = target, min, max, scaling, "pool changed by request");
        let reason = format!("set to {target} by request");
        self.tell(DaemonEventKind::PoolChanged, Some(reason.clone()));
        self.scaled = Some(reason);
        self.trim();
        Ok(())
    }

    /// Destroys the oldest warm containers above the target. Dropping a container destroys it.
    fn trim(&mut self) {
        while self.warm.len() > self.scaler.target() {
            self.drop_one();
        }
        self.has_stale = self.has_stale && self.warm.iter().any(|container| self.is_stale(container));
    }

    /// Whether it is made from another image than new ones are.
    fn is_stale(&self, container: &Container) -> bool {
        self.template.as_ref().is_some_and(|template| !std::ptr::eq(container.template(), Arc::as_ptr(template)))
    }

    /// One to be used: of the present image, if there is one.
    fn take(&mut self) -> Option<Container> {
        let at = match self.has_stale {
            true => self.warm.iter().position(|container| !self.is_stale(container)).unwrap_or(0),
            false => 0,
        };
        self.warm.remove(at)
    }

    /// Gives one up: of an earlier image, if there is one. Dropping a container destroys it.
    fn drop_one(&mut self) {
        let at = match self.has_stale {
            true => self.warm.iter().position(|container| self.is_stale(container)).unwrap_or(0),
            false => 0,
        };
        self.warm.remove(at);
    }

    /// How many of those that are warm are as new ones are made.
    fn fresh(&self) -> usize {
        match self.has_stale {
            true => self.warm.iter().filter(|container| !self.is_stale(container)).count(),
            false => self.warm.len(),
        }
    }

    /// Begins to take over the image that the provider has now.
    fn renew(&mut self, reply: oneshot::Sender<Renewed>) {
        if self.renewal.is_some() {
            let _ = reply.send(Renewed::Refused("an image is being taken over already; ask again".to_owned()));
            return;
        }
        if self.template.is_none() {
            // It is tried now, whatever it waits for.
            (self.not_before, self.back_off) = (Instant::now(), BACK_OFF_MIN);
            let _ = reply.send(Renewed::Beginning);
            return;
        }
        self.renewal = Some(Renewal::new(reply));
        let prepare = Arc::clone(&self.prepare);
        self.work.spawn_blocking(move || Finished::Renewing(prepare()));
    }

    /// Goes on with that; returns when to look again if it has to wait.
    fn try_renewal(&mut self) -> Option<Instant> {
        let (template, hold) = self.renewal.as_mut()?.waiting()?;
        let creating = match self.scheduler.containers().throttle().create(false, hold) {
            Ok(creating) => creating,
            Err(again) => return Some(again),
        };
        let Ok(reserved) = self.reserve(&template) else {
            self.make_room();
            return Some(Instant::now() + LEASE_RETRY);
        };
        self.made_room = false;
        if let Some(renewal) = &mut self.renewal {
            renewal.trying();
        }
        let containers = Arc::clone(self.scheduler.containers());
        let metrics = Arc::clone(&self.scheduler.metrics);
        self.work.spawn(async move {
            let begun = Instant::now();
            let created = ready(&containers, Arc::clone(&template), reserved, creating).await;
            metrics.created(&template, "refill", begun.elapsed(), &created);
            Finished::Tried(created.map(Box::new))
        });
        None
    }

    /// Destroys one container of the earlier image if no lease is free for a new one; never the last.
    fn make_room(&mut self) {
        if !self.made_room && self.warm.len() > 1 && self.scheduler.containers().free_leases() == 0 {
            self.drop_one();
            self.made_room = true;
        }
    }

    fn renewing(&mut self, prepared: Result<Prepared, PrepareError>) {
        let Some(mut renewal) = self.renewal.take() else { return };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.refuse(renewal, error.to_string()),
        };
        let settings = self.scheduler.containers().settings();
        let is_same = self.template.as_ref().is_some_and(|template| {
            template.root == prepared.template.root
                && fingerprint(settings, template) == fingerprint(settings, &prepared.template)
        });
        if is_same {
            return renewal.end(Renewed::Unchanged);
        }
        renewal.prepared(prepared);
        self.renewal = Some(renewal);
    }

    fn refuse(&mut self, renewal: Renewal, reason: String) {
        tracing::warn!(provider = %self.provider, %reason, "another image is not taken over; the old one serves on");
        renewal.end(Renewed::Refused(reason));
    }

    fn tried(&mut self, created: Result<Box<Container>, ContainerError>) {
        let Some(renewal) = self.renewal.take() else { return };
        let container = match created {
            Ok(container) => container,
            Err(error) => return self.refuse(renewal, error.to_string()),
        };
        let Some((prepared, reply)) = renewal.succeeded() else { return };
        (prepared.take_over)();
        self.template = Some(prepared.template);
        self.has_stale = !self.warm.is_empty();
        tracing::info!(provider = %self.provider, old = self.warm.len(), "another image is taken over");
        self.add(*container);
        let _ = reply.send(Renewed::Renewed);
    }

    /// Number of warm containers that the pool keeps although a request of another provider waits for a lease.
    fn floor(&self) -> usize {
        if self.scaler.is_scaling() { self.scaler.bounds().min } else { self.scaler.target() }
    }

    /// Publishes the gauges.
    fn publish(&self) {
        self.gauges.warm.store(self.warm.len(), Ordering::Release);
        self.gauges.creating.store(self.creating, Ordering::Relaxed);
        self.gauges.floor.store(self.floor(), Ordering::Relaxed);
    }

    /// Replies to a claim. If the claimant is gone, a warm container stays in the pool: nobody has used it.
    fn reply_offer(&mut self, reply: oneshot::Sender<Offer>, offer: Offer) {
        if let Err(Offer::Warm(container)) = reply.send(offer) {
            self.warm.push_front(*container);
            self.scheduler.changed();
        }
    }

    /// Starts all creations that are due; returns when to try again if one has to wait.
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
        let template = Arc::clone(template);
        if self.fresh() + self.creating >= self.scaler.target() {
            self.hold.forget();
            self.pause(None);
            return None;
        }
        while self.fresh() + self.creating < self.scaler.target() && self.creating < self.settings.concurrent_creations
        {
            let low = self.warm.len() * 100 < self.scaler.target() * self.settings.low_water_percent;
            let creating = match self.scheduler.containers().throttle().create(low, &mut self.hold) {
                Ok(creating) => creating,
                Err(again) => return Some(again),
            };
            match self.reserve(&template) {
                Ok(reserved) => {
                    self.made_room = false;
                    self.create(Arc::clone(&template), reserved, creating);
                }
                Err(()) => {
                    if self.has_stale {
                        self.make_room();
                    }
                    return Some(now + LEASE_RETRY);
                }
            }
        }
        None
    }

    /// Reserves a lease and memory for one more container, if no request and no other pool needs the lease more.
    fn reserve(&mut self, template: &Template) -> Result<Reserved, ()> {
        let reserved = match self.scheduler.may_refill(&self.gauges) {
            Ok(()) => self.scheduler.take(Scheduler::bytes(template)),
            Err(reason) => {
                self.pause(Some((reason.to_owned(), None)));
                return Err(());
            }
        };
        match reserved {
            Ok(reserved) => {
                self.pause(None);
                Ok(reserved)
            }
            Err(shortage) => {
                self.pause(Some((shortage.to_string(), Some(shortage))));
                Err(())
            }
        }
    }

    fn create(&mut self, template: Arc<Template>, reserved: Reserved, creating: Creating) {
        let containers = Arc::clone(self.scheduler.containers());
        self.creating += 1;
        let metrics = Arc::clone(&self.scheduler.metrics);
        self.work.spawn(async move {
            let begun = Instant::now();
            let created = ready(&containers, Arc::clone(&template), reserved, creating).await;
            metrics.created(&template, "refill", begun.elapsed(), &created);
            Finished::Created(created.map(Box::new))
        });
    }

    /// Records why refilling is paused, or that it is not. Logs when a pause begins and when it ends.
    fn pause(&mut self, reason: Option<(String, Option<Unavailable>)>) {
        match (&self.paused, &reason) {
            (None, Some((reason, shortage))) => {
                if let Some(Unavailable::Host(refusal)) = shortage {
                    tracing::warn!(provider = %self.provider, %reason, "refilling paused");
                    self.scheduler.metrics.refused(refusal.label(), "refill");
                } else {
                    tracing::debug!(provider = %self.provider, %reason, "refilling paused");
                }
            }
            (Some(_), None) => tracing::debug!(provider = %self.provider, "refilling resumed"),
            _ => {}
        }
        self.paused = reason.map(|(reason, _)| reason);
    }

    fn finished(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let error = match finished {
            Ok(Finished::Renewing(prepared)) => return self.renewing(prepared),
            Ok(Finished::Tried(created)) => return self.tried(created),
            Ok(Finished::Prepared(Ok(Prepared { template, take_over }))) => {
                self.preparing = false;
                take_over();
                self.adopt(&template);
                self.template = Some(template);
                self.readiness.send_replace(Readiness::Ready);
                self.scheduler.changed();
                let pool_target = self.scaler.target();
                tracing::info!(provider = %self.provider, pool_target, "image ready, pool begins to fill");
                None
            }
            Ok(Finished::Prepared(Err(error))) => {
                self.preparing = false;
                Some(error.to_string())
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
            // A task panicked. With panic = "abort" this cannot happen, but the counts must not drift.
            Err(error) => {
                self.creating = self.creating.saturating_sub(1);
                self.preparing = false;
                Some(error.to_string())
            }
        };
        match error {
            None => {
                self.back_off = BACK_OFF_MIN;
                if self.last_error.take().is_some() {
                    tracing::info!(provider = %self.provider, "pool can be filled again");
                    self.tell(DaemonEventKind::PoolRecovered, None);
                }
            }
            Some(reason) => {
                let pause_ms = self.back_off.as_millis() as u64;
                // Warn once per reason: an image that nobody installs fails for ever.
                if self.last_error.as_ref() == Some(&reason) {
                    tracing::debug!(provider = %self.provider, %reason, pause_ms, "pool still cannot be filled");
                } else {
                    tracing::warn!(provider = %self.provider, %reason, pause_ms, "pool cannot be filled");
                    self.tell(DaemonEventKind::PoolFailing, Some(reason.clone()));
                }
                if self.template.is_none() {
                    self.readiness.send_replace(Readiness::Broken(reason.clone()));
                }
                self.last_error = Some(reason);
                self.not_before = Instant::now() + self.back_off;
                self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
            }
        }
    }

    /// Adopts the warm containers of an earlier daemon that match the template.
    fn adopt(&mut self, template: &Arc<Template>) {
        let fingerprint = fingerprint(self.scheduler.containers().settings(), template);
        let mut adopted = 0;
        for orphan in self.orphans.drain(..) {
            match orphan.into_warm(&fingerprint, Arc::clone(template)) {
                Ok(container) => {
                    self.warm.push_back(container);
                    adopted += 1;
                }
                Err(reason) => tracing::warn!(provider = %self.provider, %reason, "a warm container was not adopted"),
            }
        }
        if adopted > 0 {
            tracing::info!(provider = %self.provider, adopted, "warm containers of an earlier daemon adopted");
            self.scheduler.metrics.adopted(&self.provider, adopted);
        }
        self.trim();
        self.publish();
    }

    fn add(&mut self, container: Container) {
        if self.is_stale(&container) {
            // Its creation began before another image was taken over. Dropping it destroys it.
            return self.publish();
        }
        // Each new one replaces an old one, also when claims take the new ones as fast as they come: the pool may never be
        // full again under load, and the old ones would stay. Claims may have taken the last of them.
        if self.has_stale
            && let Some(at) = self.warm.iter().position(|container| self.is_stale(container))
        {
            self.warm.remove(at);
        }
        self.warm.push_back(container);
        self.trim();
        self.publish();
        self.scheduler.changed();
    }

    /// Destroys warm containers that are no longer frozen or gone; refilling replaces them. Returns how many.
    fn check_health(&mut self) -> usize {
        let before = self.warm.len();
        self.warm.retain(|container| {
            let healthy = container.is_parked();
            if !healthy {
                tracing::warn!(provider = %self.provider, container = container.id(), "warm container is broken");
            }
            healthy
        });
        let broken = before - self.warm.len();
        self.scheduler.metrics.broke(&self.provider, broken);
        broken
    }

    fn status(&self) -> types::Pool {
        let Bounds { min, max, .. } = self.scaler.bounds();
        let scaling = self.scaler.is_scaling();
        let target = self.scaler.target();
        types::Pool {
            provider: self.provider.clone(),
            stage: self.settings.stage,
            model: self.settings.model.clone(),
            target,
            min: if scaling { min } else { target },
            max: if scaling { max } else { target },
            scaling,
            reason: self.scaled.clone(),
            warm: self.warm.len(),
            creating: self.creating,
            claimed: self.scheduler.containers().claimed(&self.provider),
            queued: match self.settings.stage {
                types::Stage::Created => self.scheduler.waiting_for(&self.provider),
                types::Stage::Prestarted => 0,
            },
            hits: self.hits,
            misses: self.misses,
            paused: self.paused.clone(),
            last_error: self.last_error.clone(),
            memory: types::PoolMemory::default(),
        }
    }
}

/// Creates a container and parks it at its template's stage: frozen, with or without a prestarted CLI.
async fn ready(
    containers: &Arc<Containers>,
    template: Arc<Template>,
    reserved: Reserved,
    creating: Creating,
) -> Result<Container, ContainerError> {
    let prestarted = template.prestarted.clone();
    let Reserved { lease, memory } = reserved;
    let mut container = containers.create(template, lease).await?;
    let mut creating = Some(creating);
    if let Some(prestarted) = prestarted {
        // Starting a CLI takes seconds, and holds none of the locks that claims need: stop counting as a creation.
        creating = None;
        container.prestart(&prestarted).await?;
    }
    container.park().await?;
    // From now on the kernel's accounting includes the container's memory.
    drop((creating, memory));
    Ok(container)
}

/// The earlier of two times to look again.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
