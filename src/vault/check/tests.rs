use std::collections::BTreeMap;
use std::path::Path;

use super::*;

const NOW: i64 = 1_800_000_000_000;

fn token(claims: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(r#"{"alg":"none"}"#), part(claims), part("signature"))
}

fn provider(name: &str) -> Provider {
    crate::provider::load_dir(Path::new("providers")).unwrap().remove(name).unwrap()
}

fn with_file(name: &str, text: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.files = BTreeMap::from([(name.to_owned(), Secret::new(text.to_owned()))]);
    credentials
}

fn with_variable(name: &str, text: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.env = BTreeMap::from([(name.to_owned(), Secret::new(text.to_owned()))]);
    credentials
}

fn facts(of: &str, credentials: &Credentials) -> Result<Facts, String> {
    examine(&provider(of), credentials, 64 << 10, NOW).map_err(|error| error.to_string())
}

fn codex_file(access_exp: i64, refresh: &str) -> String {
    let id = token(r#"{"email":"u@example.test","exp":1}"#);
    let access = token(&format!(r#"{{"exp":{access_exp}}}"#));
    format!(
        r#"{{"OPENAI_API_KEY":null,"tokens":{{"id_token":"{id}","access_token":"{access}"{refresh},"account_id":"a"}}}}"#
    )
}

#[test]
fn each_cli_s_own_files_are_taken_and_described() {
    let later = NOW / 1000 + 3600;
    let login =
        facts("openai", &with_file("auth.json", &codex_file(later, r#","refresh_token":"rt-secret""#))).unwrap();
    assert_eq!((login.kind, login.account.as_deref()), (CredentialKind::Login, Some("u@example.test")));
    assert_eq!((login.expires_at_ms, login.renewable), (Some(later * 1000), true));
    let key = facts("openai", &with_file("auth.json", r#"{"OPENAI_API_KEY":"sk-secret"}"#)).unwrap();
    assert_eq!((key.kind, key.expires_at_ms), (CredentialKind::ApiKey, None));
    assert_ne!(key.fingerprint, login.fingerprint);
    assert_eq!(key.fingerprint.len(), 16);
    let claude = r#"{"claudeAiOauth":{"accessToken":"sk-ant-oat01-x","refreshToken":null,"expiresAt":4102444800000,"scopes":["user:inference"]}}"#;
    let login = facts("anthropic", &with_file(".credentials.json", claude)).unwrap();
    assert_eq!((login.expires_at_ms, login.renewable), (Some(4_102_444_800_000), false));
    let gemini =
        r#"{"access_token":"ya29.x","refresh_token":"1//x","token_type":"Bearer","expiry_date":1700000000000}"#;
    assert!(facts("google", &with_file("oauth_creds.json", gemini)).unwrap().renewable, "over, but it can be renewed");
    assert_eq!(facts("google", &with_variable("GEMINI_API_KEY", "AIza-x")).unwrap().kind, CredentialKind::ApiKey);
}

#[test]
fn what_no_cli_would_read_is_refused_by_field_and_never_shown() {
    let claude = |login: &str| format!(r#"{{"claudeAiOauth":{login}}}"#);
    let over = NOW / 1000 - 1;
    for (of, name, text, why) in [
        ("openai", "auth.json", "sk-secret".to_owned(), "`files.auth.json` is not the JSON"),
        ("openai", "auth.json", "  \n".to_owned(), "`files.auth.json` is empty"),
        ("openai", "auth.json", "{}".to_owned(), "neither `OPENAI_API_KEY` nor `tokens`"),
        (
            "openai",
            "auth.json",
            r#"{"tokens":{"id_token":"sk-secret","access_token":"x"}}"#.to_owned(),
            "tokens.id_token` is no JWT",
        ),
        ("openai", "auth.json", codex_file(NOW, ""), "tokens.refresh_token` is missing"),
        ("openai", "auth.json", codex_file(over, r#","refresh_token":"""#), "nothing to renew it with"),
        (
            "openai",
            "auth.json",
            r#"{"tokens":{"id_token":["sk-secret"]}}"#.to_owned(),
            "tokens.id_token` has another type",
        ),
        ("anthropic", ".credentials.json", "{}".to_owned(), "claudeAiOauth` is missing"),
        ("anthropic", ".credentials.json", claude(r#"{"accessToken":"","scopes":["a"]}"#), "accessToken` is empty"),
        ("anthropic", ".credentials.json", claude(r#"{"accessToken":"sk-secret"}"#), "scopes` is missing"),
        (
            "anthropic",
            ".credentials.json",
            claude(r#"{"accessToken":"sk-secret","expiresAt":1,"scopes":["a"]}"#),
            "nothing to renew it with",
        ),
        ("google", "oauth_creds.json", r#"{"token_type":"Bearer"}"#.to_owned(), "access_token` is missing"),
        (
            "google",
            "oauth_creds.json",
            r#"{"access_token":"sk-secret","expiry_date":5}"#.to_owned(),
            "nothing to renew it with",
        ),
        ("google", "auth.json", "{}".to_owned(), "reads no credential file named"),
    ] {
        let error = facts(of, &with_file(name, &text)).unwrap_err();
        assert!(error.contains(why) && !error.contains("secret"), "{of}: {error}");
    }
    for (text, why) in [("", "from 1 to"), ("sk secret", "has a space"), ("sk-secret\n", "has a space")] {
        let error = facts("openai", &with_variable("OPENAI_API_KEY", text)).unwrap_err();
        assert!(error.contains(why) && !error.contains("secret"), "{error}");
    }
    assert!(facts("openai", &with_variable("OPENAI_API_KEY", &"x".repeat(16_385))).unwrap_err().contains("16384"));
    assert!(facts("openai", &Credentials::default()).unwrap_err().contains("both empty"));
    let large = with_file("auth.json", &format!(r#"{{"OPENAI_API_KEY":"{}"}}"#, "x".repeat(64 << 10)));
    assert!(facts("openai", &large).unwrap_err().contains("at most 65536"));
}

#[test]
fn the_path_that_documents_name_leads_to_the_file_that_the_cli_reads() {
    let provider = provider("anthropic");
    for alias in ["~/.config/claude/credentials.json", "credentials.json", "~/.claude/.credentials.json"] {
        let names = provider.file_names(BTreeMap::from([(alias.to_owned(), ())])).unwrap();
        assert_eq!(names.into_keys().collect::<Vec<_>>(), [".credentials.json"], "{alias}");
    }
    let twice = BTreeMap::from([("credentials.json".to_owned(), ()), (".credentials.json".to_owned(), ())]);
    assert!(provider.file_names(twice).is_err());
}
