//! The Unix socket that the API listens on.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::{UnixListener, UnixStream};

/// Who is at the other end (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy)]
pub struct PeerCredentials {
    /// User id.
    pub uid: u32,
    /// Process id, if the kernel tells it.
    pub pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for PeerCredentials {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let stream: &UnixStream = stream.io();
        // Without credentials the peer is logged as nobody.
        stream.peer_cred().map_or(Self { uid: u32::MAX, pid: None }, |peer| Self { uid: peer.uid(), pid: peer.pid() })
    }
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
