//! The side calls that the CLIs make: token services, user information, account checks, model lists.
//!
//! Reached only by a test that routes those hosts here; tokens are marked as offline ones and work nowhere else.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// 2100-01-01, seconds since the epoch: far enough for a token that never needs refreshing in a test.
const FAR_FUTURE: u64 = 4_102_444_800;

/// Credentials that the three CLIs take, per provider in the shape of an execution's `credentials`. gemini gets a
/// token by variable: its file is checked by the real token service, whatever the upstream.
pub fn credentials() -> Value {
    let openai = json!({"OPENAI_API_KEY": null, "last_refresh": "2026-01-01T00:00:00Z", "tokens": {
        "id_token": id_token(), "access_token": id_token(), "refresh_token": "rt-offline",
        "account_id": "acct_offline"}});
    let anthropic = json!({"claudeAiOauth": {"accessToken": "sk-ant-oat01-offline",
        "refreshToken": "sk-ant-ort01-offline", "expiresAt": FAR_FUTURE * 1000, "scopes": ["user:inference"],
        "subscriptionType": "max"}});
    json!({
        "openai": {"files": {"auth.json": openai.to_string()}},
        "anthropic": {"files": {".credentials.json": anthropic.to_string()}},
        "google": {"env": {"GOOGLE_CLOUD_ACCESS_TOKEN": "ya29.offline"}},
    })
}

/// The answer to a side call, `None` when the path is none.
pub fn answer(host: &str, path: &str, body: &Value) -> Option<Value> {
    let answer = match path {
        "/tokeninfo" => json!({"expires_in": 3600, "scope": "offline", "email": "user@example.com"}),
        "/token" => json!({"access_token": "ya29.offline", "expires_in": 3599, "token_type": "Bearer",
            "scope": "offline", "id_token": id_token()}),
        _ if path.ends_with("/oauth/token") => oauth_token(host, body),
        _ if path.ends_with("/userinfo") => json!({"email": "user@example.com", "id": "1"}),
        _ if path.ends_with("/oauth/profile") => json!({
            "account": {"uuid": "offline-user", "email": "user@example.com"},
            "organization": {"uuid": "offline-organization", "organization_type": "claude_max"}}),
        _ if path.ends_with("/wham/settings/user") => json!({}),
        _ if path.contains("/wham/") => json!({"accounts": {}, "account_ordering": []}),
        // One body for both shapes: OpenAI lists models in `data`, codex's own endpoint in `models`.
        _ if path.ends_with("/models") => json!({"object": "list", "data": [], "models": []}),
        _ => return None,
    };
    Some(answer)
}

/// Whether a renewal comes with an empty refresh token, as the file has it that leaves renewing to somebody else.
pub fn has_nothing_to_renew_with(body: &Value) -> bool {
    body["grant_type"] == "refresh_token" && body["refresh_token"] == ""
}

fn oauth_token(host: &str, body: &Value) -> Value {
    let openai = host.contains("openai") || body["client_id"].as_str().is_some_and(|id| id.starts_with("app_"));
    if openai {
        json!({"id_token": id_token(), "access_token": id_token(), "refresh_token": "rt-offline"})
    } else {
        json!({"access_token": "sk-ant-oat01-offline", "refresh_token": "sk-ant-ort01-offline",
            "expires_in": 28800, "token_type": "Bearer", "scope": "user:inference"})
    }
}

/// A JWT as codex reads it; nobody checks its signature. codex refuses to go on when a refreshed token names another
/// account than the one before, so that all of them name the same.
fn id_token() -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT"}).to_string());
    let claims = json!({"email": "user@example.com", "exp": FAR_FUTURE, "https://api.openai.com/auth": {
        "chatgpt_account_id": "acct_offline", "chatgpt_plan_type": "plus", "chatgpt_user_id": "user_offline"}});
    format!("{header}.{}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()), URL_SAFE_NO_PAD.encode("offline"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_gets_its_own_tokens() {
        let openai = answer("auth.openai.com", "/oauth/token", &json!({})).unwrap();
        assert_eq!(openai["id_token"].as_str().unwrap().split('.').count(), 3);
        let by_client = answer("upstream.test", "/oauth/token", &json!({"client_id": "app_x"})).unwrap();
        assert_eq!(by_client["refresh_token"], "rt-offline");
        let renewal = |token: &str| json!({"grant_type": "refresh_token", "refresh_token": token});
        assert!(has_nothing_to_renew_with(&renewal("")) && !has_nothing_to_renew_with(&renewal("rt")));
        let anthropic = answer("platform.claude.com", "/v1/oauth/token", &json!({})).unwrap();
        assert_eq!(anthropic["access_token"], "sk-ant-oat01-offline");
        assert!(answer("oauth2.googleapis.com", "/token", &json!(null)).is_some());
        assert!(answer("upstream.test", "/v1/responses", &json!({})).is_none());
    }
}
