//! Owns transfers between image layouts and registries, by the OCI distribution protocol.
//!
//! [`pull`] makes an OCI image layout that [`super::Store::ensure`] takes; [`push`] sends one. A registry is not
//! trusted: every blob must have the size and digest that the document above it names, documents have a largest size
//! and one meaning only, and URLs in an image are never fetched. A password goes only to its own registry and to the
//! token service that this registry names, and never from https to http.
//!
//! Both write to disk and hash on the calling task.

mod auth;
mod document;
mod download;
mod error;
mod pull;
mod push;
mod session;
mod target;

pub use auth::{Login, saved_login};
pub use error::RegistryError;
pub use oci_client::Reference;
pub use pull::{PullReport, pull};
pub use push::{PushReport, push};

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Options of a connection to a registry.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Login; `None` for anonymous.
    pub login: Option<Login>,
    /// Whether to use http instead of https. Registries on loopback use http anyway, unless there are `authorities`.
    pub plain_http: bool,
    /// Certificate authorities (DER) that are trusted besides the machine's own, from [`authorities`].
    pub authorities: Vec<Vec<u8>>,
    /// Limits of an image.
    pub limits: super::Limits,
}

/// Reads the certificate authorities of a registry from a file in PEM form.
///
/// # Errors
/// [`RegistryError::Io`], and [`RegistryError::Invalid`] if the file holds no certificate.
pub fn authorities(file: &Path) -> Result<Vec<Vec<u8>>, RegistryError> {
    let bytes = std::fs::read(file).map_err(RegistryError::io(file))?;
    authorities_in(&bytes, &format!("certificate authorities {}", file.display()))
}

/// The same from text in PEM form; errors call it `what`.
///
/// # Errors
/// [`RegistryError::Invalid`] if the text holds no certificate.
pub fn authorities_in(pem: &[u8], what: &str) -> Result<Vec<Vec<u8>>, RegistryError> {
    let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
    let found: Result<Vec<Vec<u8>>, _> =
        CertificateDer::pem_slice_iter(pem).map(|one| one.map(|one| one.as_ref().to_vec())).collect();
    match found {
        Ok(found) if found.is_empty() => Err(invalid("has no certificate in PEM form".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(invalid(error.to_string())),
    }
}

/// Parses `REGISTRY/REPOSITORY:TAG` or `…@DIGEST`. By the usual rules, the registry is Docker's if the first part does
/// not look like a host, and the tag is `latest` if there is none.
///
/// # Errors
/// [`RegistryError::Reference`].
pub fn reference(text: &str) -> Result<Reference, RegistryError> {
    text.parse().map_err(|error: oci_client::ParseError| RegistryError::Reference {
        text: text.chars().take(256).collect(),
        reason: error.to_string(),
    })
}
