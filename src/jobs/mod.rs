//! Work that takes longer than a request should: started by one, watched by others, told in the feed.
//!
//! ```text
//! start ──► running ──► succeeded or failed ──(KEPT newer ones have ended)──► forgotten
//! ```
//!
//! A job runs on a thread of its own that may block, says how far it is, and ends by itself; a stop of the daemon waits
//! for none. Jobs are in memory: the next daemon knows nothing of them. Deliberately absent: what a job does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::feed::Feed;
use thaw_client::time::Timestamp;
use thaw_client::types::{DaemonEvent, DaemonEventKind, Job, JobKind, JobState};
use thaw_image::progress::Progress;

/// Most that run at the same time: they share the store's lock and the disk.
const MAX_RUNNING: usize = 4;

/// Ended ones that are kept.
const KEPT: usize = 100;

/// Shortest time between two events about how far one is.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What a job has to show at its end: changes of what is shown of it, or why it failed.
pub type Outcome = Result<Box<dyn FnOnce(&mut Job) + Send>, String>;

/// Too many run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_RUNNING} jobs run already, the most that may at the same time")]
pub struct TooMany;

/// The jobs.
#[derive(Debug)]
pub struct Jobs {
    feed: Arc<Feed>,
    known: Mutex<Known>,
}

/// Those that are known, by id, and who names the next.
#[derive(Default)]
struct Known {
    jobs: BTreeMap<String, Arc<Handle>>,
    /// Each id is greater than the one before, also within one millisecond.
    ids: ulid::Generator,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(&self.jobs).finish()
    }
}

/// One job.
#[derive(Debug)]
pub struct Handle {
    job: Mutex<Job>,
    ended: watch::Sender<bool>,
    feed: Arc<Feed>,
    told: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change leaves the value whole, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    /// None yet; what happens to them is told in `feed`.
    pub fn new(feed: Arc<Feed>) -> Self {
        Self { feed, known: Mutex::default() }
    }

    /// Starts one.
    ///
    /// # Errors
    /// [`TooMany`]; nothing was started then.
    pub fn start(
        &self,
        kind: JobKind,
        work: impl FnOnce(&dyn Progress) -> Outcome + Send + 'static,
    ) -> Result<Arc<Handle>, TooMany> {
        let handle = {
            let mut known = lock(&self.known);
            let Known { jobs: known, ids } = &mut *known;
            let running = known.values().filter(|handle| !*handle.ended.borrow()).count();
            if running >= MAX_RUNNING {
                return Err(TooMany);
            }
            // The first are the oldest.
            let ended: Vec<_> =
                known.iter().filter(|(_, handle)| *handle.ended.borrow()).map(|(id, _)| id.clone()).collect();
            for id in ended.iter().take((ended.len() + 1).saturating_sub(KEPT)) {
                known.remove(id);
            }
            let job = Job {
                // It overflows after 2^80 ids of one millisecond.
                id: format!("j-{}", ids.generate().unwrap_or_default().to_string().to_lowercase()),
                kind,
                state: JobState::Running,
                created_at: Timestamp::now(),
                ended_at: None,
                stage: None,
                done_bytes: 0,
                total_bytes: None,
                detail: None,
                image: None,
                notes: Vec::new(),
                verification: None,
            };
            let (ended, told) = (watch::Sender::new(false), Mutex::new(Instant::now()));
            let id = job.id.clone();
            let handle = Arc::new(Handle { job: Mutex::new(job), ended, feed: Arc::clone(&self.feed), told });
            known.insert(id, Arc::clone(&handle));
            handle
        };
        handle.tell(DaemonEventKind::JobStarted);
        let its = Arc::clone(&handle);
        tokio::task::spawn_blocking(move || {
            let outcome = work(&*its);
            its.end(outcome);
        });
        Ok(handle)
    }

    /// By id.
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        lock(&self.known).jobs.get(id).cloned()
    }

    /// All that are known, newest first.
    pub fn list(&self) -> Vec<Job> {
        lock(&self.known).jobs.values().rev().map(|handle| handle.describe()).collect()
    }
}

impl Handle {
    /// As shown by the API.
    pub fn describe(&self) -> Job {
        lock(&self.job).clone()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn end(&self, outcome: Outcome) {
        {
            let mut job = lock(&self.job);
            job.ended_at = Some(Timestamp::now());
            job.stage = None;
            match outcome {
                Ok(show) => {
                    job.state = JobState::Succeeded;
                    show(&mut job);
                }
                Err(reason) => {
                    job.state = JobState::Failed;
                    job.detail = Some(reason);
                }
            }
        }
        self.ended.send_replace(true);
        self.tell(DaemonEventKind::JobEnded);
        let job = self.describe();
        tracing::info!(job = job.id, kind = ?job.kind, state = ?job.state, detail = job.detail, "job ended");
    }

    fn tell(&self, kind: DaemonEventKind) {
        let job = self.describe();
        self.feed.publish(DaemonEvent {
            job: Some(job.id),
            success: (job.state != JobState::Running).then_some(job.state == JobState::Succeeded),
            detail: job.detail.or(job.stage),
            ..DaemonEvent::new(kind)
        });
    }
}

impl Progress for Handle {
    fn started(&self, stage: &str, total_bytes: Option<u64>) {
        {
            let mut job = lock(&self.job);
            (job.stage, job.done_bytes, job.total_bytes) = (Some(stage.to_owned()), 0, total_bytes);
        }
        let mut told = lock(&self.told);
        if told.elapsed() >= TOLD_EVERY {
            *told = Instant::now();
            drop(told);
            self.tell(DaemonEventKind::JobProgress);
        }
    }

    fn advanced(&self, bytes: u64) {
        lock(&self.job).done_bytes += bytes;
    }

    fn finished(&self, _outcome: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_run_and_so_many_ended_ones_are_kept() {
        let jobs = Jobs::new(Arc::new(Feed::new(10)));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let mut running = Vec::new();
        for _ in 0..MAX_RUNNING {
            let wait = Arc::clone(&wait);
            let work = move |progress: &dyn Progress| {
                progress.started("waiting", Some(7));
                progress.advanced(3);
                let _ = lock(&wait).recv();
                Err("in vain".to_owned())
            };
            running.push(jobs.start(JobKind::VerifyImages, work).unwrap());
        }
        assert_eq!(jobs.start(JobKind::VerifyImages, |_| Ok(Box::new(|_| ()))).unwrap_err(), TooMany);
        drop(go);
        for handle in &running {
            handle.ended().await;
            let job = handle.describe();
            assert_eq!((job.state, job.detail.as_deref()), (JobState::Failed, Some("in vain")));
            assert!(job.ended_at >= Some(job.created_at) && job.stage.is_none() && job.done_bytes == 3);
        }
        for _ in 0..KEPT {
            jobs.start(JobKind::VerifyImages, |_| Ok(Box::new(|_| ()))).unwrap().ended().await;
        }
        assert_eq!(jobs.list().len(), KEPT, "the oldest are forgotten");
        assert!(jobs.get(&running[0].describe().id).is_none());
    }
}
