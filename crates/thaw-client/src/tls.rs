//! TLS of thawd's programs: rustls with ring, and Mozilla's certificate authorities compiled in.

use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// A client configuration that reads nothing from the machine: no file of authorities, no installed crypto provider.
///
/// # Errors
/// The cryptography supports none of the default TLS versions (1.2 and 1.3); ring does support them.
pub fn client_config() -> Result<ClientConfig, rustls::Error> {
    client_config_trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
}

/// As [`client_config`], with these authorities and no others.
///
/// # Errors
/// Those of [`client_config`].
pub fn client_config_trusting(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
