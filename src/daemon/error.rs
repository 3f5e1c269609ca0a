//! Why the daemon cannot start.

use std::io;
use std::path::PathBuf;

use crate::directory_lock::DirectoryLockError;
use crate::egress::PolicyError;
use crate::keeper::KeeperError;
use crate::provider::{Invalid, InvocationError, ManifestError};
use crate::secret_file::SecretFileError;
use crate::storage::StorageError;
use crate::telemetry::TelemetryError;
use crate::vault::VaultError;
use thaw_image::StoreError;
use thaw_os::cgroup::CgroupError;

/// Why a CLI cannot wait already started.
#[derive(Debug, thiserror::Error)]
pub enum PrestartProblem {
    /// The manifest's `[prestart]` gives no command.
    #[error(transparent)]
    Invocation(#[from] InvocationError),
    /// The manifest says nothing about it.
    #[error("its manifest has no [prestart]; remove `prestarted` from the configuration")]
    Unknown,
    /// Models are named, and make no difference.
    #[error("each of its CLIs takes any model; use `prestarted` instead of `prestarted_models`")]
    AnyModel,
    /// Two names mean one model.
    #[error("`prestarted_models` has {name:?}, which is {model} once more; that of `prestarted` is the default model")]
    Twice {
        /// The name.
        name: String,
        /// The model.
        model: String,
    },
}

/// What is wrong with an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityProblem {
    /// The URL of its proxy.
    #[error("`upstream` {0}")]
    Url(&'static str),
    /// Neither a proxy nor an address.
    #[error("it needs `upstream` or `bind`")]
    NoWay,
    /// The file with its password.
    #[error("`password_file` {file}: {source}")]
    Password {
        /// Which file.
        file: String,
        /// What is wrong with it.
        source: SecretFileError,
    },
    /// The password is none.
    #[error("`password_file` {0}: a password is one line of text of 1 to 255 bytes")]
    NoPassword(String),
    /// The file with the authorities for its proxy.
    #[error("`ca_file` {file}: {problem}")]
    Authorities {
        /// Which file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Provider manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Image store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// File systems of sandboxes.
    #[error("the file systems of sandboxes: {0}")]
    Storage(#[from] StorageError),
    /// A provider's allow-list.
    #[error("provider `{provider}`: {source}")]
    Policy {
        /// Which provider.
        provider: String,
        /// What is wrong.
        source: PolicyError,
    },
    /// A CLI that is to wait already started cannot be.
    #[error("provider `{provider}` cannot be prestarted: {problem}")]
    Prestart {
        /// Which provider.
        provider: String,
        /// Why, and what to do.
        problem: PrestartProblem,
    },
    /// Nobody could renew its logins as the configuration says.
    #[error("provider `{provider}`: {problem}")]
    Refresh {
        /// Which provider.
        provider: String,
        /// What is wrong.
        problem: Invalid,
    },
    /// An egress identity is not as it has to be.
    #[error("egress identity `{identity}`: {problem}")]
    Identity {
        /// Which one.
        identity: String,
        /// What is wrong with it.
        problem: IdentityProblem,
    },
    /// The configuration names a provider that has no manifest.
    #[error("the configuration has [provider.{name}], but there is no manifest {name}.toml in {}", directory.display())]
    UnknownProvider {
        /// Name in the configuration.
        name: String,
        /// Where manifests are.
        directory: PathBuf,
    },
    /// What lets everything survive.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Log filter.
    #[error(transparent)]
    Log(#[from] TelemetryError),
    /// Its directories.
    #[error(transparent)]
    DirectoryLock(#[from] DirectoryLockError),
    /// Credentials of users.
    #[error("the vault cannot be opened: {0}")]
    Vault(#[from] VaultError),
    /// The database of sandboxes.
    #[error(transparent)]
    Database(#[from] crate::store::StoreError),
    /// Something else of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::Io { what, source }
}
