//! Client of the keeper: remembers what was given to the keeper, and runs the one task that sends queued messages and
//! replaces a keeper that died or hangs.
//!
//! Callers never wait: sending a message is a system call that does not block. When the keeper's socket is full,
//! messages are queued and the task sends them later. A keeper that takes no message for `daemon.keeper_stall_ms`
//! counts as hung; its successor gets everything. [`Keeper::caught_up`] tells when the queue is empty.

use std::collections::{BTreeMap, VecDeque};
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
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use rustix::time::Timespec;
use serde_json::Value;
use tokio::io::Interest;
use tokio::sync::{Notify, watch};

use super::SOCKET;
use super::key::Key;
use super::protocol::{MAX_MESSAGE, NAMES, Reply, Request, VERSION};
use thaw_os::cgroup::Hierarchy;
use thaw_os::kernel::{self, Watched};

/// Longest time for a keeper to send what it holds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Size of the send buffer, bytes: some hundred messages, so that a claim does not wait for the keeper to run.
const SEND_BUFFER: usize = 1 << 20;

/// Pause before the next try to replace a keeper.
const AGAIN: Duration = Duration::from_secs(1);

/// Why no keeper can be used.
#[derive(Debug, thiserror::Error)]
#[error("the keeper process cannot be used: {step}: {source}")]
pub struct KeeperError {
    step: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> KeeperError {
    move |error| KeeperError { step, source: error.into() }
}

/// Program and socket of the keeper, and its limits.
#[derive(Debug, Clone)]
pub struct Location {
    /// This program, which is also the keeper's.
    pub program: PathBuf,
    /// Directory of the keeper's socket.
    pub run_dir: PathBuf,
    /// Longest time that the keeper stays without a daemon.
    pub timeout: Duration,
    /// Longest time that the keeper may take no message.
    pub stall: Duration,
}

/// What was kept under a key.
#[derive(Debug)]
pub struct Kept {
    /// Note of the daemon that put it there.
    pub note: String,
    /// Descriptors in the order in which they were put.
    pub fds: Vec<Arc<OwnedFd>>,
}

/// The connection to the keeper.
#[derive(Debug)]
pub struct Keeper {
    location: Location,
    hierarchy: Arc<Hierarchy>,
    failures: Counter,
    state: Mutex<State>,
    /// Wakes the owner task: messages are queued, or the connection has ended.
    work: Notify,
    /// Number of queued messages.
    behind: watch::Sender<usize>,
}

/// State of the connection. The lock is held for moments only, never while waiting.
#[derive(Debug)]
struct State {
    /// Connection; `None` while the keeper is being replaced.
    socket: Option<OwnedFd>,
    /// What it says that it speaks.
    version: u32,
    /// Only if this daemon started it: to be waited for when it ends.
    child: Option<Child>,
    /// What it keeps, so that another one can be told if it dies.
    items: BTreeMap<Key, (String, Vec<Arc<OwnedFd>>)>,
    /// What it has not been told yet, oldest first.
    unsent: VecDeque<Message>,
    /// Whether this daemon has ended the keeper for good.
    ended: bool,
}

impl State {
    /// A key as the keeper takes it.
    fn write(&self, key: &Key) -> Value {
        if self.version == NAMES { key.write_name().into() } else { key.write() }
    }
}

#[derive(Debug)]
struct Message {
    body: Vec<u8>,
    fds: Vec<Arc<OwnedFd>>,
}

impl Message {
    fn new(request: &Request, fds: Vec<Arc<OwnedFd>>) -> io::Result<Self> {
        Ok(Self { body: serde_json::to_vec(request)?, fds })
    }

    fn put(key: Value, note: &str, fds: &[Arc<OwnedFd>]) -> io::Result<Self> {
        Self::new(&Request::Put { key, note: note.to_owned() }, fds.to_vec())
    }

    /// Sends the message without waiting.
    fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        loop {
            match kernel::send(socket, &[&self.body], &fds) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }
}

impl Keeper {
    /// Connects to the running keeper or starts one; returns what it holds. Blocks for some milliseconds; must be
    /// called in a tokio runtime. `failures` counts replaced keepers.
    ///
    /// # Errors
    /// A keeper can neither be reached nor be started.
    pub fn start(
        location: Location,
        hierarchy: Arc<Hierarchy>,
        failures: Counter,
    ) -> Result<(Arc<Self>, BTreeMap<Key, Kept>), KeeperError> {
        let address = location.run_dir.join(SOCKET);
        let found = match reach(&address) {
            Ok(found) => Some(found),
            Err(error) => {
                if error.source.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "what an earlier keeper held is lost");
                }
                None
            }
        };
        let (Reached { socket, version, kept }, child) = match found {
            Some(reached) => (reached, None),
            None => {
                let (reached, child) = launch(&location, &hierarchy)?;
                (reached, Some(child))
            }
        };
        let watched = watch_socket(&socket)?;
        let mut items = BTreeMap::new();
        for (key, Kept { note, fds }) in &kept {
            items.insert(key.clone(), (note.clone(), fds.clone()));
        }
        let state = State { socket: Some(socket), version, child, items, unsent: VecDeque::new(), ended: false };
        let (work, behind) = (Notify::new(), watch::Sender::new(0));
        let this = Arc::new(Self { location, hierarchy, failures, state: Mutex::new(state), work, behind });
        tokio::spawn(Arc::clone(&this).own(watched));
        Ok((this, kept))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `fds` under `key`. Once this has returned, they survive the daemon, unless messages are queued; see
    /// [`Self::caught_up`]. Never blocks.
    pub fn put(&self, key: Key, note: String, fds: Vec<Arc<OwnedFd>>) {
        let mut state = self.lock();
        let message = Message::put(state.write(&key), &note, &fds);
        self.tell(&mut state, message);
        state.items.insert(key, (note, fds));
    }

    /// Keeps what has this key no more. Never blocks.
    pub fn forget(&self, key: &Key) {
        let mut state = self.lock();
        if state.items.remove(key).is_some() {
            let message = Message::new(&Request::Drop { key: state.write(key) }, Vec::new());
            self.tell(&mut state, message);
        }
    }

    /// Whether the next daemon could find this keeper: whether its socket exists.
    pub fn is_reachable(&self) -> bool {
        self.location.run_dir.join(SOCKET).exists()
    }

    /// Replaces the keeper if the next daemon could not find it.
    pub fn renew(&self) {
        let mut state = self.lock();
        // Without a connection, the keeper is being replaced already.
        if !self.is_reachable() && state.socket.is_some() {
            self.give_up(&mut state, &io::Error::other("its socket was removed"));
        }
    }

    /// Returns once all queued messages are sent; at once if none are. A hung keeper is replaced after
    /// `daemon.keeper_stall_ms`. While there is no keeper, this does not wait.
    pub async fn caught_up(&self) {
        // `self` owns the sender, so this cannot fail.
        let _ = self.behind.subscribe().wait_for(|behind| *behind == 0).await;
    }

    /// Sends a message, or queues it. Without a keeper this does nothing: the next keeper gets everything.
    fn tell(&self, state: &mut State, message: io::Result<Message>) {
        let Some(socket) = &state.socket else { return };
        let sent = match &message {
            Ok(message) if state.unsent.is_empty() => message.send(socket.as_fd()),
            Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        match (sent, message) {
            (Ok(()), _) => {}
            (Err(error), Ok(message)) if error.kind() == io::ErrorKind::WouldBlock => {
                state.unsent.push_back(message);
                self.note_behind(state);
                self.work.notify_one();
            }
            (Err(error), _) => self.give_up(state, &error),
        }
    }

    /// Drops the connection to a keeper that has ended or hangs; the owner task replaces the keeper.
    fn give_up(&self, state: &mut State, error: &io::Error) {
        tracing::error!(%error, "the keeper could not be told");
        (state.socket, state.unsent) = (None, VecDeque::new());
        self.note_behind(state);
        self.work.notify_one();
    }

    fn note_behind(&self, state: &State) {
        let behind = state.unsent.len();
        self.behind.send_if_modified(|now| std::mem::replace(now, behind) != behind);
    }

    /// Ends the keeper, when the daemon stops for good and nothing is left to keep.
    pub async fn end(self: &Arc<Self>) {
        let this = Arc::clone(self);
        if let Err(error) = tokio::task::spawn_blocking(move || this.end_blocking()).await {
            tracing::warn!(%error, "the keeper does not end");
        }
    }

    /// As [`Self::end`], on a thread that may block: up to a second, plus the time that killing a process takes.
    pub fn end_blocking(&self) {
        let child = {
            let mut state = self.lock();
            self.tell(&mut state, Message::new(&Request::End, Vec::new()));
            (state.socket, state.ended) = (None, true);
            state.items.clear();
            state.unsent.clear();
            self.note_behind(&state);
            state.child.take()
        };
        self.work.notify_one();
        if let Err(error) = std::fs::remove_file(self.location.run_dir.join(SOCKET)) {
            tracing::debug!(%error, "the keeper's socket");
        }
        if let Err(error) = self.hierarchy.end_keeper() {
            tracing::warn!(%error, "the keeper does not end");
        }
        if let Some(child) = child {
            kernel::kill_and_reap(child);
        }
    }

    /// Sends queued messages, and replaces a keeper that died or hangs, for as long as the daemon lives.
    async fn own(self: Arc<Self>, mut watched: Watched) {
        loop {
            let mut reason = self.serve(&watched).await;
            loop {
                if self.lock().ended {
                    return;
                }
                self.failures.inc();
                tracing::error!(%reason, "the keeper process ended, or hangs");
                match self.replace().await {
                    // It has taken its place only when it has been told everything: until then, what it was not told
                    // would end with this daemon.
                    Ok(next) => match self.send_queued(&next).await {
                        Ok(()) => {
                            tracing::info!("another keeper has taken its place");
                            watched = next;
                            break;
                        }
                        Err(error) => reason = error,
                    },
                    Err(error) => tracing::error!(%error, "nothing would survive this daemon now"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Sends queued messages until the connection ends; returns why.
    async fn serve(&self, watched: &Watched) -> io::Error {
        let ended = async {
            let mut buffer = [0; 16];
            // After the greeting the keeper sends nothing: whatever can be read is the end of the connection.
            let heard = watched.run(Interest::READABLE, |socket| kernel::receive(socket, &mut buffer)).await;
            heard.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                error = &mut ended => return error,
                () = self.work.notified() => if let Err(error) = self.send_queued(watched).await {
                    return error;
                },
            }
        }
    }

    async fn send_queued(&self, watched: &Watched) -> io::Result<()> {
        loop {
            let next = watched.run(Interest::WRITABLE, |_| self.send_next());
            match tokio::time::timeout(self.location.stall, next).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let ms = self.location.stall.as_millis();
                    let message = format!("it took nothing in for {ms} ms (`daemon.keeper_stall_ms`)");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
            }
        }
    }

    /// Sends the oldest queued message; returns whether there was one.
    fn send_next(&self) -> io::Result<bool> {
        let mut state = self.lock();
        let Some(socket) = &state.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let Some(message) = state.unsent.front() else { return Ok(false) };
        message.send(socket.as_fd())?;
        state.unsent.pop_front();
        self.note_behind(&state);
        Ok(true)
    }

    async fn replace(self: &Arc<Self>) -> Result<Watched, KeeperError> {
        let child = {
            let mut state = self.lock();
            (state.socket, state.unsent) = (None, VecDeque::new());
            self.note_behind(&state);
            state.child.take()
        };
        if let Some(child) = child {
            kernel::kill_and_reap(child);
        }
        let this = Arc::clone(self);
        let launched = tokio::task::spawn_blocking(move || launch(&this.location, &this.hierarchy)).await;
        let (Reached { socket, version, .. }, child) =
            launched.map_err(|error| failed("start it")(io::Error::other(error)))??;
        let watched = watch_socket(&socket)?;
        let mut state = self.lock();
        if state.ended {
            drop(state);
            kernel::kill_and_reap(child);
            return Err(failed("start it")(io::Error::other("the daemon is being stopped")));
        }
        state.version = version;
        let all = state.items.iter().map(|(key, (note, fds))| Message::put(state.write(key), note, fds));
        state.unsent = all.collect::<Result<_, _>>().map_err(failed("tell it everything"))?;
        (state.socket, state.child) = (Some(socket), Some(child));
        self.note_behind(&state);
        self.work.notify_one();
        Ok(watched)
    }
}

fn watch_socket(socket: &OwnedFd) -> Result<Watched, KeeperError> {
    let own = socket.try_clone().map_err(failed("watch it"))?;
    Watched::new(own, Interest::READABLE | Interest::WRITABLE).map_err(failed("watch it"))
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
        // Without CAP_NET_ADMIN in the host's namespace, net.core.wmem_max is the limit.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
    }
    Ok(socket)
}

fn address(path: &Path) -> Result<SocketAddrUnix, KeeperError> {
    SocketAddrUnix::new(path).map_err(failed("name its socket"))
}

/// A keeper that was connected to.
#[derive(Debug)]
struct Reached {
    socket: OwnedFd,
    version: u32,
    kept: BTreeMap<Key, Kept>,
}

/// Connects to a keeper and takes what it has kept.
fn reach(path: &Path) -> Result<Reached, KeeperError> {
    let socket = open_socket()?;
    connect(&socket, &address(path)?).map_err(failed("connect"))?;
    take_kept(socket)
}

fn take_kept(socket: OwnedFd) -> Result<Reached, KeeperError> {
    let until = Instant::now() + PATIENCE;
    let mut kept = BTreeMap::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut greeted = None;
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
        match (reply, greeted) {
            (Reply::Hello { version: version @ (VERSION | NAMES) }, _) => greeted = Some(version),
            (Reply::Item { key, note }, Some(version)) => {
                let key = match &key {
                    Value::String(name) if version == NAMES => Key::read_name(name),
                    key => Key::read(key),
                };
                let fds = received.fds.into_iter().map(Arc::new).collect();
                kept.insert(key, Kept { note, fds });
            }
            (Reply::Done, Some(version)) => return Ok(Reached { socket, version, kept }),
            _ => return Err(failed("understand it")(io::Error::other("it speaks another version"))),
        }
    }
}

/// Starts a keeper, in a cgroup of its own and in nobody's process group, after clearing away any other one.
fn launch(location: &Location, hierarchy: &Hierarchy) -> Result<(Reached, Child), KeeperError> {
    let cgroup = hierarchy.fresh_keeper().map_err(io::Error::other).map_err(failed("make its cgroup"))?;
    let path = location.run_dir.join(SOCKET);
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
    let mut command = Command::new(&location.program);
    command.arg("keeper").arg("--timeout").arg(location.timeout.as_secs().to_string());
    for directory in hierarchy.bases() {
        command.arg("--cgroup").arg(directory);
    }
    let child = command
        .env_clear()
        .current_dir("/")
        // Signals to the daemon's process group must not reach the keeper.
        .process_group(0)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("start it"))?;
    std::fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).map_err(failed("move it to its cgroup"))?;
    Ok((reach(&path)?, child))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A keeper that says `replies` to whoever comes.
    fn keeper(replies: &[Value]) -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, its) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        for reply in replies {
            kernel::send(its.as_fd(), &[reply.to_string().as_bytes()], &[]).unwrap();
        }
        (ours, its)
    }

    fn item(key: Value) -> Value {
        json!({"item": {"key": key, "note": "n"}})
    }

    #[test]
    fn what_a_keeper_of_the_last_version_holds_is_not_lost() {
        let items = ["c-1", "e-1", "e-1/stdout", "v-1"].map(|name| item(name.into()));
        let [c, e, t, v] = items;
        let (socket, _its) = keeper(&[json!({"hello": {"version": NAMES}}), c, e, t, v, json!("done")]);
        let reached = take_kept(socket).unwrap();
        let keys: Vec<Key> = reached.kept.into_keys().collect();
        let expected = [
            Key::Container("c-1".to_owned()),
            Key::Execution("e-1".to_owned()),
            Key::Transit("e-1".to_owned(), "stdout".to_owned()),
            Key::Unknown("\"v-1\"".to_owned()),
        ];
        assert_eq!(keys, expected);
        let state = |version| {
            let (items, unsent) = (BTreeMap::new(), VecDeque::new());
            State { socket: None, version, child: None, items, unsent, ended: false }
        };
        // It is told in names, and one that this version started in keys.
        let told: Vec<Value> = keys.iter().map(|key| state(NAMES).write(key)).collect();
        assert_eq!(told, ["c-1", "e-1", "e-1/stdout", "v-1"]);
        assert_eq!(state(VERSION).write(&keys[0]), json!({"container": "c-1"}));
    }

    #[test]
    fn a_keeper_of_another_version_is_not_understood() {
        for replies in [vec![json!({"hello": {"version": 4}}), json!("done")], vec![json!("done")]] {
            let (socket, _its) = keeper(&replies);
            take_kept(socket).unwrap_err();
        }
    }
}
