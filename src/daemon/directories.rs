//! Directories, programs and sockets that a start needs.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::error::{DaemonError, io_error};
use thaw_client::config::Config;

pub(super) fn inherit(listener: std::os::unix::net::UnixListener) -> io::Result<(UnixListener, PathBuf)> {
    let address = listener.local_addr()?;
    let path = address.as_pathname().ok_or_else(|| io::Error::other("the inherited socket has no path"))?.to_owned();
    Ok((UnixListener::from_std(listener)?, path))
}

/// The directory of the state; whether it cannot be written. A running daemon does not need to, and so it does not keep
/// one from starting.
pub(super) fn state_directory(path: &Path) -> Result<bool, DaemonError> {
    match directory(path, 0o700) {
        Err(DaemonError::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem && path.is_dir() => {
            tracing::error!(
                state_dir = %path.display(),
                "the state directory is on a read-only file system: images that are unpacked are served, others cannot be \
                 unpacked; make it writable, then restart thawd"
            );
            Ok(true)
        }
        prepared => prepared.map(|()| false),
    }
}

/// Searchable by all, because the socket's group must reach the socket; nothing in it is readable by others.
pub(super) fn public_directory(path: &Path) -> Result<(), DaemonError> {
    directory(path, 0o755)
}

fn directory(path: &Path, mode: u32) -> Result<(), DaemonError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let what = || format!("prepare {}", path.display());
    std::fs::create_dir_all(path).map_err(io_error(what()))?;
    let is = std::fs::symlink_metadata(path).map_err(io_error(what()))?;
    // Its mode is about to be set: /tmp by mistake must not become anybody's, least of all ours.
    if is.uid() != rustix::process::geteuid().as_raw() || is.mode() & 0o1002 != 0 {
        let error = io::Error::other("it is shared with others; name a directory that is for thawd alone");
        return Err(io_error(what())(error));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_error(what()))
}

pub(super) fn init_program(config: &Config, program: &Path) -> Result<PathBuf, DaemonError> {
    let init = config.paths.init_program.clone().unwrap_or_else(|| program.with_file_name("thaw-init"));
    if init.is_file() {
        return Ok(init);
    }
    let what = format!("{} (install it beside thawd or set `paths.init_program`)", init.display());
    Err(io_error(what)(io::ErrorKind::NotFound.into()))
}

pub(super) fn listen_for_metrics(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener, DaemonError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    });
    listener.map_err(io_error(format!("listen on {address} (`metrics.listen`)")))
}
