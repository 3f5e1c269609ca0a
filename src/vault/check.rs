//! What a credential has to be like before it is kept: what no version of its CLI would read is refused by field, and so
//! is what is over and cannot be renewed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thaw_client::types::{CredentialKind, Credentials, Secret};
use zeroize::{Zeroize, Zeroizing};

use super::error::VaultError;
use super::rows::Facts;
use crate::provider::{FileFormat, Provider};

/// Longest key in a variable, bytes: those of the three providers have up to 200, tokens a few thousand.
const MAX_VARIABLE: usize = 16 << 10;

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, VaultError> {
    Err(VaultError::Invalid { field: field.into(), problem: problem.into() })
}

/// Checks a credential; returns what may be shown of it. Nothing that is stored was not checked here.
pub fn examine(
    provider: &Provider,
    credentials: &Credentials,
    max_bytes: usize,
    now_ms: i64,
) -> Result<Facts, VaultError> {
    let files: Vec<&str> = credentials.files.keys().map(String::as_str).collect();
    let variables: Vec<&str> = credentials.env.keys().map(String::as_str).collect();
    if files.is_empty() && variables.is_empty() {
        return wrong("files", "and `env` are both empty; give a file or a variable of the provider");
    }
    if let Err(error) = provider.check_credential_names(&files, &variables) {
        let field = if variables.is_empty() { "files" } else { "env" };
        return wrong(field, format!("cannot be kept: {error}"));
    }
    let bytes: usize = credentials.files.values().chain(credentials.env.values()).map(|text| text.expose().len()).sum();
    let most = max_bytes.min(usize::try_from(provider.credentials.tmpfs_bytes).unwrap_or(usize::MAX));
    if bytes > most {
        return wrong("files", format!("have {bytes} bytes; at most {most} are kept (`vault.max_credential_bytes`)"));
    }
    let mut facts = match credentials.env.first_key_value() {
        Some((name, key)) => variable(name, key.expose())?,
        None => Facts {
            kind: CredentialKind::File,
            account: None,
            fingerprint: String::new(),
            expires_at_ms: None,
            renewable: true,
        },
    };
    for (name, text) in &credentials.files {
        if text.expose().trim().is_empty() {
            return wrong(format!("files.{name}"), "is empty");
        }
        match provider.credentials.formats.get(name) {
            None => {}
            Some(FileFormat::CodexAuth) => facts = codex(name, text.expose())?,
            Some(FileFormat::ClaudeCredentials) => facts = claude(name, text.expose())?,
            Some(FileFormat::GeminiOauth) => facts = gemini(name, text.expose())?,
        }
        if facts.expires_at_ms.is_some_and(|end| end <= now_ms) && !facts.renewable {
            let problem = "has an access token that is over, and nothing to renew it with; log in again with the CLI";
            return wrong(format!("files.{name}"), problem);
        }
    }
    facts.fingerprint = fingerprint(credentials);
    Ok(facts)
}

/// 16 digits that tell two contents apart.
pub fn fingerprint(credentials: &Credentials) -> String {
    let mut hash = blake3::Hasher::new_derive_key("thawd 2026 fingerprint of a credential");
    for (name, text) in credentials.files.iter().chain(&credentials.env) {
        for part in [name.as_str(), text.expose()] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    let fingerprint = hash.finalize().to_hex()[..16].to_owned();
    // It holds the last bytes of the content.
    hash.zeroize();
    fingerprint
}

fn variable(name: &str, key: &str) -> Result<Facts, VaultError> {
    let field = format!("env.{name}");
    if key.is_empty() || key.len() > MAX_VARIABLE {
        return wrong(field, format!("must have from 1 to {MAX_VARIABLE} bytes"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong(field, "has a space, a line's end or another character that no key has; give the key alone");
    }
    let fingerprint = String::new();
    Ok(Facts { kind: CredentialKind::ApiKey, account: None, fingerprint, expires_at_ms: None, renewable: true })
}

/// The file as `T`. The message names the field and never its value.
fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, VaultError> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner());
        let (line, column) = (inner.line(), inner.column());
        let (field, problem) = match inner.is_data() {
            true if path != "." => {
                (format!("files.{name}: {path}"), "has another type than the CLI expects".to_owned())
            }
            _ => (
                format!("files.{name}"),
                format!("is not the JSON that the CLI writes, at line {line} column {column}"),
            ),
        };
        VaultError::Invalid { field, problem }
    })
}

/// A text that has to be there.
fn needed<'a>(name: &str, field: &str, text: &'a Option<Secret>) -> Result<&'a str, VaultError> {
    match text.as_ref().map(Secret::expose) {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => wrong(format!("files.{name}: {field}"), "is empty"),
        None => wrong(format!("files.{name}: {field}"), "is missing"),
    }
}

fn has(text: &Option<Secret>) -> bool {
    text.as_ref().is_some_and(|text| !text.expose().is_empty())
}

/// What a login's token says in the clear.
#[derive(Deserialize)]
struct Claims {
    email: Option<String>,
    /// Unix seconds.
    exp: Option<f64>,
}

fn claims(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1).filter(|_| token.split('.').count() == 3)?;
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?);
    serde_json::from_slice(&json).ok()
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// An address as it may be shown: without what could talk to a terminal, and not long.
fn account(claims: Option<&Claims>) -> Option<String> {
    let address = claims?.email.as_deref()?;
    (address.len() <= 254 && !address.chars().any(char::is_control)).then(|| address.to_owned())
}

#[derive(Deserialize)]
struct Codex {
    #[serde(rename = "OPENAI_API_KEY")]
    key: Option<Secret>,
    tokens: Option<CodexTokens>,
}

#[derive(Deserialize)]
struct CodexTokens {
    id_token: Option<Secret>,
    access_token: Option<Secret>,
    refresh_token: Option<Secret>,
}

fn codex(name: &str, text: &str) -> Result<Facts, VaultError> {
    let file: Codex = parse(name, text)?;
    let fingerprint = String::new();
    let Some(tokens) = &file.tokens else {
        if !has(&file.key) {
            return wrong(
                format!("files.{name}"),
                "has neither `OPENAI_API_KEY` nor `tokens`; codex would ask without a login",
            );
        }
        return Ok(Facts {
            kind: CredentialKind::ApiKey,
            account: None,
            fingerprint,
            expires_at_ms: None,
            renewable: true,
        });
    };
    let id_token = needed(name, "tokens.id_token", &tokens.id_token)?;
    let Some(identity) = claims(id_token) else {
        return wrong(format!("files.{name}: tokens.id_token"), "is no JWT; codex would ask without a login");
    };
    let access = claims(needed(name, "tokens.access_token", &tokens.access_token)?);
    if tokens.refresh_token.is_none() {
        let problem = "is missing; codex reads the file only with it (it may be empty for an access token alone)";
        return wrong(format!("files.{name}: tokens.refresh_token"), problem);
    }
    Ok(Facts {
        kind: CredentialKind::Login,
        account: account(Some(&identity)),
        fingerprint,
        expires_at_ms: access.and_then(|claims| claims.exp).map(milliseconds),
        renewable: has(&tokens.refresh_token),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claude {
    claude_ai_oauth: Option<ClaudeLogin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaudeLogin {
    access_token: Option<Secret>,
    refresh_token: Option<Secret>,
    /// Unix milliseconds.
    expires_at: Option<f64>,
    scopes: Option<Vec<String>>,
}

fn claude(name: &str, text: &str) -> Result<Facts, VaultError> {
    let file: Claude = parse(name, text)?;
    let Some(login) = &file.claude_ai_oauth else {
        return wrong(format!("files.{name}: claudeAiOauth"), "is missing; claude would say \"Not logged in\"");
    };
    needed(name, "claudeAiOauth.accessToken", &login.access_token)?;
    if login.scopes.as_ref().is_none_or(Vec::is_empty) {
        return wrong(
            format!("files.{name}: claudeAiOauth.scopes"),
            "is missing or empty; it names at least user:inference",
        );
    }
    Ok(Facts {
        kind: CredentialKind::Login,
        account: None,
        fingerprint: String::new(),
        expires_at_ms: login.expires_at.map(|ms| ms as i64),
        renewable: has(&login.refresh_token),
    })
}

#[derive(Deserialize)]
struct Gemini {
    access_token: Option<Secret>,
    refresh_token: Option<Secret>,
    id_token: Option<Secret>,
    /// Unix milliseconds.
    expiry_date: Option<f64>,
}

fn gemini(name: &str, text: &str) -> Result<Facts, VaultError> {
    let file: Gemini = parse(name, text)?;
    if !has(&file.refresh_token) {
        needed(name, "access_token", &file.access_token)?;
    }
    let identity = file.id_token.as_ref().and_then(|token| claims(token.expose()));
    Ok(Facts {
        kind: CredentialKind::Login,
        account: account(identity.as_ref()),
        fingerprint: String::new(),
        expires_at_ms: file.expiry_date.map(|ms| ms as i64),
        renewable: has(&file.refresh_token),
    })
}

#[cfg(test)]
mod tests;
