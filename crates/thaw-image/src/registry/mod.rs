//! Images from registries and to them, by the OCI distribution protocol.
//!
//! [`pull`] makes an OCI image layout that [`super::Store::ensure`] takes; [`push`] sends one. A registry is believed
//! nothing: every blob must have the size and the digest that the document above it gives, documents have a largest
//! size and one meaning only, and nothing is fetched from addresses that an image brings along. A password goes to the
//! registry that it belongs to and to the token service which that registry names, and never from https to http.
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

/// How to talk to a registry.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Who we are; nobody in particular if absent.
    pub login: Option<Login>,
    /// Talk http instead of https. Registries on loopback are talked to in http anyway, unless there are `authorities`.
    pub plain_http: bool,
    /// Certificate authorities (DER) that are believed besides the machine's own, from [`authorities`].
    pub authorities: Vec<Vec<u8>>,
    /// What an image may be like.
    pub limits: super::Limits,
}

/// Reads the certificate authorities of a registry from a file in PEM form.
///
/// # Errors
/// [`RegistryError::Io`], and [`RegistryError::Invalid`] when there is no certificate in it.
pub fn authorities(file: &Path) -> Result<Vec<Vec<u8>>, RegistryError> {
    let bytes = std::fs::read(file).map_err(RegistryError::io(file))?;
    let invalid =
        |reason: String| RegistryError::Invalid { what: format!("certificate authorities {}", file.display()), reason };
    let found: Result<Vec<Vec<u8>>, _> =
        CertificateDer::pem_slice_iter(&bytes).map(|one| one.map(|one| one.as_ref().to_vec())).collect();
    match found {
        Ok(found) if found.is_empty() => Err(invalid("has no certificate in PEM form".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(invalid(error.to_string())),
    }
}

/// Reads `REGISTRY/REPOSITORY:TAG` or `…@DIGEST`. As everywhere else, the registry is Docker's when the first part
/// looks like no host, and the tag is `latest` when there is none.
///
/// # Errors
/// [`RegistryError::Reference`].
pub fn reference(text: &str) -> Result<Reference, RegistryError> {
    text.parse().map_err(|error: oci_client::ParseError| RegistryError::Reference {
        text: text.chars().take(256).collect(),
        reason: error.to_string(),
    })
}
