//! Signatures of archives, as minisign makes them (Ed25519 over BLAKE2b-512 of the file): https://jedisct1.github.io/minisign

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};

/// Longest signature that is read, bytes: minisign's have 400.
const MAX_SIGNATURE: u64 = 16 * 1024;

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A signature is needed, and there is none.
    #[error(
        "{}: there is no signature {}; sign it with minisign, or set image.require_signature = false in the configuration",
        archive.display(), signature.display()
    )]
    Missing {
        /// What is to be brought in.
        archive: PathBuf,
        /// Where its signature is looked for.
        signature: PathBuf,
    },
    /// Nothing says whose signature counts.
    #[error("{}: there is no key to check its signature with: give --public-key, or set image.public_keys", .0.display())]
    NoKey(PathBuf),
    /// A key in the configuration or on the command line is none.
    #[error("{0:?} is no public key of minisign's: it is the second line of minisign.pub")]
    BadKey(String),
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A signature that lies in no file of its own is damaged, of another archive, or by another key.
    #[error("{0}: the archive is not taken")]
    Text(String),
    /// The signature is damaged, of another file, or by another key.
    #[error("{}: {problem}: the archive is not taken", signature.display())]
    Wrong {
        /// The signature.
        signature: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Checks the signature of a file by any of `keys`. Without a signature that is named, `FILE.minisig` beside the file is
/// looked for; one that is there is checked if there are keys, also where none is required. Returns the comment that was
/// signed with the file, if a signature was checked.
///
/// # Errors
/// See [`SignatureError`].
pub fn check(
    archive: &Path,
    signature: Option<&Path>,
    keys: &[String],
    required: bool,
) -> Result<Option<String>, SignatureError> {
    let beside = || {
        let mut name = archive.as_os_str().to_owned();
        name.push(".minisig");
        PathBuf::from(name)
    };
    let path = signature.map_or_else(beside, Path::to_owned);
    if !required && (keys.is_empty() || !path.exists()) {
        return Ok(None);
    }
    if keys.is_empty() {
        return Err(SignatureError::NoKey(archive.to_owned()));
    }
    if !path.exists() {
        return Err(SignatureError::Missing { archive: archive.to_owned(), signature: path });
    }
    let read = |path: &Path, source| SignatureError::Read { path: path.to_owned(), source };
    let wrong = |problem: String| SignatureError::Wrong { signature: path.clone(), problem };
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| read(&path, error))?;
    file.take(MAX_SIGNATURE).read_to_string(&mut text).map_err(|error| read(&path, error))?;
    check_text(archive, &text, keys).map(Some).map_err(|error| match error {
        SignatureError::Text(problem) => wrong(problem),
        error => error,
    })
}

/// Checks `signature`, the content of a signature's file, by any of `keys`. Returns the comment that was signed with the
/// archive.
///
/// # Errors
/// See [`SignatureError`].
pub fn check_text(archive: &Path, signature: &str, keys: &[String]) -> Result<String, SignatureError> {
    let signature = Signature::decode(signature)
        .map_err(|error| SignatureError::Text(format!("no signature of minisign's ({error})")))?;
    let mut problem = String::new();
    for key in keys {
        let key = PublicKey::from_base64(key.trim()).map_err(|_| SignatureError::BadKey(key.clone()))?;
        match verify(archive, &key, &signature) {
            Ok(Ok(())) => return Ok(signature.trusted_comment().to_owned()),
            Ok(Err(error)) => problem = error.to_string(),
            Err(source) => return Err(SignatureError::Read { path: archive.to_owned(), source }),
        }
    }
    Err(SignatureError::Text(format!("no good signature by any known key ({problem})")))
}

type Verified = Result<(), minisign_verify::Error>;

/// Reads the file once; the outer error is that of reading.
fn verify(archive: &Path, key: &PublicKey, signature: &Signature) -> std::io::Result<Verified> {
    let mut stream = match key.verify_stream(signature) {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error)),
    };
    let mut file = File::open(archive)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(stream.finalize()),
            read => stream.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use minisign::KeyPair;

    use super::*;

    fn signed(text: &[u8]) -> (tempfile::TempDir, PathBuf, String) {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        std::fs::write(&archive, text).unwrap();
        let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().unwrap();
        let made = minisign::sign(Some(&pk), &sk, Cursor::new(text), Some("openai 2026-11-30"), None).unwrap();
        std::fs::write(dir.path().join("image.tar.minisig"), made.into_string()).unwrap();
        (dir, archive, pk.to_base64())
    }

    #[test]
    fn a_good_signature_by_one_of_the_keys_is_taken() {
        let (_dir, archive, key) = signed(b"layers");
        let other = signed(b"x").2;
        let comment = check(&archive, None, &[other, key], true).unwrap();
        assert_eq!(comment.as_deref(), Some("openai 2026-11-30"));
    }

    #[test]
    fn a_changed_archive_another_key_and_no_signature_are_refused() {
        let (dir, archive, key) = signed(b"layers");
        let keys = [key];
        let stranger = [signed(b"layers").2];
        assert!(matches!(check(&archive, None, &stranger, false), Err(SignatureError::Wrong { .. })));
        std::fs::write(&archive, b"layerz").unwrap();
        assert!(matches!(check(&archive, None, &keys, false), Err(SignatureError::Wrong { .. })));
        std::fs::write(dir.path().join("image.tar.minisig"), "junk").unwrap();
        assert!(matches!(check(&archive, None, &keys, true), Err(SignatureError::Wrong { .. })));
        let long = "x".repeat(2 * MAX_SIGNATURE as usize);
        std::fs::write(dir.path().join("image.tar.minisig"), long).unwrap();
        assert!(matches!(check(&archive, None, &keys, true), Err(SignatureError::Wrong { .. })));
        std::fs::remove_file(dir.path().join("image.tar.minisig")).unwrap();
        assert!(matches!(check(&archive, None, &keys, true), Err(SignatureError::Missing { .. })));
        assert!(matches!(check(&archive, None, &[], true), Err(SignatureError::NoKey(_))));
        assert!(matches!(
            check(&archive, Some(Path::new("/nonexistent")), &keys, true),
            Err(SignatureError::Missing { .. })
        ));
        assert_eq!(check(&archive, None, &keys, false).unwrap(), None, "neither there nor required");
    }

    #[test]
    fn a_key_that_is_none_is_named() {
        let (_dir, archive, _) = signed(b"layers");
        assert!(matches!(check(&archive, None, &["RWabc".to_owned()], true), Err(SignatureError::BadKey(_))));
    }
}
