//! systemd's service protocol: readiness, status, watchdog and passed sockets. Without systemd, all functions do
//! nothing.

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The listening socket that systemd passed (sd_listen_fds(3)), if any; `thawd.socket` has one.
///
/// # Errors
/// systemd passed more than one socket, or one that is not a Unix stream socket.
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

/// Announces that the daemon serves.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Sets the line that `systemctl status` shows.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Announces that the configuration is about to be read again; [`ready`] ends that.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "reloading not announced"),
    }
}

/// Announces that the daemon is ending.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Sends a sign of life to the watchdog.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Time within which systemd expects a sign of life (`WatchdogSec=`); `None` if it expects none.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd not notified");
    }
}
