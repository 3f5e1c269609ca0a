//! The Unix socket that the API listens on, and its connections: how many, and how long each may keep us waiting.
//!
//! `axum::serve` has no limits, so the loop is our own, around hyper's connections.

use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use thaw_client::config::{Connections, TURNED_AWAY};

use super::ApiError;
use super::stall::Stalling;
use crate::peer;

/// What those may ask all the same: otherwise clients could make the daemon look dead.
const ALWAYS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// How long one of those may be silent: whoever asks how the daemon is has its turn although others only hold on.
const TURNED_AWAY_PATIENCE: Duration = Duration::from_millis(300);

/// How long one of those may be silent at least, when others wait for their turn: what it asks is there with it.
const TURNED_AWAY_LEAST: Duration = Duration::from_millis(5);

/// Largest head of a request, bytes.
pub(super) const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Most that hyper buffers per connection and direction, bytes.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Pause after a failed accept (most likely out of descriptors), so that the loop does not spin.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy)]
pub struct PeerCredentials {
    /// User id.
    pub uid: u32,
    /// Process id, if the kernel tells it.
    pub pid: Option<i32>,
}

impl PeerCredentials {
    fn of(stream: &UnixStream) -> Self {
        // Without credentials the peer is nobody.
        stream.peer_cred().map_or(Self { uid: u32::MAX, pid: None }, |peer| Self { uid: peer.uid(), pid: peer.pid() })
    }
}

/// Serves `router` on `listener` until `stop`; returns when every connection has ended after that. Each may finish the
/// answer that it is at.
pub async fn serve(listener: UnixListener, router: Router, limits: Connections, stop: CancellationToken) {
    let shared = Arc::new(Shared {
        router,
        served: Arc::new(Semaphore::new(limits.max)),
        accepted: Arc::new(Semaphore::new(limits.max + TURNED_AWAY)),
        next: Notify::new(),
        limits,
        stop: stop.clone(),
    });
    let tasks = TaskTracker::new();
    // `None` means stopped.
    let _ = stop.run_until_cancelled(accept(&listener, &shared, &tasks)).await;
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

struct Shared {
    router: Router,
    served: Arc<Semaphore>,
    accepted: Arc<Semaphore>,
    /// Somebody waits for the place of one who has been turned away and says nothing. The one who came first goes first.
    next: Notify,
    limits: Connections,
    stop: CancellationToken,
}

async fn accept(listener: &UnixListener, shared: &Arc<Shared>, tasks: &TaskTracker) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failing = false;
                let Some(place) = shared.place().await else { return };
                let shared = Arc::clone(shared);
                // Here, so that they are served in the order in which they came.
                let served = Arc::clone(&shared.served).try_acquire_owned().ok();
                tasks.spawn(async move {
                    serve_connection(stream, &shared, served.is_some()).await;
                    drop((served, place));
                });
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "cannot accept connections; tried again all the time");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, shared: &Arc<Shared>, has_place: bool) {
    let peer = PeerCredentials::of(&stream);
    let stream = Arc::new(stream);
    let welcome = if !shared.admits(peer.uid) {
        tracing::warn!(peer_uid = peer.uid, peer_pid = peer.pid, "refused: not among `api.connections.allowed_uids`");
        Welcome::Stranger(peer.uid)
    } else if !has_place {
        tracing::warn!(peer_uid = peer.uid, peer_pid = peer.pid, max = shared.limits.max, "too many connections");
        Welcome::Crowded(shared.limits.max)
    } else {
        Welcome::Yes
    };
    let asks = Arc::new(AtomicBool::new(false));
    let service = {
        let (shared, asks) = (Arc::clone(shared), Arc::clone(&asks));
        service_fn(move |request| {
            asks.store(true, Ordering::Relaxed);
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(answer(&shared.router, request, peer, welcome).await) }
        })
    };
    let (head, stall) = match welcome {
        Welcome::Yes => (
            Duration::from_secs(shared.limits.header_timeout_seconds),
            Duration::from_secs(shared.limits.write_stall_seconds),
        ),
        Welcome::Crowded(_) | Welcome::Stranger(_) => (TURNED_AWAY_PATIENCE, TURNED_AWAY_PATIENCE),
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(BUFFER_BYTES)
        // A client may have said all that it has to say, and still wait for the answer: see `peer`.
        .half_close(true)
        .serve_connection(TokioIo::new(Stalling::new(peer::Shared(Arc::clone(&stream)), stall)), service);
    let mut connection = std::pin::pin!(connection);
    let mut gone = std::pin::pin!(peer::gone(&*stream));
    let mut silent = std::pin::pin!(shared.silent_too_long(!matches!(welcome, Welcome::Yes), &asks));
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            // First what has arrived: who asks for a cancellation and leaves is still heard.
            biased;
            ended = connection.as_mut() => break ended,
            () = gone.as_mut() => {
                tracing::debug!(peer_uid = peer.uid, peer_pid = peer.pid, "the client is gone");
                return;
            }
            () = silent.as_mut() => {
                tracing::debug!(peer_uid = peer.uid, peer_pid = peer.pid, "turned away without having asked anything");
                return;
            }
            () = shared.stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        // The client's doing: nonsense (answered by hyper with 400 or 431), too slow, or gone.
        let cause = error.source().map(ToString::to_string);
        tracing::debug!(peer_uid = peer.uid, peer_pid = peer.pid, %error, cause, "connection ended early");
    }
}

impl Shared {
    /// A place for one more connection; `None` never, since the semaphore is not closed.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.accepted).try_acquire_owned() {
            return Some(place);
        }
        self.next.notify_one();
        Arc::clone(&self.accepted).acquire_owned().await.ok()
    }

    /// Ends when a connection that was `turned_away`, and has not asked anything yet, has to make way for the next one.
    async fn silent_too_long(&self, turned_away: bool, asks: &AtomicBool) {
        if turned_away {
            tokio::time::sleep(TURNED_AWAY_LEAST).await;
            if !asks.load(Ordering::Relaxed) {
                self.next.notified().await;
                if !asks.load(Ordering::Relaxed) {
                    return;
                }
                self.next.notify_one();
            }
        }
        std::future::pending().await
    }

    fn admits(&self, uid: u32) -> bool {
        let allowed = &self.limits.allowed_uids;
        allowed.is_empty() || uid == 0 || allowed.contains(&uid)
    }
}

/// How a connection is received.
#[derive(Debug, Clone, Copy)]
enum Welcome {
    Yes,
    Crowded(usize),
    Stranger(u32),
}

async fn answer(router: &Router, request: Request<Incoming>, peer: PeerCredentials, welcome: Welcome) -> Response {
    let refusal = match welcome {
        Welcome::Stranger(uid) => {
            let detail = format!("user {uid} may not use this API (`api.connections.allowed_uids`)");
            ApiError::new(StatusCode::FORBIDDEN, "forbidden_uid", detail)
        }
        Welcome::Crowded(max) if !ALWAYS.contains(&request.uri().path()) => {
            let detail = format!("{max} connections are open already, the most there may be (`api.connections.max`)");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", detail)
        }
        Welcome::Crowded(_) | Welcome::Yes => {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let mut response = match router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if matches!(welcome, Welcome::Crowded(_)) {
                close(&mut response);
            }
            return response;
        }
    };
    let mut response = refusal.into_response();
    close(&mut response);
    response
}

fn close(response: &mut Response) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Listens on `path`, mode 0660, group `group` if it exists. A socket that a killed daemon left is replaced; one
/// that somebody serves is not.
///
/// # Errors
/// Another daemon serves it, or the directory cannot be written.
pub fn bind(path: &Path, group: &str) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("another daemon serves {}; stop it, or choose another `api.socket`", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody may connect between bind and chmod: the socket is made in a directory of ours under another name.
    let staging = path.with_extension("new");
    let _ = std::fs::remove_file(&staging);
    let listener = UnixListener::bind(&staging)?;
    std::fs::set_permissions(&staging, PermissionsExt::from_mode(0o600))?;
    if let Some(gid) = group_id(group)? {
        std::os::unix::fs::chown(&staging, Some(0), Some(gid))?;
        std::fs::set_permissions(&staging, PermissionsExt::from_mode(0o660))?;
    }
    std::fs::rename(&staging, path)?;
    Ok(listener)
}

/// Group id by name, from group(5).
fn group_id(name: &str) -> io::Result<Option<u32>> {
    let groups = std::fs::read_to_string("/etc/group")?;
    Ok(groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    }))
}
