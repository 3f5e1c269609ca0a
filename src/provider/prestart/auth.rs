//! Reads codex's `auth.json`: which part of it can be passed to a running process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::credential::{Credential, Tokens};

/// Remaining validity that a renewable token must have; with less, codex gets the whole file instead. Longer than the
/// longest execution that the shipped manifests allow by default (two minutes).
const MARGIN: Duration = Duration::from_secs(600);

/// What is wrong with a credential file; says nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The file is not of a shape that codex writes, as far as known here.
    #[error("it is not of a known shape")]
    Shape,
    /// The file has both a key and tokens, or neither: only codex can decide which to use.
    #[error("it holds both a key and tokens, or neither")]
    Ambiguous,
    /// There is no account id beside the tokens or in them.
    #[error("its tokens name no account")]
    NoAccount,
    /// The token has expired or soon will, and codex could renew it from the file.
    #[error("its access token has to be renewed first")]
    Stale,
}

// All fields borrow, so that no copy of a secret is made; a value with escapes in it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthFile<'a> {
    #[serde(rename = "OPENAI_API_KEY", default)]
    key: Option<&'a str>,
    #[serde(borrow, default)]
    tokens: Option<TokenFields<'a>>,
    #[serde(default)]
    auth_mode: Option<&'a str>,
    #[serde(default, rename = "last_refresh")]
    _last_refresh: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFields<'a> {
    #[serde(default)]
    id_token: Option<&'a str>,
    access_token: &'a str,
    #[serde(default)]
    refresh_token: Option<&'a str>,
    #[serde(default)]
    account_id: Option<&'a str>,
    /// Where the login was made, and by which codex: of use only to whoever renews it.
    #[serde(default, rename = "oauth_provenance")]
    _oauth_provenance: IgnoredAny,
    #[serde(default, rename = "login_owner_id")]
    _login_owner_id: IgnoredAny,
}

#[derive(Default, Deserialize)]
struct Claims {
    exp: Option<u64>,
    #[serde(default, rename = "https://api.openai.com/auth")]
    account: AccountClaims,
}

#[derive(Default, Deserialize)]
struct AccountClaims {
    chatgpt_account_id: Option<String>,
    chatgpt_plan_type: Option<String>,
}

/// Reads the content of the file.
pub(super) fn read(content: &str, now: SystemTime) -> Result<Credential<'_>, Unusable> {
    let file: AuthFile<'_> = serde_json::from_str(content).map_err(|_| Unusable::Shape)?;
    let key = file.key.filter(|key| !key.is_empty());
    match (file.auth_mode, key, file.tokens) {
        (None | Some("apikey"), Some(key), None) => Ok(Credential::Key(key)),
        (None | Some("chatgpt"), None, Some(tokens)) => tokens.usable(now).map(Credential::Tokens),
        (None | Some("apikey" | "chatgpt"), _, _) => Err(Unusable::Ambiguous),
        _ => Err(Unusable::Shape),
    }
}

impl<'a> TokenFields<'a> {
    fn usable(self, now: SystemTime) -> Result<Tokens<'a>, Unusable> {
        let access = claims(self.access_token);
        let id = self.id_token.map(claims).unwrap_or_default();
        let renewable = self.refresh_token.is_some_and(|token| !token.is_empty());
        if renewable {
            let until = access.exp.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
            let good = until.and_then(|until| until.duration_since(now).ok()).is_some_and(|left| left >= MARGIN);
            if !good {
                return Err(Unusable::Stale);
            }
        }
        // In codex's own order: first the field, then the claims of the tokens.
        let account = self.account_id.filter(|id| !id.is_empty()).map(str::to_owned);
        let account = account.or(id.account.chatgpt_account_id).or(access.account.chatgpt_account_id);
        Ok(Tokens {
            access: self.access_token,
            account: account.ok_or(Unusable::NoAccount)?,
            plan: id.account.chatgpt_plan_type.or(access.account.chatgpt_plan_type),
            renewable,
        })
    }
}

/// The claims of a token; empty if it cannot be read. The signature is not verified: the provider does that.
fn claims(token: &str) -> Claims {
    let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).map(Zeroizing::new);
    payload.and_then(|payload| serde_json::from_slice(&payload).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn file(exp: u64, refresh: &str) -> String {
        let access = token(&json!({"exp": exp}));
        let account = json!({"chatgpt_account_id": "acct_1", "chatgpt_plan_type": "plus"});
        let id = token(&json!({"https://api.openai.com/auth": account}));
        json!({"OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z",
            "tokens": {"id_token": id, "access_token": access, "refresh_token": refresh, "account_id": null}})
        .to_string()
    }

    fn problem(content: &str) -> Unusable {
        match read(content, now()) {
            Ok(_) => panic!("usable: {content}"),
            Err(problem) => problem,
        }
    }

    #[test]
    fn a_file_as_codex_0_169_writes_it_is_of_a_known_shape() {
        let mut whole: Value = serde_json::from_str(&file(2_000_000, "rt")).unwrap();
        whole["auth_mode"] = json!("chatgpt");
        whole["tokens"]["oauth_provenance"] = json!({"issuer": "https://auth.openai.com", "client_id": "app_x"});
        whole["tokens"]["login_owner_id"] = json!("b1c2");
        let text = whole.to_string();
        let Ok(Credential::Tokens(tokens)) = read(&text, now()) else { panic!("{:?}", problem(&text)) };
        assert!(tokens.renewable && tokens.account == "acct_1");
        // What else there is may mean anything.
        whole["tokens"]["unheard_of"] = json!(1);
        assert_eq!(problem(&whole.to_string()), Unusable::Shape);
    }

    #[test]
    fn keys_and_tokens_are_found() {
        assert!(matches!(read(r#"{"OPENAI_API_KEY":"sk-1"}"#, now()), Ok(Credential::Key("sk-1"))));
        let file = file(2_000_000, "rt");
        let Ok(Credential::Tokens(tokens)) = read(&file, now()) else { panic!("tokens") };
        assert_eq!((tokens.account.as_str(), tokens.plan.as_deref()), ("acct_1", Some("plus")));
        assert!(tokens.renewable);
    }

    #[test]
    fn a_token_that_codex_could_renew_must_be_fresh() {
        for (exp, refresh, usable) in [
            (1_000_000 + 599, "rt", false),
            (1_000_000 + 600, "rt", true),
            (999_999, "rt", false),
            (u64::MAX, "rt", false),
            // Nobody can renew it: then it is the provider's to refuse.
            (999_999, "", true),
        ] {
            assert_eq!(read(&file(exp, refresh), now()).is_ok(), usable, "{exp} {refresh}");
        }
        let opaque = r#"{"tokens":{"access_token":"opaque","refresh_token":"rt","account_id":"a"}}"#;
        assert_eq!(problem(opaque), Unusable::Stale);
        assert!(read(&opaque.replace("\"rt\"", "null"), now()).is_ok());
    }

    #[test]
    fn what_is_not_understood_is_left_to_codex() {
        assert_eq!(problem("{}"), Unusable::Ambiguous);
        assert_eq!(problem(r#"{"OPENAI_API_KEY":""}"#), Unusable::Ambiguous);
        assert_eq!(problem(r#"{"OPENAI_API_KEY":"a","tokens":{"access_token":"b"}}"#), Unusable::Ambiguous);
        assert_eq!(problem(r#"{"tokens":{"access_token":"b"}}"#), Unusable::NoAccount);
        assert_eq!(problem("not json"), Unusable::Shape);
        assert_eq!(problem(r#"{"agent_identity":"x","OPENAI_API_KEY":"a"}"#), Unusable::Shape);
        assert_eq!(problem(r#"{"auth_mode":"bedrock","OPENAI_API_KEY":"a"}"#), Unusable::Shape);
        assert_eq!(problem(r#"{"OPENAI_API_KEY":"a\u0062"}"#), Unusable::Shape);
    }
}
