//! Process of the keeper.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with};
use rustix::time::Timespec;

use super::protocol::{MAX_MESSAGE, Reply, Request, VERSION};
use thaw_os::cgroup;
use thaw_os::kernel;

/// OOM score adjustment: the keeper is killed after everything that can be started again, since all containers end with
/// it.
const OOM_SCORE_ADJUSTMENT: &str = "-900";

/// By key, as JSON: what a key means is the daemons' to know.
#[derive(Default)]
struct Items(BTreeMap<String, (String, Vec<OwnedFd>)>);

/// Serves the listening socket on standard input until a daemon ends it. Without a daemon for `timeout`, kills and
/// removes every container's cgroup below `cgroups`, of which the first is the v2 core's.
///
/// # Errors
/// The socket is unusable, or the containers' cgroups cannot be removed.
pub fn serve(timeout: Duration, cgroups: &[PathBuf]) -> io::Result<()> {
    prepare();
    let listener = rustix::stdio::stdin();
    let mut items = Items::default();
    let mut daemon: Option<OwnedFd> = None;
    let mut alone_since = Instant::now();
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let left = timeout.saturating_sub(alone_since.elapsed());
        if daemon.is_none() && left.is_zero() {
            drop(items);
            return clear(listener, cgroups);
        }
        let wait = daemon.is_none().then(|| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let (incoming, message) = {
            let mut polled = vec![PollFd::from_borrowed_fd(listener, PollFlags::IN)];
            polled.extend(daemon.iter().map(|daemon| PollFd::new(daemon, PollFlags::IN)));
            match poll(&mut polled, wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready = |index: usize| polled.get(index).is_some_and(|fd| !fd.revents().is_empty());
            (ready(0), ready(1))
        };
        // Read the last daemon's messages to the end before the next daemon gets the list.
        if let Some(current) = daemon.as_ref().filter(|_| message) {
            match receive(current.as_fd(), &mut items, &mut buffer) {
                Ok(Received::Message) => {}
                Ok(Received::End) => return Ok(()),
                Ok(Received::Gone) | Err(_) => {
                    daemon = None;
                    alone_since = Instant::now();
                }
            }
        } else if incoming && let Ok(next) = accept_with(listener, SocketFlags::CLOEXEC) {
            // The lock on the cgroup makes sure that there is one daemon at a time.
            daemon = items.tell(next.as_fd()).is_ok().then_some(next);
            alone_since = Instant::now();
        }
    }
}

fn prepare() {
    // None of these can fail for root; the keeper works without them too.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, most);
}

enum Received {
    Message,
    End,
    Gone,
}

fn receive(daemon: BorrowedFd<'_>, items: &mut Items, buffer: &mut [u8]) -> io::Result<Received> {
    let received = match kernel::receive(daemon, buffer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Received::Message),
        received => received?,
    };
    if received.length == 0 {
        return Ok(Received::Gone);
    }
    match serde_json::from_slice(&buffer[..received.length]).map_err(io::Error::other)? {
        Request::Put { key, note } => drop(items.0.insert(key.to_string(), (note, received.fds))),
        Request::Drop { key } => drop(items.0.remove(&key.to_string())),
        Request::End => return Ok(Received::End),
    }
    Ok(Received::Message)
}

impl Items {
    fn tell(&self, daemon: BorrowedFd<'_>) -> io::Result<()> {
        send(daemon, &Reply::Hello { version: VERSION }, &[])?;
        for (key, (note, fds)) in &self.0 {
            let key = serde_json::from_str(key).map_err(io::Error::other)?;
            send(daemon, &Reply::Item { key, note: note.clone() }, fds)?;
        }
        send(daemon, &Reply::Done, &[])
    }
}

fn send(daemon: BorrowedFd<'_>, reply: &Reply, fds: &[OwnedFd]) -> io::Result<()> {
    let body = serde_json::to_vec(reply).map_err(io::Error::other)?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    kernel::send(daemon, &[&body], &fds)
}

/// Destroys the containers that no daemon came back for, and removes the keeper's own socket.
fn clear(listener: BorrowedFd<'_>, cgroups: &[PathBuf]) -> io::Result<()> {
    let cgroups: Vec<&Path> = cgroups.iter().map(PathBuf::as_path).collect();
    cgroup::clear_abandoned(&cgroups).map_err(io::Error::other)?;
    // From here on, a daemon that connects finds no keeper and starts another one.
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(listener)?)?;
    if let Some(path) = address.path() {
        std::fs::remove_file(Path::new(OsStr::from_bytes(path.to_bytes())))?;
    }
    cgroup::leave_nothing(&cgroups).map_err(io::Error::other)
}
