//! Reads a login out of the file of its CLI, and writes a renewed one into it. What thawd does not know stays in the file.
//!
//! Values are copied as they are, in one buffer of the right size that is wiped: a parser that unescapes would leave
//! copies behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thaw_client::types::Secret;
use zeroize::Zeroizing;

use crate::provider::FileFormat;

/// Lifetime of an access token whose answer does not tell it.
pub const ASSUMED_LIFETIME_MS: i64 = 60 * 60 * 1000;

/// Names of the fields in a file.
struct Names {
    /// Object that holds the others; none where the file itself does.
    inner: Option<&'static str>,
    access: &'static str,
    refresh: &'static str,
    id: &'static str,
}

fn names(format: FileFormat) -> Names {
    match format {
        FileFormat::CodexAuth => {
            Names { inner: Some("tokens"), access: "access_token", refresh: "refresh_token", id: "id_token" }
        }
        FileFormat::ClaudeCredentials => {
            Names { inner: Some("claudeAiOauth"), access: "accessToken", refresh: "refreshToken", id: "idToken" }
        }
        FileFormat::GeminiOauth => {
            Names { inner: None, access: "access_token", refresh: "refresh_token", id: "id_token" }
        }
    }
}

/// Part of a file that is written.
#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Raw(&'a RawValue),
    Text(String),
    Number(i64),
    Object(BTreeMap<&'a str, Part<'a>>),
}

/// A successful answer of a token endpoint (RFC 6749, section 5.1).
#[derive(Debug, Deserialize)]
pub struct Tokens<'a> {
    #[serde(borrow)]
    access_token: &'a RawValue,
    #[serde(borrow)]
    refresh_token: Option<&'a RawValue>,
    #[serde(borrow)]
    id_token: Option<&'a RawValue>,
    /// Seconds.
    expires_in: Option<f64>,
}

fn is_text(value: &RawValue) -> bool {
    value.get().starts_with('"') && value.get().len() > 2
}

impl<'a> Tokens<'a> {
    /// Reads an answer; none if it has no access token.
    pub fn read(answer: &'a str) -> Option<Self> {
        let tokens: Self = serde_json::from_str(answer).ok()?;
        is_text(tokens.access_token).then_some(tokens)
    }
}

type Fields<'a> = BTreeMap<&'a str, &'a RawValue>;

/// The fields of the file, and of the object that holds the login.
fn read<'a>(names: &Names, text: &'a str) -> Option<(Fields<'a>, Option<Fields<'a>>)> {
    let mut outer: Fields<'_> = serde_json::from_str(text).ok()?;
    let Some(inner) = names.inner else { return Some((outer, None)) };
    let inner = serde_json::from_str(outer.remove(inner)?.get()).ok()?;
    Some((outer, Some(inner)))
}

fn parts<'a>(fields: &Fields<'a>) -> BTreeMap<&'a str, Part<'a>> {
    fields.iter().map(|(name, value)| (*name, Part::Raw(value))).collect()
}

fn write(file: &BTreeMap<&str, Part<'_>>, most: usize) -> Option<Secret> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(most));
    serde_json::to_writer(&mut *buffer, file).ok()?;
    String::from_utf8(std::mem::take(&mut *buffer)).ok().map(Secret::new)
}

/// The refresh token in a file.
pub fn refresh_token(format: FileFormat, text: &str) -> Option<Secret> {
    let names = names(format);
    let (outer, inner) = read(&names, text)?;
    let value = inner.as_ref().unwrap_or(&outer).get(names.refresh)?;
    let token: Secret = serde_json::from_str(value.get()).ok()?;
    (!token.expose().is_empty()).then_some(token)
}

/// The file without its refresh token, as its CLI takes it.
pub fn without_refresh_token(format: FileFormat, text: &str) -> Option<Secret> {
    let names = names(format);
    let (outer, inner) = read(&names, text)?;
    let mut login = parts(inner.as_ref().unwrap_or(&outer));
    login.remove(names.refresh)?;
    let mut file = if names.inner.is_some() { parts(&outer) } else { BTreeMap::new() };
    if format == FileFormat::CodexAuth {
        // codex reads no file without this field. What else it keeps there is for renewing, and not all that can be
        // handed over to a running codex.
        login.insert(names.refresh, Part::Text(String::new()));
        login.retain(|name, _| ["id_token", "access_token", "refresh_token", "account_id"].contains(name));
        file.retain(|name, _| ["auth_mode", "OPENAI_API_KEY", "last_refresh"].contains(name));
    }
    match names.inner {
        Some(inner) => drop(file.insert(inner, Part::Object(login))),
        None => file = login,
    }
    write(&file, text.len() + 64)
}

/// The file with the tokens of an answer. A refresh token that the answer does not replace stays.
pub fn renewed(format: FileFormat, text: &str, tokens: &Tokens<'_>, bytes: usize, now_ms: i64) -> Option<Secret> {
    let names = names(format);
    let (outer, inner) = read(&names, text)?;
    let mut login = parts(inner.as_ref().unwrap_or(&outer));
    login.insert(names.access, Part::Raw(tokens.access_token));
    for (name, value) in [(names.refresh, tokens.refresh_token), (names.id, tokens.id_token)] {
        if let Some(value) = value.filter(|value| is_text(value)) {
            login.insert(name, Part::Raw(value));
        }
    }
    let lifetime = tokens.expires_in.filter(|seconds| *seconds > 0.0).map_or(ASSUMED_LIFETIME_MS, |seconds| {
        // A year is longer than any access token lives.
        (seconds.min(366.0 * 86_400.0) * 1000.0) as i64
    });
    let end = Part::Number(now_ms.saturating_add(lifetime));
    let mut file = if names.inner.is_some() { parts(&outer) } else { BTreeMap::new() };
    match format {
        // Its access token says itself when it is over.
        FileFormat::CodexAuth => {
            let now = chrono::DateTime::from_timestamp_millis(now_ms)?;
            let now = now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            file.insert("last_refresh", Part::Text(now));
        }
        FileFormat::ClaudeCredentials => drop(login.insert("expiresAt", end)),
        FileFormat::GeminiOauth => drop(login.insert("expiry_date", end)),
    }
    match names.inner {
        Some(inner) => drop(file.insert(inner, Part::Object(login))),
        None => file = login,
    }
    write(&file, text.len() + bytes + 128)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn files() -> [(FileFormat, Value, Value); 3] {
        [
            (
                FileFormat::CodexAuth,
                json!({"auth_mode": "chatgpt", "OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",
                    "unknown": {"a": 1}, "tokens": {"id_token": "i", "access_token": "a", "refresh_token": "r",
                    "account_id": "acct", "oauth_provenance": {"issuer": "x"}}}),
                json!({"auth_mode": "chatgpt", "OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",
                    "tokens": {"id_token": "i", "access_token": "a", "refresh_token": "", "account_id": "acct"}}),
            ),
            (
                FileFormat::ClaudeCredentials,
                json!({"claudeAiOauth": {"accessToken": "a", "refreshToken": "r", "expiresAt": 5, "scopes": ["s"],
                    "subscriptionType": "max"}, "other": true}),
                json!({"claudeAiOauth": {"accessToken": "a", "expiresAt": 5, "scopes": ["s"],
                    "subscriptionType": "max"}, "other": true}),
            ),
            (
                FileFormat::GeminiOauth,
                json!({"access_token": "a", "refresh_token": "r", "scope": "s", "expiry_date": 5}),
                json!({"access_token": "a", "scope": "s", "expiry_date": 5}),
            ),
        ]
    }

    fn value(secret: &Secret) -> Value {
        serde_json::from_str(secret.expose()).unwrap()
    }

    #[test]
    fn a_file_is_handed_out_without_its_refresh_token() {
        for (format, whole, without) in files() {
            let text = whole.to_string();
            assert_eq!(refresh_token(format, &text).unwrap().expose(), "r");
            let left = without_refresh_token(format, &text).unwrap();
            assert_eq!(value(&left), without, "{format:?}");
            assert!(refresh_token(format, left.expose()).is_none());
        }
    }

    #[test]
    fn an_answer_takes_the_place_of_the_tokens_and_the_rest_stays() {
        let answer = r#"{"access_token":"a2","refresh_token":"r\"2","expires_in":60,"token_type":"Bearer"}"#;
        for (format, whole, _) in files() {
            let tokens = Tokens::read(answer).unwrap();
            let text = whole.to_string();
            let new = renewed(format, &text, &tokens, answer.len(), 1_000_000).unwrap();
            assert_eq!(refresh_token(format, new.expose()).unwrap().expose(), "r\"2", "{format:?}");
            let new = value(&new);
            match format {
                FileFormat::CodexAuth => {
                    assert_eq!((&new["tokens"]["access_token"], &new["unknown"]), (&json!("a2"), &json!({"a": 1})));
                    assert_eq!(new["tokens"]["oauth_provenance"], json!({"issuer": "x"}));
                    assert_eq!(new["last_refresh"], "1970-01-01T00:16:40.000000Z");
                }
                FileFormat::ClaudeCredentials => assert_eq!(
                    new,
                    json!({"claudeAiOauth": {"accessToken": "a2", "refreshToken": "r\"2", "expiresAt": 1_060_000,
                        "scopes": ["s"], "subscriptionType": "max"}, "other": true})
                ),
                FileFormat::GeminiOauth => assert_eq!(new["expiry_date"], 1_060_000),
            }
            // A provider that does not rotate answers without a refresh token.
            let answer = r#"{"access_token":"a3"}"#;
            let kept = renewed(format, &text, &Tokens::read(answer).unwrap(), answer.len(), 0).unwrap();
            assert_eq!(refresh_token(format, kept.expose()).unwrap().expose(), "r");
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for answer in ["", "[]", "{}", r#"{"access_token":""}"#, r#"{"access_token":7}"#, r#"{"refresh_token":"r"}"#] {
            assert!(Tokens::read(answer).is_none(), "{answer}");
        }
        assert!(refresh_token(FileFormat::CodexAuth, "{}").is_none());
        assert!(without_refresh_token(FileFormat::ClaudeCredentials, r#"{"claudeAiOauth":7}"#).is_none());
    }
}
