//! The daemon's side: what it has given to the keeper, and the one task that replaces a keeper that died.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::time::Timespec;
use tokio::io::Interest;

use super::SOCKET;
use super::protocol::{MAX_MESSAGE, Reply, Request, VERSION};
use thaw_os::cgroup::Hierarchy;
use thaw_os::kernel::{self, Watched};

/// How long a keeper may take to say what it has.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to make room for one more message: microseconds, unless it does not run at all. Claims wait.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// Send buffer asked for, bytes: some hundred messages, so that a claim does not wait for the keeper to run.
const SEND_BUFFER: usize = 1 << 20;

/// Pause before a keeper that died is replaced once more.
const AGAIN: Duration = Duration::from_secs(1);

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
#[error("the keeper process cannot be used: {step}: {source}")]
pub struct KeeperError {
    step: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> KeeperError {
    move |error| KeeperError { step, source: error.into() }
}

/// Where the keeper's process and socket are.
#[derive(Debug, Clone)]
pub struct Place {
    /// This program.
    pub program: PathBuf,
    /// The directory of its socket.
    pub run_dir: PathBuf,
    /// How long it stays without a daemon.
    pub timeout: Duration,
}

/// What was kept under a name.
#[derive(Debug)]
pub struct Kept {
    /// What the daemon that put it there wanted to know about it.
    pub note: String,
    /// The descriptors, in the order in which they were given.
    pub fds: Vec<Arc<OwnedFd>>,
}

/// The connection to the keeper.
#[derive(Debug)]
pub struct Keeper {
    place: Place,
    hierarchy: Arc<Hierarchy>,
    failures: Counter,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: Option<OwnedFd>,
    /// Only if this daemon started it: to be waited for when it ends.
    child: Option<Child>,
    /// What it keeps, so that another one can be told if it dies.
    items: BTreeMap<String, (String, Vec<Arc<OwnedFd>>)>,
    /// By us, for good.
    ended: bool,
}

impl Keeper {
    /// Connects to the keeper that is there, or starts one. Returns what it has kept. Blocks for as long as that takes,
    /// some milliseconds; must be called in a tokio runtime. `failures` counts those that had to be replaced.
    ///
    /// # Errors
    /// It can neither be reached nor be started.
    pub fn start(
        place: Place,
        hierarchy: Arc<Hierarchy>,
        failures: Counter,
    ) -> Result<(Arc<Self>, BTreeMap<String, Kept>), KeeperError> {
        let address = place.run_dir.join(SOCKET);
        let found = match reach(&address) {
            Ok(found) => Some(found),
            Err(error) => {
                if error.source.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "what an earlier keeper held is lost");
                }
                None
            }
        };
        let (socket, child, kept) = match found {
            Some((socket, kept)) => (socket, None, kept),
            None => {
                let (socket, child) = launch(&place, &hierarchy)?;
                (socket, Some(child), BTreeMap::new())
            }
        };
        let ears = socket.try_clone().map_err(failed("hear it"))?;
        let mut items = BTreeMap::new();
        for (key, Kept { note, fds }) in &kept {
            items.insert(key.clone(), (note.clone(), fds.clone()));
        }
        let state = Mutex::new(State { socket: Some(socket), child, items, ended: false });
        let this = Arc::new(Self { place, hierarchy, failures, state });
        tokio::spawn(Arc::clone(&this).look_after(ears));
        Ok((this, kept))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `fds` under `key`. Once this has returned, they survive the daemon. That it cannot be done is said in the log:
    /// then the daemon's end is the end of what they belong to.
    pub fn put(&self, key: &str, note: String, fds: Vec<Arc<OwnedFd>>) {
        let mut state = self.lock();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        state.send(&Request::Put { key: key.to_owned(), note: note.clone() }, &borrowed);
        state.items.insert(key.to_owned(), (note, fds));
    }

    /// Keeps what has this name no more.
    pub fn forget(&self, key: &str) {
        let mut state = self.lock();
        if state.items.remove(key).is_some() {
            state.send(&Request::Drop { key: key.to_owned() }, &[]);
        }
    }

    /// Whether the next daemon would find it: its socket is there.
    pub fn is_reachable(&self) -> bool {
        self.place.run_dir.join(SOCKET).exists()
    }

    /// Lets another keeper take its place if the next daemon would not find this one.
    pub fn renew(&self) {
        let state = self.lock();
        // It may just have been replaced.
        if !self.is_reachable()
            && let Some(socket) = &state.socket
        {
            // Wakes the task that looks after it.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }

    /// Ends the keeper: the daemon is stopped for good, and nothing is left to keep.
    pub fn end(&self) {
        let mut state = self.lock();
        state.send(&Request::End, &[]);
        (state.socket, state.ended) = (None, true);
        state.items.clear();
        if let Err(error) = std::fs::remove_file(self.place.run_dir.join(SOCKET)) {
            tracing::debug!(%error, "the keeper's socket");
        }
        if let Err(error) = self.hierarchy.end_keeper() {
            tracing::warn!(%error, "the keeper does not end");
        }
        if let Some(mut child) = state.child.take() {
            // It has ended; else the kill is what it waits for, frozen or not.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Replaces a keeper that died, for as long as the daemon lives.
    async fn look_after(self: Arc<Self>, mut ears: OwnedFd) {
        loop {
            if let Ok(ears) = Watched::new(ears, Interest::READABLE) {
                let mut buffer = [0; 16];
                // It says nothing more; what comes is its end.
                let _ = ears.run(Interest::READABLE, |socket| kernel::receive(socket, &mut buffer)).await;
            }
            loop {
                if self.lock().ended {
                    return;
                }
                self.failures.inc();
                tracing::error!("the keeper process ended, or hangs");
                let this = Arc::clone(&self);
                match tokio::task::spawn_blocking(move || this.replace()).await {
                    Ok(Ok(next)) => {
                        tracing::info!("another keeper has taken its place");
                        ears = next;
                        break;
                    }
                    Ok(Err(error)) => tracing::error!(%error, "nothing would survive this daemon now"),
                    Err(error) => tracing::error!(%error, "nothing would survive this daemon now"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn replace(&self) -> Result<OwnedFd, KeeperError> {
        let mut state = self.lock();
        state.socket = None;
        if let Some(mut child) = state.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (socket, child) = launch(&self.place, &self.hierarchy)?;
        let ears = socket.try_clone().map_err(failed("hear it"))?;
        (state.socket, state.child) = (Some(socket), Some(child));
        let items = std::mem::take(&mut state.items);
        for (key, (note, fds)) in &items {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            state.send(&Request::Put { key: key.clone(), note: note.clone() }, &fds);
        }
        state.items = items;
        Ok(ears)
    }
}

impl State {
    fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        let sent = serde_json::to_vec(request).map_err(io::Error::other).and_then(|body| deliver(socket, &body, fds));
        if let Err(error) = sent {
            tracing::error!(%error, "the keeper could not be told");
            // Wakes the task that looks after it, which replaces it, whether it has ended or hangs: the next one is told
            // everything. Until then nobody else waits for this one.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
            self.socket = None;
        }
    }
}

/// Sends to a socket that does not block, waiting a while if it is full.
fn deliver(socket: &OwnedFd, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let until = Instant::now() + SEND_PATIENCE;
    loop {
        match kernel::send(socket.as_fd(), &[body], fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(socket, PollFlags::OUT, until)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            sent => return sent,
        }
    }
}

fn wait(socket: &OwnedFd, wanted: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::new(socket, wanted)], Some(&timeout)) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer")),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_socket() -> Result<OwnedFd, KeeperError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed("open a socket"))?;
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
        // Without CAP_NET_ADMIN over the host the limit is net.core.wmem_max.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
    }
    Ok(socket)
}

fn address(path: &Path) -> Result<SocketAddrUnix, KeeperError> {
    SocketAddrUnix::new(path).map_err(failed("name its socket"))
}

/// Connects to a keeper and takes what it has kept.
fn reach(path: &Path) -> Result<(OwnedFd, BTreeMap<String, Kept>), KeeperError> {
    let socket = open_socket()?;
    connect(&socket, &address(path)?).map_err(failed("connect"))?;
    let until = Instant::now() + PATIENCE;
    let mut kept = BTreeMap::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut greeted = false;
    loop {
        let received = match kernel::receive(socket.as_fd(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(&socket, PollFlags::IN, until).map_err(failed("wait for it"))?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received.map_err(failed("hear it"))?,
        };
        if received.length == 0 {
            return Err(failed("hear it")(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        let reply = serde_json::from_slice(&buffer[..received.length]).map_err(failed("understand it"))?;
        match reply {
            Reply::Hello { version } if version == VERSION => greeted = true,
            Reply::Item { key, note } if greeted => {
                let fds = received.fds.into_iter().map(Arc::new).collect();
                kept.insert(key, Kept { note, fds });
            }
            Reply::Done if greeted => return Ok((socket, kept)),
            _ => return Err(failed("understand it")(io::Error::other("it speaks another version"))),
        }
    }
}

/// Starts a keeper, in a cgroup of its own and in nobody's process group, after clearing away any other one.
fn launch(place: &Place, hierarchy: &Hierarchy) -> Result<(OwnedFd, Child), KeeperError> {
    let cgroup = hierarchy.fresh_keeper().map_err(io::Error::other).map_err(failed("make its cgroup"))?;
    let path = place.run_dir.join(SOCKET);
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed("remove an old socket")(error));
    }
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(failed("open its socket"))?;
    bind(&listener, &address(&path)?).map_err(failed("bind its socket"))?;
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600)).map_err(failed("close its socket to others"))?;
    listen(&listener, 4).map_err(failed("listen"))?;
    let mut command = Command::new(&place.program);
    command.arg("keeper").arg("--timeout").arg(place.timeout.as_secs().to_string());
    for directory in hierarchy.bases() {
        command.arg("--cgroup").arg(directory);
    }
    let child = command
        .env_clear()
        .current_dir("/")
        // Nothing that is meant for the daemon's group is meant for it.
        .process_group(0)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("start it"))?;
    std::fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).map_err(failed("move it to its cgroup"))?;
    let (socket, _) = reach(&path)?;
    Ok((socket, child))
}
