//! What systemd and the daemon tell each other: readiness, status, watchdog, sockets. Without systemd all of it is
//! silent.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The listening socket that systemd opened for us (sd_listen_fds(3)), if it did: `thawd.socket` has one.
///
/// # Errors
/// More than one socket, or one that is no Unix stream socket.
pub fn inherited_listener() -> io::Result<Option<UnixListener>> {
    let mut sockets = ListenFd::from_env();
    if sockets.len() > 1 {
        return Err(io::Error::other("systemd passed more than one socket; thawd.socket must have one ListenStream="));
    }
    let listener = sockets.take_unix_listener(0)?;
    if let Some(listener) = &listener {
        listener.set_nonblocking(true)?;
    }
    Ok(listener)
}

/// The daemon serves.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows, one line.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// The configuration is about to be read again; [`ready`] ends this.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "reloading not announced"),
    }
}

/// The daemon is ending.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// A sign of life for the watchdog.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Time within which systemd wants a sign of life (`WatchdogSec=`), if it does.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd not notified");
    }
}
