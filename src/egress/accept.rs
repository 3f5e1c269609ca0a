//! A container's connections, from the moment they are accepted: who is served, who waits for a place, and who is told
//! that there was none.
//!
//! A package manager opens hundreds of connections at once and gives up when some are refused. So connections beyond
//! the limit wait in the order in which they came. Nothing is read from those that wait: each costs a descriptor and
//! an entry in a list.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::forward;
use super::meter::Account;
use super::shared::{BUFFER_BYTES, Shared};
use super::slot::{Open, Slot};
use crate::peer;

/// Connections that are told at the same time that they waited in vain.
const TURNED_AWAY: usize = 8;

/// Pause after a failed accept (most likely out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that waits for a place.
#[derive(Debug)]
struct Waiting {
    client: TcpStream,
    open: Open,
    until: Instant,
}

/// Those that wait, the longest first.
#[derive(Debug)]
struct Line {
    account: Arc<Account>,
    waiting: VecDeque<Waiting>,
}

impl Line {
    fn push(&mut self, waiting: Waiting) {
        self.account.waiting(1);
        self.waiting.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let first = self.waiting.pop_front()?;
        self.account.waiting(-1);
        Some(first)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// Accepts connections until it is dropped.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let limits = &shared.limits;
    let served = Arc::new(Semaphore::new(limits.connections));
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    let mut line = Line { account: Arc::clone(&shared.account), waiting: VecDeque::new() };
    let mut failing = false;
    loop {
        let is_crowded = !line.waiting.is_empty() && served.available_permits() == 0;
        shared.crowded.send_if_modified(|crowded| std::mem::replace(crowded, is_crowded) != is_crowded);
        let (full, first) = (line.waiting.len() >= limits.waiting, line.waiting.front().map(|first| first.until));
        tokio::select! {
            biased;
            // The semaphores are never closed.
            Ok(permit) = Arc::clone(&served).acquire_owned(), if first.is_some() => {
                start(&shared, line.pop(), permit, true);
            }
            Ok(permit) = too_late(first, &turned_away), if first.is_some() => {
                start(&shared, line.pop(), permit, false);
            }
            accepted = listener.accept(), if !full => match accepted {
                Ok((client, _)) => {
                    failing = false;
                    let until = Instant::now() + limits.place_timeout;
                    line.push(Waiting { client, open: Open::new(&shared.account), until });
                }
                Err(error) => {
                    pause(&shared, &error, failing).await;
                    failing = true;
                }
            },
        }
    }
}

/// A permit to tell the first of the line, which waits until `deadline`, that its time is over.
async fn too_late(
    deadline: Option<Instant>,
    turned_away: &Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, tokio::sync::AcquireError> {
    if let Some(deadline) = deadline {
        sleep_until(deadline).await;
    }
    Arc::clone(turned_away).acquire_owned().await
}

async fn pause(shared: &Shared, error: &io::Error, failing: bool) {
    if !failing {
        tracing::warn!(target: "egress", container = %shared.container, %error, "cannot accept");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn start(shared: &Arc<Shared>, first: Option<Waiting>, permit: OwnedSemaphorePermit, is_served: bool) {
    if let Some(Waiting { client, open, .. }) = first {
        let slot = Arc::new(Slot::new(is_served, permit, open));
        shared.spawn(serve(client, slot, Arc::clone(shared)));
    }
}

async fn serve(client: TcpStream, slot: Arc<Slot>, shared: Arc<Shared>) {
    // Tokens are small and must not wait for each other; failure only costs latency.
    let _ = client.set_nodelay(true);
    let client = Arc::new(client);
    let answered = Arc::new(Notify::new());
    let service = {
        let (shared, answered) = (Arc::clone(&shared), Arc::clone(&answered));
        service_fn(move |request: Request<Incoming>| {
            let is_tunnel = request.method() == Method::CONNECT;
            let (shared, slot, answered) = (Arc::clone(&shared), Arc::clone(&slot), Arc::clone(&answered));
            // Boxed: it holds a whole exchange, and a waiting connection should stay small.
            Box::pin(async move {
                let mut response = forward::answer(&shared, &slot, request).await;
                if !is_tunnel {
                    if *shared.crowded.borrow() {
                        forward::close(&mut response);
                    }
                    answered.notify_one();
                }
                Ok::<_, Infallible>(response)
            })
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.header_timeout)
        .max_header_size(shared.limits.header_bytes)
        .max_buf_size(BUFFER_BYTES.max(shared.limits.header_bytes))
        // A client may have said all that it has to say, and still wait for the answer: see `peer`.
        .half_close(true)
        .serve_connection(TokioIo::new(peer::Shared(Arc::clone(&client))), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut gone = std::pin::pin!(peer::gone(&*client));
    let mut needed = std::pin::pin!(needed_by_others(&answered, shared.crowded.subscribe()));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // The client's doing: malformed bytes (answered with 400 or 431 by hyper), a time-out or a reset.
                    tracing::debug!(target: "egress", container = %shared.container, %error, "connection ended early");
                }
                return;
            }
            () = gone.as_mut() => {
                tracing::debug!(target: "egress", container = %shared.container, "the client is gone");
                return;
            }
            // At once if it is between two requests, otherwise behind the answer that it is at.
            () = needed.as_mut(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Returns when a connection has answered a request and others wait for its place. One that was not asked anything yet is
/// never closed for them: its client could not tell that from a failure.
async fn needed_by_others(answered: &Notify, mut crowded: watch::Receiver<bool>) {
    answered.notified().await;
    if crowded.wait_for(|crowded| *crowded).await.is_err() {
        // The proxy has ended, and this task with it.
        std::future::pending::<()>().await;
    }
}
