//! The note to the keeper about each sandbox: which container it has, and what is nowhere on a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::handle::Handle;
use crate::idempotency::IdempotencyKey;
use crate::keeper::{Keeper, Kept, Key};

/// What is to be known of a sandbox besides its row. Its variables lie in a file in memory, which comes with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// Its container; none while it is stopped.
    #[serde(default)]
    pub container: Option<String>,
    pub claimed_at_ms: u64,
    #[serde(default)]
    pub key: Option<IdempotencyKey>,
}

/// Lets it survive the daemon, with the container that it is about to claim, or without one. Variables whose values are lost
/// stay lost.
///
/// # Errors
/// The daemon has no descriptor or no memory left.
pub(super) fn keep(keeper: &Keeper, handle: &Handle, container: Option<&str>) -> io::Result<()> {
    let Ok(env) = handle.env() else { return Ok(()) };
    let file = rustix::fs::memfd_create("thawd-sandbox", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(&Zeroizing::new(serde_json::to_vec(env)?))?;
    let claimed_at_ms = crate::telemetry::unix_ms();
    let note = Note { container: container.map(str::to_owned), claimed_at_ms, key: handle.key().cloned() };
    let file = Arc::new(OwnedFd::from(file));
    keeper.put(Key::Sandbox(handle.id().to_owned()), serde_json::to_string(&note)?, vec![file]);
    Ok(())
}

/// What was kept of one: the note, and its variables.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn read(kept: &Kept) -> Result<(Note, BTreeMap<String, String>), String> {
    let note: Note = serde_json::from_str(&kept.note).map_err(|error| error.to_string())?;
    let file = kept.fds.first().ok_or("its variables were not kept")?;
    let variables = (|| {
        let file = File::from(file.try_clone()?);
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?]);
        file.read_exact_at(&mut bytes, 0)?;
        Ok::<_, io::Error>(serde_json::from_slice(&bytes)?)
    })();
    Ok((note, variables.map_err(|error| format!("its variables cannot be read: {error}"))?))
}
