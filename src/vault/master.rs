//! Master keys: where they come from, and where they are while the daemon runs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thaw_os::kernel::LockedKey;
use zeroize::{Zeroize, Zeroizing};

use crate::secret_file::{self, SecretFileError};

/// Name of the credential that systemd hands over (`LoadCredential=thawd.vault-key:…`).
pub const SYSTEMD_CREDENTIAL: &str = "thawd.vault-key";

/// Most master keys that are taken: the current one, and those before it until nothing is wrapped with them any more.
const MAX_MASTER_KEYS: usize = 8;

/// How often a running command is looked at.
const COMMAND_POLL: Duration = Duration::from_millis(10);

/// Where the master keys come from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A file of its owner alone, which is not beside what it protects.
    File {
        /// The file.
        path: PathBuf,
        /// The directory that it must not be in.
        state_dir: PathBuf,
    },
    /// A file that systemd made for this service.
    Systemd(PathBuf),
    /// What a command prints.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// Longest run.
        timeout: Duration,
    },
}

/// Why there is no usable master key. Never contains a part of one.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read.
    #[error("cannot read the master key from {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not as it has to be.
    #[error("the master key file {} {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The command failed.
    #[error("the command for the master key (`vault.key_command`) {0}")]
    Command(String),
    /// What was read is no key.
    #[error("the master key {0}")]
    Content(String),
    /// The key cannot be locked in memory.
    #[error("cannot lock the master key in memory: {0}; raise LimitMEMLOCK= of the unit")]
    Lock(io::Error),
}

impl KeySource {
    /// The source that a configuration names: a file, a command, or else the credential of systemd if there is one.
    pub fn find(file: Option<&Path>, command: &[String], timeout: Duration, state_dir: &Path) -> Option<Self> {
        if let Some(path) = file {
            return Some(Self::File { path: path.to_owned(), state_dir: state_dir.to_owned() });
        }
        if !command.is_empty() {
            return Some(Self::Command { argv: command.to_vec(), timeout });
        }
        let given = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(SYSTEMD_CREDENTIAL);
        given.exists().then_some(Self::Systemd(given))
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// See [`MasterKeyError`].
    pub fn read(&self) -> Result<MasterKeys, MasterKeyError> {
        let text = match self {
            Self::File { path, state_dir } => {
                check_place(path, state_dir)?;
                read_file(path)?
            }
            Self::Systemd(path) => read_file(path)?,
            Self::Command { argv, timeout } => run(argv, *timeout)?,
        };
        MasterKeys::parse(&text)
    }
}

/// A key beside the data protects nothing: whoever copies the one copies the other.
fn check_place(path: &Path, state_dir: &Path) -> Result<(), MasterKeyError> {
    let real = |path: &Path| std::fs::canonicalize(path);
    let inside = real(path).is_ok_and(|path| real(state_dir).is_ok_and(|directory| path.starts_with(directory)));
    if inside {
        let problem = "is inside of `paths.state_dir`, beside the data that it protects; keep it elsewhere";
        return Err(MasterKeyError::File { path: path.to_owned(), problem });
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, MasterKeyError> {
    let failed = |source| MasterKeyError::Read { path: path.to_owned(), source };
    let wrong = |problem| MasterKeyError::File { path: path.to_owned(), problem };
    secret_file::read(path).map_err(|error| match error {
        SecretFileError::Io(source) => failed(source),
        SecretFileError::Wrong(problem) => wrong(problem),
    })
}

fn run(argv: &[String], timeout: Duration) -> Result<Zeroizing<Vec<u8>>, MasterKeyError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| MasterKeyError::Command(format!("{what}: {error}"));
    let (program, arguments) = argv.split_first().ok_or_else(|| failed("is empty", &""))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("cannot be started", &error))?;
    let begun = Instant::now();
    let mut stdout = child.stdout.take().ok_or_else(|| failed("has no output", &""))?;
    // What it prints fits into the pipe, so that it ends without a reader; more than that is no key.
    let status = loop {
        match child.try_wait().map_err(|error| failed("cannot be waited for", &error))? {
            Some(status) => break status,
            None if begun.elapsed() > timeout => {
                let _ = child.kill();
                let _ = child.wait();
                let seconds = timeout.as_secs();
                let detail = format!("did not end within {seconds} s (`vault.key_command_timeout_seconds`)");
                return Err(MasterKeyError::Command(detail));
            }
            None => std::thread::sleep(COMMAND_POLL),
        }
    };
    if !status.success() {
        return Err(MasterKeyError::Command(format!("failed: {status}")));
    }
    secret_file::read_all(&mut stdout).map_err(|error| failed("printed too much", &error))
}

/// The current master key, and older ones that something may still be wrapped with.
#[derive(Debug)]
pub struct MasterKeys {
    current: String,
    keys: BTreeMap<String, LockedKey>,
}

impl MasterKeys {
    /// Reads lines of base64, the current key first; empty lines and those that begin with `#` are left out.
    fn parse(text: &[u8]) -> Result<Self, MasterKeyError> {
        let wrong = |problem: String| MasterKeyError::Content(problem);
        let (mut current, mut keys) = (None, BTreeMap::new());
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let mut key = Zeroizing::new([0; 32]);
            let length = STANDARD.decode_slice(line, key.as_mut_slice());
            if length != Ok(32) {
                let number = number + 1;
                return Err(wrong(format!(
                    "in line {number} is not 32 bytes in base64; `thawd vault init` makes one, `openssl rand -base64 32` too"
                )));
            }
            if key.iter().all(|byte| *byte == 0) {
                return Err(wrong("is nothing but zeros".to_owned()));
            }
            let id = id(&key);
            current.get_or_insert_with(|| id.clone());
            let locked = LockedKey::new(&mut key).map_err(MasterKeyError::Lock)?;
            if keys.insert(id, locked).is_some() {
                return Err(wrong(format!("in line {} is there twice", number + 1)));
            }
        }
        if keys.len() > MAX_MASTER_KEYS {
            return Err(wrong(format!("has {} others behind it; at most {MAX_MASTER_KEYS} are taken", keys.len() - 1)));
        }
        let current = current.ok_or_else(|| wrong("is missing: there is no line with one".to_owned()))?;
        Ok(Self { current, keys })
    }

    /// Id of the one that new keys are wrapped with.
    pub fn current(&self) -> &str {
        &self.current
    }

    /// Whether there is one of this id.
    pub fn has(&self, id: &str) -> bool {
        self.keys.contains_key(id)
    }

    /// The one of this id.
    pub fn get(&self, id: &str) -> Option<&[u8; 32]> {
        self.keys.get(id).map(LockedKey::expose)
    }
}

/// A name for a key that tells nothing about it: 16 digits of a hash that is used for nothing else.
pub fn id(key: &[u8; 32]) -> String {
    let mut hash = blake3::derive_key("thawd 2026 id of a master key of the vault", key);
    let id = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    hash.zeroize();
    id
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const TWO: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn parse(text: &str) -> Result<MasterKeys, String> {
        MasterKeys::parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_line_is_the_current_key() {
        let keys = parse(&format!("# comment\n\n{TWO}\r\n{ONE}\n")).unwrap();
        assert_eq!(keys.get(keys.current()), Some(&[2; 32]));
        assert!(keys.has(&id(&[1; 32])) && !keys.has(&id(&[3; 32])));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let too_many: String = (1..=9u8).map(|byte| STANDARD.encode([byte; 32]) + "\n").collect();
        for (text, why) in [
            ("", "is missing"),
            ("# nothing\n", "is missing"),
            ("secretsecret\n", "line 1 is not 32 bytes"),
            (&format!("{ONE}\nAQE=\n"), "line 2 is not 32 bytes"),
            (&format!("{ONE}\n{ONE}\n"), "line 2 is there twice"),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "nothing but zeros"),
            (&too_many, "at most 8"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_file_is_for_its_owner_alone_and_not_beside_the_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = |state: &Path| {
            let source = KeySource::find(Some(&path), &[], Duration::ZERO, state).unwrap();
            source.read().map(|keys| keys.current().to_owned()).map_err(|error| error.to_string())
        };
        let elsewhere = Path::new("/nonexistent");
        assert!(read(elsewhere).unwrap_err().contains("No such file"));
        std::fs::write(&path, ONE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read(elsewhere).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(elsewhere).unwrap(), id(&[1; 32]));
        assert!(read(folder.path()).unwrap_err().contains("beside the data"));
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(read(elsewhere).unwrap_err().contains("larger than 4096"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read(elsewhere).unwrap_err().contains("cannot read the master key"), "no link is followed");
    }

    #[test]
    fn a_command_prints_the_key_or_says_why_not() {
        let read = |script: &str, timeout| {
            let argv: Vec<String> = ["/bin/sh", "-c", script].map(str::to_owned).into();
            let source = KeySource::find(None, &argv, timeout, Path::new("/")).unwrap();
            source.read().map(|keys| keys.current().to_owned()).map_err(|error| error.to_string())
        };
        let long = Duration::from_secs(20);
        assert_eq!(read(&format!("echo {ONE}"), long).unwrap(), id(&[1; 32]));
        assert!(read("exit 3", long).unwrap_err().contains("exit status: 3"));
        assert!(read("exec sleep 60", Duration::from_millis(100)).unwrap_err().contains("did not end within"));
        assert!(read("head -c 5000 /dev/zero", long).unwrap_err().contains("printed too much"));
    }
}
