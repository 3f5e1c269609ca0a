//! `thawd vault init`: makes a master key, and never over one that exists.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::{crypto, master};

/// Why no key was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is there already.
    #[error(
        "{} exists already; what was encrypted with it can be read with nothing else. To change it, put a new key \
         before it (docs/vault.md, \"Change the master key\")", path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes a new key into a new file for its owner alone; returns the key's id.
///
/// # Errors
/// See [`InitError`].
pub fn init(path: &Path) -> Result<String, InitError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists { path: path.to_owned() },
        _ => InitError::Write { path: path.to_owned(), source },
    };
    let key = crypto::new_key();
    let id = master::id(&key);
    let mut line = Zeroizing::new(format!("# Master key {id} of thawd's vault. Back it up apart from the database.\n"));
    STANDARD.encode_string(key.as_slice(), &mut line);
    line.push('\n');
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::init;
    use crate::vault::KeySource;

    #[test]
    fn a_key_is_made_once_and_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.key");
        let id = init(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let source = KeySource::find(Some(&path), &[], Duration::ZERO, "/nonexistent".as_ref()).unwrap();
        assert_eq!(source.read().unwrap().current(), id);
        let before = std::fs::read(&path).unwrap();
        assert!(init(&path).unwrap_err().to_string().contains("exists already"));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
