//! Errors of pull and push, with a text that says what to do.

use std::io;
use std::path::{Path, PathBuf};

use oci_client::errors::OciDistributionError;

use crate::LayoutError;

/// Longest text from a registry that is passed on, characters.
const TEXT_CHARS: usize = 300;

/// Why a pull or push failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The text is not a reference to an image.
    #[error("{text:?} is no image reference ({reason}): write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST")]
    Reference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The layout is damaged or invalid.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The folder holds something that is not an image layout.
    #[error("{} is not empty and no OCI image layout: name another folder", path.display())]
    NotALayout {
        /// The folder.
        path: PathBuf,
    },
    /// The registry demands a login, or refuses the one given.
    #[error("{registry} refuses: {reason}")]
    Refused {
        /// The registry.
        registry: String,
        /// The registry's text, or what is missing.
        reason: String,
    },
    /// The registry's set-up would reveal a password.
    #[error("the password for {registry} is not sent: {reason}")]
    Unsafe {
        /// The registry.
        registry: String,
        /// How it would be revealed.
        reason: String,
    },
    /// The image or blob does not exist.
    #[error("{what} is not there, or not for you to see")]
    NotFound {
        /// The image or blob.
        what: String,
    },
    /// A document of the registry is invalid.
    #[error("{what}: {reason}")]
    Invalid {
        /// The document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The content of a document or blob does not match its digest.
    #[error("{what}: the registry sent the content of {found}; nothing of it was kept")]
    Digest {
        /// The document or blob, with its expected digest.
        what: String,
        /// Digest of the content received.
        found: String,
    },
    /// A blob is longer or shorter than its manifest says.
    #[error("blob {digest}: must have {expected} bytes, but the registry has {found}; nothing of it was kept")]
    Size {
        /// The blob.
        digest: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes in the registry.
        found: u64,
    },
    /// The registry cannot be reached, or the connection broke too often.
    #[error("{registry}: {reason}; what has come is kept: try again to go on from there")]
    Network {
        /// The registry.
        registry: String,
        /// What happened.
        reason: String,
    },
    /// The registry answered with an error status.
    #[error("{registry} answered {status}: {message}")]
    Status {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// The registry's text.
        message: String,
    },
}

impl RegistryError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(super) fn network(registry: &str, error: reqwest::Error) -> Self {
        Self::Network { registry: registry.to_owned(), reason: causes(error) }
    }

    /// Whether the same request may succeed later, and resume.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// Converts an error of the client crate; `what` is what was requested.
    pub(super) fn from_client(registry: &str, what: &str, error: OciDistributionError) -> Self {
        let registry = registry.to_owned();
        let status = |status: u16, message: String| match status {
            401 | 403 => Self::Refused { registry: registry.clone(), reason: shortened(&message) },
            404 => Self::NotFound { what: what.to_owned() },
            _ => Self::Status { registry: registry.clone(), status, message: shortened(&message) },
        };
        match error {
            OciDistributionError::RequestError(error) => match error.status() {
                Some(code) => status(code.as_u16(), String::new()),
                None => Self::network(&registry, error),
            },
            OciDistributionError::UnauthorizedError { .. } => status(401, "the credential is not enough".to_owned()),
            OciDistributionError::ServerError { code, message, .. } => status(code, message),
            OciDistributionError::RegistryError { envelope, .. } => {
                use oci_client::errors::OciErrorCode::{
                    BlobUnknown, Denied, ManifestUnknown, NameUnknown, Unauthorized,
                };
                let text = envelope.errors.iter().map(|error| format!("{:?} {}", error.code, error.message));
                let text = shortened(&text.collect::<Vec<_>>().join(", "));
                match envelope.errors.first().map(|error| &error.code) {
                    Some(BlobUnknown | ManifestUnknown | NameUnknown) => Self::NotFound { what: what.to_owned() },
                    Some(Unauthorized | Denied) => Self::Refused { registry, reason: text },
                    _ => Self::Invalid { what: what.to_owned(), reason: text },
                }
            }
            other => Self::Invalid { what: what.to_owned(), reason: shortened(&other.to_string()) },
        }
    }
}

/// Foreign text on one line, shortened.
pub(super) fn shortened(text: &str) -> String {
    let line: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = line.join(" ");
    match line.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.is_empty() => "no reason given".to_owned(),
        None => line,
    }
}

/// All causes without the URL, which after a redirect may hold a signature.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
