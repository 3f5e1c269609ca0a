//! Counts the bytes that pass, holds them back to the rate, and notices when none pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Limits;
use super::budget::Budget;
use super::metrics::{EgressMetrics, Outcome};
use super::rate::{Bucket, Turn};

/// What one container has used since its proxy was started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Bytes sent to upstreams, headers and TLS included.
    pub bytes_out: u64,
    /// Bytes received from upstreams.
    pub bytes_in: u64,
    /// Requests that were forwarded or tunnelled.
    pub allowed: u64,
    /// Requests that were not, for whatever reason.
    pub refused: u64,
    /// Connections from the container that are open now.
    pub open: u64,
    /// CPU time that the daemon has spent for the container, seconds.
    pub cpu_seconds: f64,
}

/// One container's numbers; every count also goes to the daemon's metrics.
#[derive(Debug)]
pub(super) struct Account {
    metrics: Arc<EgressMetrics>,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    allowed: AtomicU64,
    refused: AtomicU64,
    open: AtomicU64,
    /// CPU time and connections that the daemon may spend for the container.
    pub(super) budget: Arc<Budget>,
    /// Rates towards upstreams (`out`) and from them (`in`).
    out: Bucket,
    r#in: Bucket,
}

/// Reader of one container's usage; valid also after the proxy has ended.
#[derive(Debug, Clone)]
pub struct Meter(pub(super) Arc<Account>);

impl Meter {
    /// Usage as of now.
    pub fn read(&self) -> Usage {
        self.0.usage()
    }
}

impl Account {
    /// An account with the rates of a container that serves no execution yet.
    pub(super) fn new(metrics: Arc<EgressMetrics>, limits: &Limits) -> Self {
        let mbit_per_second = limits.idle_mbit_per_second;
        Self {
            budget: Arc::new(metrics.budget(limits.requests_per_second, limits.cpu_percent)),
            metrics,
            out: Bucket::new(mbit_per_second),
            r#in: Bucket::new(mbit_per_second),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            allowed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    /// Changes the rate of each direction.
    pub(super) fn set_rate(&self, mbit_per_second: u32) {
        self.out.set(mbit_per_second);
        self.r#in.set(mbit_per_second);
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            allowed: self.allowed.load(Relaxed),
            refused: self.refused.load(Relaxed),
            open: self.open.load(Relaxed),
            cpu_seconds: self.budget.cpu_seconds(),
        }
    }

    pub(super) fn count(&self, outcome: Outcome) {
        let total = if outcome == Outcome::Allowed { &self.allowed } else { &self.refused };
        total.fetch_add(1, Relaxed);
        self.metrics.count(outcome);
    }

    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
        self.metrics.open.inc();
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
        self.metrics.open.dec();
    }

    /// Changes the number of connections that wait for a slot.
    pub(super) fn waiting(&self, change: i64) {
        self.metrics.waiting.inc_by(change);
    }

    fn sent(&self, bytes: usize) {
        self.out.take(bytes as f64);
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.metrics.bytes_out.inc_by(bytes as u64);
    }

    fn received(&self, bytes: usize) {
        self.r#in.take(bytes as f64);
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.metrics.bytes_in.inc_by(bytes as u64);
    }
}

/// Time of the last byte on an upstream connection, in either direction.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds since `start`; an `Instant` has no atomic form.
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        // Lossless: u64 milliseconds last longer than the machine.
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// Whether no byte has moved for `timeout`.
    pub(super) fn is_idle(&self, timeout: Duration) -> bool {
        Instant::now() >= self.deadline(timeout)
    }

    /// Returns as soon as no byte has moved for `timeout`.
    pub(super) async fn idle(&self, timeout: Duration) {
        while !self.is_idle(timeout) {
            tokio::time::sleep_until(self.deadline(timeout)).await;
        }
    }

    fn deadline(&self, timeout: Duration) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed)) + timeout
    }
}

/// A connection to an upstream. Its bytes are counted, and held back to the container's rate.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    account: Arc<Account>,
    activity: Arc<Activity>,
    reading: Turn,
    writing: Turn,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, account: Arc<Account>) -> Self {
        let (reading, writing) = (Turn::default(), Turn::default());
        Self { stream, account, activity: Arc::new(Activity::new()), reading, writing }
    }

    fn may_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.reading.poll(cx, &self.account.r#in)
    }

    fn may_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.writing.poll(cx, &self.account.out)
    }

    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    fn wrote(&self, result: &io::Result<usize>) {
        if let Ok(bytes) = result {
            self.account.sent(*bytes);
            self.activity.touch();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.may_read(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.account.received(buf.filled().len() - before);
        self.activity.touch();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.may_write(cx));
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.wrote(&result);
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.may_write(cx));
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.wrote(&result);
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
