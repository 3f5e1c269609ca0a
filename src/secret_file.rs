//! Files that hold a secret: root's, closed to others, and small.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Most that a secret has, bytes.
pub const MAX_BYTES: u64 = 4096;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not as it has to be.
    #[error("{0}")]
    Wrong(&'static str),
}

/// Reads the file.
///
/// # Errors
/// See [`SecretFileError`].
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    // Neither through a link nor for ever: a FIFO could stand there.
    let flags = OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits();
    let flags = i32::try_from(flags).unwrap_or_default();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    let is = file.metadata()?;
    if !is.is_file() {
        return Err(SecretFileError::Wrong("is no file"));
    }
    if is.uid() != 0 && is.uid() != rustix::process::geteuid().as_raw() {
        return Err(SecretFileError::Wrong("belongs to another user; it must be root's (chown root)"));
    }
    if is.mode() & 0o077 != 0 {
        return Err(SecretFileError::Wrong("can be opened by others; its mode must be 0600 (chmod 600)"));
    }
    if is.len() > MAX_BYTES {
        return Err(SecretFileError::Wrong("is larger than 4096 bytes: it holds something else"));
    }
    Ok(read_all(&mut file)?)
}

/// Reads into memory that is not moved while it grows, so that no copy is left behind.
///
/// # Errors
/// It cannot be read, or there is more than [`MAX_BYTES`].
pub fn read_all(from: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("there are more than 4096 bytes"));
    }
    Ok(bytes)
}
