//! Egress identities, from the configuration to what connections use.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::error::{DaemonError, IdentityProblem};
use crate::egress::{Identity, IdentityParts, Login, ProxyServer, Way};
use crate::secret_file;
use thaw_client::config::{Config, IdentitySettings, ProxyKind, ProxyUrl};
use thaw_client::tls;

/// The identities of the configuration.
///
/// # Errors
/// The first mistake found, with the identity that has it.
pub fn egress_identities(config: &Config) -> Result<Vec<Identity>, DaemonError> {
    let egress = &config.egress;
    let each = egress.identity.iter().map(|(name, settings)| {
        let way = way(settings).map_err(|problem| DaemonError::Identity { identity: name.clone(), problem })?;
        Ok(Identity::new(IdentityParts {
            name: name.clone(),
            way,
            address: settings.address.or(settings.bind),
            labels: settings.labels.clone(),
            max_users: settings.max_users,
            down_after: egress.down_after,
        }))
    });
    each.collect()
}

fn way(settings: &IdentitySettings) -> Result<Way, IdentityProblem> {
    let Some(upstream) = &settings.upstream else {
        return settings.bind.map(Way::Bind).ok_or(IdentityProblem::NoWay);
    };
    let url = ProxyUrl::parse(upstream).map_err(IdentityProblem::Url)?;
    let login = match (&settings.username, &settings.password_file) {
        (Some(user), Some(path)) => {
            let file = path.display().to_string();
            let bytes =
                secret_file::read(path).map_err(|source| IdentityProblem::Password { file: file.clone(), source })?;
            let text = std::str::from_utf8(&bytes).map_err(|_| IdentityProblem::NoPassword(file.clone()))?;
            let text = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
            if text.is_empty() || text.len() > 255 || text.contains(char::is_control) {
                return Err(IdentityProblem::NoPassword(file));
            }
            Some(Login::new(user.clone(), text))
        }
        _ => None,
    };
    let tls = (url.kind == ProxyKind::Https).then(|| trusting(settings)).transpose()?;
    Ok(Way::Proxy(ProxyServer::new(url, login, tls.map(Arc::new))))
}

/// Whom an `https` proxy has to be vouched for by.
fn trusting(settings: &IdentitySettings) -> Result<ClientConfig, IdentityProblem> {
    let Some(path) = &settings.ca_file else { return Ok(tls::client_config()?) };
    let file = path.display().to_string();
    let wrong = |problem: String| IdentityProblem::Authorities { file: file.clone(), problem };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("has no certificate (PEM)".to_owned()));
    }
    Ok(tls::client_config_trusting(roots)?)
}
