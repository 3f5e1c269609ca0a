//! Owns providers as data: how a CLI is started, what it may reach, its limits, and how its output is decoded.
//!
//! A manifest (`providers/*.toml`, described in `docs/providers.md`) becomes a [`Provider`]. [`Provider::invocation`]
//! turns a prompt into the argument vector, environment and standard input of one execution. [`dialect::DialectParser`]
//! decodes the answer and the verdict from the CLI's output. [`prestart`] does the same for CLIs that start before
//! their prompt.
//!
//! `daemon` loads the manifests; `execution` and `container` use them. Deliberately absent: starting processes, I/O
//! with containers, and secrets in a manifest, which knows credentials by name only.

mod credentials;
pub mod dialect;
mod endpoint;
mod invocation;
mod login;
mod login_rules;
mod manifest;
pub mod prestart;
mod refresh;
mod template;
mod validate;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use credentials::CredentialError;
pub use dialect::{Dialect, DialectParser, Verdict};
pub use endpoint::Endpoint;
pub use invocation::{Invocation, InvocationError, PromptSpec};
pub use login::{Login, PORT as LOGIN_PORT, Until as LoginUntil};
pub use manifest::{
    Command, Condition, CredentialSpec, Effort, FileFormat, ModelTimeout, Models, PromptVia, Provider, ResourceClass,
    Resources, Timeouts, When,
};
pub use refresh::{Encoding, Refresh};
pub use template::matches as matches_pattern;
pub use validate::Invalid;

/// Why the manifests could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The directory or a file in it could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Directory or file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML or has the wrong shape. The message names line, key and what was expected.
    #[error("{}: {source}", path.display())]
    Parse {
        /// Manifest.
        path: PathBuf,
        /// Position and problem.
        source: Box<toml::de::Error>,
    },
    /// The file is well-formed, but a value in it cannot work.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// Manifest.
        path: PathBuf,
        /// The key, and what to write instead.
        source: Invalid,
    },
    /// The file's name differs from the provider's name. Otherwise two files could define the same provider.
    #[error("{}: the provider is named `{name}`, so the file must be named {name}.toml", path.display())]
    FileName {
        /// Manifest.
        path: PathBuf,
        /// `name` in the manifest.
        name: String,
    },
}

/// Loads every `*.toml` of a directory, keyed by provider name. Ignores other files.
///
/// # Errors
/// The first manifest, in order of file names, that cannot be read, parsed or used. An empty directory is no error.
pub fn load_dir(dir: &Path) -> Result<BTreeMap<String, Provider>, ManifestError> {
    let read_error = |path: &Path| {
        let path = path.to_owned();
        move |source| ManifestError::Read { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read_error(dir))? {
        let path = entry.map_err(read_error(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut providers = BTreeMap::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(read_error(&path))?;
        let provider: Provider = toml::from_str(&text)
            .map_err(|source| ManifestError::Parse { path: path.clone(), source: Box::new(source) })?;
        provider.validate().map_err(|source| ManifestError::Invalid { path: path.clone(), source })?;
        if path.file_stem().and_then(|stem| stem.to_str()) != Some(provider.name.as_str()) {
            return Err(ManifestError::FileName { path, name: provider.name });
        }
        providers.insert(provider.name.clone(), provider);
    }
    Ok(providers)
}
