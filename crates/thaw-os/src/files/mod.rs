//! Files of a container that lives, from outside: read, written, listed, removed, packed and unpacked while its processes run,
//! or are frozen.
//!
//! ```text
//! Place ── run ──► a thread of its own, as the container's user ──► Files ── read, create, list, … ──► ended with the thread
//! ```
//!
//! Every path is resolved by `openat2` below the container's own root, which cannot be left whatever somebody inside changes
//! meanwhile. What a path means is looked at without being opened (`O_PATH`); only regular files and directories are opened,
//! through the descriptor that was looked at. Files of the kernel (`/proc`, `/dev/pts` and the like) and the directory of
//! credentials are not reached at all: whose request this is decides the daemon, not the kernel.
//!
//! Deliberately absent: who may ask, limits of the container's space (its file systems have them), and any write in place: a
//! file is made beside the old one and takes its place at once.

mod archive;
mod error;
mod look;
mod tree;
mod write;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

pub use archive::Packing;
pub use error::{FileError, Why};
pub use look::{FileKind, Info, Listing};
pub use write::{Condition, NewFile};

use crate::kernel;

/// Where the files of one container are, and whose those are that are made.
#[derive(Debug)]
pub struct Place {
    root: OwnedFd,
    /// First host id of the container.
    id_base: u32,
    /// User and group inside.
    owner: (u32, u32),
    /// File systems that are not reached, by their device numbers.
    hidden: Vec<u64>,
    /// Held while a file takes the place of another one, so that conditions of two requests do not cross.
    turn: Arc<Mutex<()>>,
}

/// How much one call may take in or give out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Size of a file or an archive, bytes.
    pub bytes: u64,
    /// Files, directories and links of an archive, or of a directory that is removed.
    pub entries: u64,
}

impl Place {
    /// The files below `root`, of a container whose ids begin with `id_base` of the host, for the user and group inside. All
    /// places of one container have one `turn`.
    pub fn new(root: OwnedFd, id_base: u32, owner: (u32, u32), hidden: Vec<u64>, turn: Arc<Mutex<()>>) -> Self {
        Self { root, id_base, owner, hidden, turn }
    }

    /// Does something with the files on a thread of its own, and gives its result. The thread acts as the container's user
    /// until it ends.
    ///
    /// # Errors
    /// No thread can be started. The receiver fails if the kernel does not let it act as that user.
    pub fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Files<'_>) -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (done, result) = oneshot::channel();
        let this = Arc::clone(self);
        std::thread::Builder::new().name("files".to_owned()).spawn(move || {
            let (user, group) = (this.id_base + this.owner.0, this.id_base + this.owner.1);
            match kernel::own_files_as(user, group) {
                Ok(()) => drop(done.send(work(&Files { place: &this }))),
                Err(error) => tracing::error!(%error, "a thread cannot act as a container's user"),
            }
        })?;
        Ok(result)
    }
}

/// The files of a place, on a thread that acts as the container's user.
#[derive(Debug)]
pub struct Files<'a> {
    place: &'a Place,
}

/// A name in a directory.
struct Named {
    /// The directory, opened to be looked at.
    above: OwnedFd,
    name: CString,
}

#[cfg(test)]
mod tests;
