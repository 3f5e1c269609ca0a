//! Limits on what the daemon spends for containers: CPU time and connections to upstreams.
//!
//! A container could make the daemon work without end at almost no cost of its own: a request is some bytes on its
//! loopback. So requests have a rate, and the CPU time of all tasks that serve a container is charged to the container.
//! A container that has used up its budget waits with all its connections, while others go on.
//!
//! Of what all containers share, each either has a reserved part that no other can use, or takes turns with the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use std::sync::atomic::AtomicU64;
use tokio::sync::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::rate::Bucket;

/// A counter of seconds.
pub(super) type Seconds = Counter<f64, AtomicU64>;

/// Share of a container's own CPU rate that is reserved for it, whatever the others use.
const RESERVED: f64 = 0.1;

/// Burst after a pause, in seconds' worth of requests: a package manager asks for everything at the start.
const BURST_SECONDS: f64 = 5.0;

/// A rate per second for a bucket; 0 means no limit.
fn rate(per_second: u32) -> Option<f64> {
    (per_second > 0).then(|| f64::from(per_second))
}

fn percent(percent: u32) -> Option<f64> {
    (percent > 0).then(|| f64::from(percent) / 100.0)
}

/// Budget that all containers share.
#[derive(Debug)]
pub struct Total {
    /// Rate of connections to upstreams.
    connects: Bucket,
    /// Turn for one of those connections. Each container queues with one request at a time.
    turn: Mutex<()>,
    /// CPU time, seconds.
    cpu: Bucket,
}

impl Total {
    /// Rates of all containers together; 0 means no limit.
    pub fn new(connects_per_second: u32, cpu_percent: u32) -> Self {
        let (connects, cpu) = (rate(connects_per_second), percent(cpu_percent));
        Self {
            connects: Bucket::with(connects, connects.unwrap_or(0.0)),
            turn: Mutex::new(()),
            cpu: Bucket::with(cpu, cpu.unwrap_or(0.0)),
        }
    }
}

/// Budget of one container, and what the container has used.
#[derive(Debug)]
pub(super) struct Budget {
    total: Arc<Total>,
    requests: Bucket,
    /// Lets one request of the container at a time into the queue for what all share.
    turn: Mutex<()>,
    cpu: Bucket,
    reserved: Bucket,
    used: Seconds,
    /// The daemon's counters over all containers: CPU time, and time for which tasks were held back.
    used_by_all: Seconds,
    held_back: Seconds,
}

impl Budget {
    pub(super) fn new(
        total: Arc<Total>,
        requests_per_second: u32,
        cpu_percent: u32,
        used_by_all: Seconds,
        held_back: Seconds,
    ) -> Self {
        let (requests, cpu) = (rate(requests_per_second), percent(cpu_percent));
        Self {
            total,
            requests: Bucket::with(requests, requests.unwrap_or(0.0) * BURST_SECONDS),
            turn: Mutex::new(()),
            cpu: Bucket::with(cpu, cpu.unwrap_or(0.0)),
            reserved: Bucket::with(cpu.map(|cpu| cpu * RESERVED), cpu.unwrap_or(0.0) * RESERVED),
            used: Seconds::default(),
            used_by_all,
            held_back,
        }
    }

    /// Returns when the container may make one more request.
    pub(super) async fn request(&self) {
        pass(&self.requests).await;
    }

    /// Returns when the container may connect to one more upstream.
    pub(super) async fn connect(&self) {
        let _own = self.turn.lock().await;
        let _among_all = self.total.turn.lock().await;
        pass(&self.total.connects).await;
    }

    /// CPU time that the daemon has spent for the container, seconds.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.used.get()
    }

    /// Time until the container's tasks may go on; `None` is now.
    fn wait(&self) -> Option<Duration> {
        let own = self.cpu.wait();
        // While others use up the shared budget, the reserved part is left.
        let shared = self.total.cpu.wait().and_then(|all| self.reserved.wait().map(|reserved| reserved.min(all)));
        own.max(shared)
    }

    fn charge(&self, seconds: f64) {
        self.cpu.take(seconds);
        self.reserved.take(seconds);
        self.total.cpu.take(seconds);
        self.used.inc_by(seconds);
        self.used_by_all.inc_by(seconds);
    }
}

async fn pass(bucket: &Bucket) {
    while let Some(time) = bucket.wait() {
        tokio::time::sleep(time).await;
    }
    bucket.take(1.0);
}

/// A task whose CPU time is charged to a container. The task waits while the container's budget is used up.
pub(super) struct Charged<F> {
    task: Pin<Box<F>>,
    budget: Arc<Budget>,
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl<F> Charged<F> {
    pub(super) fn new(task: F, budget: Arc<Budget>) -> Self {
        Self { task: Box::pin(task), budget, waiting: None }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.sleep.as_mut().poll(cx));
                self.budget.held_back.inc_by(waiting.since.elapsed().as_secs_f64());
                self.waiting = None;
            }
            let Some(time) = self.budget.wait() else { return Poll::Ready(()) };
            let since = Instant::now();
            self.waiting = Some(Waiting { since, sleep: Box::pin(sleep_until(since + time)) });
        }
    }
}

impl<F: Future> Future for Charged<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        ready!(self.poll_turn(cx));
        let begun = thread_seconds();
        let result = self.task.as_mut().poll(cx);
        self.budget.charge((thread_seconds() - begun).max(0.0));
        result
    }
}

/// CPU time of this thread.
fn thread_seconds() -> f64 {
    thaw_os::kernel::thread_cpu_time().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(total: &Arc<Total>, requests: u32, cpu: u32) -> Arc<Budget> {
        Arc::new(Budget::new(Arc::clone(total), requests, cpu, Seconds::default(), Seconds::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_pass_at_the_rate_after_some_at_once() {
        let budget = budget(&Arc::new(Total::new(0, 0)), 10, 0);
        let begun = Instant::now();
        for _ in 0..50 {
            budget.request().await;
        }
        assert!(begun.elapsed() < Duration::from_millis(10), "{:?}", begun.elapsed());
        for _ in 0..100 {
            budget.request().await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        assert!((9.8..10.3).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn containers_take_turns_for_connections() {
        let total = Arc::new(Total::new(10, 0));
        let (greedy, modest) = (budget(&total, 0, 0), budget(&total, 0, 0));
        let mut many = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let greedy = Arc::clone(&greedy);
            many.spawn(async move { greedy.connect().await });
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let begun = Instant::now();
        for _ in 0..10 {
            modest.connect().await;
        }
        // Every second one is the modest container's, although 400 of the other one's came before.
        let seconds = begun.elapsed().as_secs_f64();
        assert!((1.5..2.5).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_used_up_its_cpu_time_waits_and_others_do_not() {
        let total = Arc::new(Total::new(0, 50));
        let (greedy, modest) = (budget(&total, 0, 20), budget(&total, 0, 20));
        assert_eq!(greedy.wait(), None);
        greedy.charge(1.2);
        // 0.2 s passed at once, a fifth of a second a second: one second's worth is owed.
        let wait = greedy.wait().unwrap().as_secs_f64();
        assert!((4.9..5.1).contains(&wait), "{wait}");
        assert_eq!(modest.wait(), None, "all together have used more than they may, but this one has not");
        modest.charge(0.03);
        let wait = modest.wait().unwrap().as_secs_f64();
        assert!((0.4..0.6).contains(&wait), "its own part is back before the others' debt is paid: {wait}");
        assert_eq!(budget(&Arc::new(Total::new(0, 0)), 0, 0).wait(), None);
    }

    #[tokio::test]
    async fn the_time_of_a_task_is_charged_and_it_is_held_back() {
        let budget = budget(&Arc::new(Total::new(0, 0)), 0, 10);
        let begun = Instant::now();
        let work = async {
            for _ in 0..10 {
                let until = thread_seconds() + 0.03;
                while thread_seconds() < until {}
                tokio::task::yield_now().await;
            }
        };
        Charged::new(work, Arc::clone(&budget)).await;
        let used = budget.cpu_seconds();
        assert!((0.29..0.6).contains(&used), "{used}");
        // A tenth of a second at once; the rest, but for the last piece, at a tenth of a CPU.
        assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
        // On a busy machine, most of that may pass without it.
        assert!(budget.held_back.get() > 0.0);
    }
}
