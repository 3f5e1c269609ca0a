//! A container's connections, from the moment they are accepted: which are served, which wait for a slot, and which are
//! answered that no slot became free.
//!
//! A package manager opens hundreds of connections at once and gives up when some are refused. So connections beyond
//! the limit wait, first come, first served. The proxy reads nothing from a waiting connection: each costs a descriptor
//! and an entry in a list.

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

/// Most connections that are answered with 503 at the same time because they waited in vain.
const TURNED_AWAY: usize = 8;

/// Pause after a failed accept (most likely out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection that waits for a slot.
#[derive(Debug)]
struct Waiting {
    client: TcpStream,
    open: Open,
    until: Instant,
}

/// The connections that wait, in order of arrival.
#[derive(Debug)]
struct WaitingQueue {
    account: Arc<Account>,
    waiting: VecDeque<Waiting>,
}

impl WaitingQueue {
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

impl Drop for WaitingQueue {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// Accepts connections until it is dropped.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let limits = &shared.limits;
    let served = Arc::new(Semaphore::new(limits.connections));
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY));
    let mut queue = WaitingQueue { account: Arc::clone(&shared.account), waiting: VecDeque::new() };
    let mut failing = false;
    loop {
        let is_crowded = !queue.waiting.is_empty() && served.available_permits() == 0;
        shared.crowded.send_if_modified(|crowded| std::mem::replace(crowded, is_crowded) != is_crowded);
        let (full, first) = (queue.waiting.len() >= limits.waiting, queue.waiting.front().map(|first| first.until));
        tokio::select! {
            biased;
            // `acquire_owned` fails only on a closed semaphore; these are never closed.
            Ok(permit) = Arc::clone(&served).acquire_owned(), if first.is_some() => {
                start(&shared, queue.pop(), permit, true);
            }
            Ok(permit) = too_late(first, &turned_away), if first.is_some() => {
                start(&shared, queue.pop(), permit, false);
            }
            accepted = listener.accept(), if !full => match accepted {
                Ok((client, _)) => {
                    failing = false;
                    let until = Instant::now() + limits.place_timeout;
                    queue.push(Waiting { client, open: Open::new(&shared.account), until });
                }
                Err(error) => {
                    pause(&shared, &error, failing).await;
                    failing = true;
                }
            },
        }
    }
}

/// Waits until the first connection's `deadline` has passed; returns a permit to answer it with 503.
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
            // Boxed: the future holds a whole exchange, and an idle connection should stay small.
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
        // A client may close its sending half and still wait for the answer: see `peer`.
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
                    // The client caused this: malformed bytes (hyper answers with 400 or 431), a time-out or a reset.
                    tracing::debug!(target: "egress", container = %shared.container, %error, "connection ended early");
                }
                return;
            }
            () = gone.as_mut() => {
                tracing::debug!(target: "egress", container = %shared.container, "the client is gone");
                return;
            }
            // Closes at once between two requests, otherwise after the current answer.
            () = needed.as_mut(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Returns when the connection has answered a request and others wait for its slot. A connection without a request so
/// far is never closed for others: its client could not tell that from a failure.
async fn needed_by_others(answered: &Notify, mut crowded: watch::Receiver<bool>) {
    answered.notified().await;
    if crowded.wait_for(|crowded| *crowded).await.is_err() {
        // The proxy has ended, and this task ends with it.
        std::future::pending::<()>().await;
    }
}
