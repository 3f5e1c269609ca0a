//! Starts the process that asks a token endpoint, and waits for its reply.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use thaw_client::types::Secret;
use thaw_os::cgroup::Hierarchy;
use thaw_os::kernel::{self, Watched};
use tokio::io::Interest;
use zeroize::Zeroizing;

use super::token_request::{MAX_MESSAGE, TokenRequest};
use crate::keeper::{Keeper, Kept, Key};
use crate::provider::Endpoint;

/// Time besides that of the request: for starting the process, and for one that an earlier daemon has started.
const SLACK: Duration = Duration::from_secs(5);

/// Variables that an HTTP client takes proxy and authorities from.
const VARIABLES: [&str; 10] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Starts a process that takes its request from a socket, and sends its reply there.
pub type Start = Box<dyn Fn(OwnedFd) -> io::Result<()> + Send + Sync>;

/// How such processes are started.
pub struct TokenProcesses {
    start: Start,
    /// What keeps the socket when the daemon dies.
    keeper: Option<Arc<Keeper>>,
    /// Addresses of hosts that the operator has given.
    resolve: BTreeMap<String, Vec<IpAddr>>,
}

impl std::fmt::Debug for TokenProcesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenProcesses").finish_non_exhaustive()
    }
}

/// What the next daemon has to know of a renewal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// Whose login.
    pub user: String,
    /// For which provider.
    pub provider: String,
    /// Which content is renewed: the answer belongs to no other.
    pub fingerprint: String,
    /// Who holds the lease, in a database that several daemons share.
    pub holder: String,
}

/// A renewal that is under way.
#[derive(Debug)]
pub struct Pending {
    key: Key,
    /// What it is.
    pub note: Note,
    socket: Watched,
}

impl Pending {
    /// One that an earlier daemon has begun.
    ///
    /// # Errors
    /// What was kept is of another kind.
    pub fn resume(key: Key, kept: &Kept) -> io::Result<Self> {
        let note = serde_json::from_str(&kept.note)?;
        let socket = kept.fds.first().ok_or(io::ErrorKind::UnexpectedEof)?.try_clone()?;
        Ok(Self { key, note, socket: Watched::new(socket, Interest::READABLE)? })
    }

    /// Its reply, which stays in the socket: until it is stored, the next daemon must find it there too.
    ///
    /// # Errors
    /// The process has ended without a reply, or takes too long.
    pub async fn reply(&self, timeout: Duration) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE]);
        let peeked = self.socket.run(Interest::READABLE, |socket| kernel::peek(socket, &mut buffer));
        let length = tokio::time::timeout(timeout + SLACK, peeked).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if length == 0 {
            return Err(io::Error::other("the process that asks for it has ended without an answer"));
        }
        buffer.truncate(length);
        Ok(buffer)
    }
}

impl TokenProcesses {
    /// Started by `start`. Without a keeper, an answer is lost with the daemon that waits for it.
    pub fn new(start: Start, keeper: Option<Arc<Keeper>>, resolve: BTreeMap<String, Vec<IpAddr>>) -> Self {
        Self { start, keeper, resolve }
    }

    /// Starts a process that asks for a login to be renewed. The keeper has the socket before anything is asked.
    ///
    /// # Errors
    /// The process cannot be started.
    pub async fn begin(
        &self,
        note: Note,
        endpoint: Endpoint<'_>,
        refresh_token: Secret,
        timeout: Duration,
    ) -> io::Result<Pending> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let request = TokenRequest {
            url: endpoint.url.to_owned(),
            encoding: endpoint.encoding,
            client_id: endpoint.client_id.to_owned(),
            refresh_token,
            resolve: self.resolve.iter().map(|(host, all)| (host.clone(), addresses(all))).collect(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        {
            let mut message = Zeroizing::new(Vec::with_capacity(MAX_MESSAGE));
            serde_json::to_writer(&mut *message, &request)?;
            kernel::send(ours.as_fd(), &[&message], &[])?;
        }
        let key = Key::Refresh(format!("r-{}", ulid::Ulid::new().to_string().to_lowercase()));
        let kept = Arc::new(ours.try_clone()?);
        if let Some(keeper) = &self.keeper {
            keeper.put(key.clone(), serde_json::to_string(&note)?, vec![kept]);
            keeper.caught_up().await;
        }
        match (self.start)(its).and_then(|()| Watched::new(ours, Interest::READABLE)) {
            Ok(socket) => Ok(Pending { key, note, socket }),
            Err(error) => {
                self.forget_key(&key);
                Err(error)
            }
        }
    }

    /// What came of it is stored, or worth nothing.
    pub fn forget(&self, pending: &Pending) {
        self.forget_key(&pending.key);
    }

    /// The same of one that nobody can go on with.
    pub fn forget_key(&self, key: &Key) {
        if let Some(keeper) = &self.keeper {
            keeper.forget(key);
        }
    }
}

/// Starts `thawd refresh`, which lives on in the keeper's cgroup when the daemon is stopped.
pub fn start_with(program: PathBuf, hierarchy: Arc<Hierarchy>) -> Start {
    Box::new(move |socket| {
        let variables = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = tokio::process::Command::new(&program)
            .arg("refresh")
            .env_clear()
            .envs(variables)
            .current_dir("/")
            // Signals to the daemon's process group must not reach it.
            .process_group(0)
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(Err(error)) = child.id().map(|pid| hierarchy.move_to_keeper(pid)) {
            tracing::warn!(%error, "a process that renews a login would end with this daemon");
        }
        tokio::spawn(async move { child.wait().await });
        Ok(())
    })
}

fn addresses(of: &[IpAddr]) -> Vec<SocketAddr> {
    // The port is that of the address.
    of.iter().map(|address| SocketAddr::new(*address, 0)).collect()
}
