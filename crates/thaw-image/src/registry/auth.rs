//! Authentication: the login that was given or saved, and what a registry demands.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http_auth::parser::ChallengeParser;
use serde_json::Value;

use super::RegistryError;
use thaw_client::types::Secret;

/// Base64 with and without padding: docker writes padding, others do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A name and a password (or access token) for one registry.
#[derive(Debug, Clone)]
pub struct Login {
    /// Name.
    pub user: String,
    /// Password or token.
    pub password: Secret,
}

/// The login that docker (or `podman login --compat-auth-file`) saved for `registry`, if any: an entry of `auths` in
/// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`. Credential helpers are not used.
///
/// # Errors
/// The file exists, but cannot be read or parsed.
pub fn saved_login(registry: &str) -> Result<Option<Login>, RegistryError> {
    let folder = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    match folder.or_else(home) {
        Some(folder) => login_in(&folder.join("config.json"), registry),
        None => Ok(None),
    }
}

fn login_in(path: &Path, registry: &str) -> Result<Option<Login>, RegistryError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RegistryError::io(path)(error)),
    };
    // Without the parser's error text, which could quote the file.
    let invalid = |reason: &str| RegistryError::Invalid { what: path.display().to_string(), reason: reason.to_owned() };
    let config: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("is no JSON"))?;
    let Some(auths) = config["auths"].as_object() else { return Ok(None) };
    let Some(auth) = auths.iter().find(|(key, _)| is_for(key, registry)).and_then(|(_, entry)| entry["auth"].as_str())
    else {
        return Ok(None);
    };
    let pair = BASE64.decode(auth.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
    let pair = pair.ok_or_else(|| invalid("has an `auth` that is no base64 text"))?;
    let (user, password) = pair.split_once(':').ok_or_else(|| invalid("has an `auth` without a colon"))?;
    let password = password.trim_end_matches('\0');
    Ok((!user.is_empty()).then(|| Login { user: user.to_owned(), password: Secret::new(password.to_owned()) }))
}

/// Whether a key of `auths` covers all of `registry`.
fn is_for(key: &str, registry: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    // With a longer path, podman means only a part of the registry.
    host == registry && matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
}

/// What a registry demands before it answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token of the service at `realm`, for `scope` and possibly more.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads the values of `WWW-Authenticate`. Prefers a token, so that the password is not sent to the storage.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut found = None;
    for challenge in headers.flat_map(ChallengeParser::new).map_while(Result::ok) {
        let parameter = |wanted: &str| {
            let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.to_unescaped())
        };
        if challenge.scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = parameter("realm") {
                return Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
            }
        } else if challenge.scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(config: &str, registry: &str) -> Option<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let login = login_in(&path, registry).unwrap();
        login.map(|login| (login.user, login.password.expose().to_owned()))
    }

    #[test]
    fn a_saved_password_is_found_for_its_registry_only() {
        // printf jane:p:w | base64, with and without padding
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "amFuZTpwOnc="},
            "quay.io/team": {"auth": "amFuZTpwOnc"}, "ghcr.io": {"auth": "amFuZTpwOnc"}, "empty.io": {}}}"#;
        let jane = Some(("jane".to_owned(), "p:w".to_owned()));
        assert_eq!(saved(config, "docker.io"), jane);
        assert_eq!(saved(config, "ghcr.io"), jane);
        for other in ["quay.io", "evil-ghcr.io", "ghcr.io.evil.com", "empty.io", "index.docker.io"] {
            assert_eq!(saved(config, other), None, "{other}");
        }
        assert_eq!(saved("{}", "ghcr.io"), None);
    }

    #[test]
    fn errors_do_not_quote_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert!(login_in(&path, "ghcr.io").unwrap().is_none(), "no file is no error");
        for config in [r#"{"auths": {"ghcr.io": {"auth": "c2VjcmV0"}}}"#, r#"{"auths": secret}"#] {
            std::fs::write(&path, config).unwrap();
            let error = login_in(&path, "ghcr.io").unwrap_err().to_string();
            assert!(error.contains("config.json") && !error.contains("secret") && !error.contains("c2Vj"), "{error}");
        }
    }

    #[test]
    fn challenges_are_read() {
        let one = |header: &'static str| challenge([header].into_iter());
        assert_eq!(one("Basic realm=\"x\""), Some(Challenge::Basic));
        let bearer = "Bearer realm=\"https://auth.example/token\",service=\"registry.example\"";
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry.example".to_owned()),
            scope: None,
        };
        assert_eq!(one(bearer).as_ref(), Some(&expected));
        assert_eq!(challenge(["Basic realm=\"x\"", bearer].into_iter()), Some(expected));
        assert_eq!(one("Negotiate"), None);
        assert_eq!(one("Bearer service=\"x\""), None, "nowhere to ask");
    }
}
