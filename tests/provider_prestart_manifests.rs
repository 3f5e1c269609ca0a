//! `[prestart]` of the manifests that ship: what is started ahead of time, which requests it takes, and which mistakes
//! are refused.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use thaw_client::types::Secret;
use thawd::provider::{
    self, InvocationError, Provider,
    prestart::{LateRequest, ModelMode, Plan, Refusal},
};

const UPSTREAM: &str = "http://upstream.test:8080/";

fn shipped() -> BTreeMap<String, Provider> {
    provider::load_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("providers")).unwrap()
}

fn plan(provider: &str, model: Option<&str>, base_url: Option<&str>) -> Plan {
    shipped()[provider].prestart(model, base_url).unwrap().unwrap()
}

fn variable<'a>(plan: &'a Plan, name: &str) -> Option<&'a str> {
    plan.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[test]
fn nothing_of_a_request_is_in_what_is_started() {
    // The unified providers are programs of one call, with nothing to start ahead of time.
    for name in ["openai", "anthropic", "google"] {
        let (provider, plan) = (&shipped()[name], plan(name, None, None));
        let pieces = || plan.argv.iter().chain(plan.env.iter().map(|(_, value)| value));
        assert!(pieces().all(|piece| !piece.contains('{')), "{name}: a placeholder is left: {:?}", plan.argv);
        for credential in &provider.credentials.env {
            let value = variable(&plan, credential);
            assert!(matches!(value, None | Some("prestart")), "{name}: {credential} is set to {value:?}");
        }
        assert!(plan.memory_bytes <= provider.resources.idle.memory_bytes, "{name}: it would not fit its idle class");
        assert_eq!(plan.cwd, provider.home);
    }
}

#[test]
fn each_is_started_with_its_upstream() {
    let codex = plan("openai", None, Some(UPSTREAM)).argv.join(" ");
    assert!(codex.contains(r#"model_providers.prestart.base_url="http://upstream.test:8080/v1""#), "{codex}");
    assert!(codex.contains(r#"chatgpt_base_url="http://upstream.test:8080/backend-api""#), "{codex}");
    // Without one codex chooses the host by the kind of login, which an entry of its own would prevent.
    assert!(!plan("openai", None, None).argv.join(" ").contains("base_url"));

    let claude = plan("anthropic", Some("opus"), Some(UPSTREAM));
    assert_eq!(variable(&claude, "ANTHROPIC_BASE_URL"), Some("http://upstream.test:8080"));
    assert_eq!((claude.model.as_str(), claude.model_mode), ("claude-opus-4-5", ModelMode::Fixed));
    assert_eq!(claude.argv[..3], ["claude", "--model", "claude-opus-4-5"]);
    assert_eq!(variable(&plan("anthropic", None, None), "ANTHROPIC_BASE_URL"), None);

    let gemini = plan("google", None, Some(UPSTREAM));
    assert_eq!(variable(&gemini, "GOOGLE_GEMINI_BASE_URL"), Some("http://upstream.test:8080"));
    let settings = variable(&gemini, "GEMINI_CLI_SYSTEM_SETTINGS_PATH").unwrap();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/google-slim/files");
    let settings = std::fs::read_to_string(image.join(&settings[1..])).unwrap();
    assert!(!settings.contains("selectedType"), "gemini deletes the file of another kind of account than this");

    let google = &shipped()["google"];
    assert!(matches!(google.prestart(Some("gpt-5"), None), Err(InvocationError::UnknownModel { .. })));
    assert!(matches!(google.prestart(None, Some("ftp://x")), Err(InvocationError::BaseUrl { .. })));
}

#[derive(Default)]
struct Ask {
    model: Option<&'static str>,
    effort: Option<&'static str>,
    cwd: Option<&'static str>,
    files: Vec<(&'static str, &'static str)>,
    variables: Vec<(&'static str, &'static str)>,
    env: Vec<(&'static str, &'static str)>,
}

/// Whether a process of `provider` takes it, and whether files have to be mounted for it.
fn taken(provider: &str, ask: &Ask) -> Result<bool, Refusal> {
    let plan = plan(provider, None, None);
    let secrets = |list: &[(&str, &str)]| {
        list.iter().map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned()))).collect()
    };
    let (files, variables) = (secrets(&ask.files), secrets(&ask.variables));
    let env = ask.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = LateRequest {
        prompt: "3*67",
        model: ask.model.unwrap_or(&plan.model),
        effort: ask.effort,
        cwd: ask.cwd,
        files: &files,
        variables: &variables,
        env: &env,
        now: UNIX_EPOCH + Duration::from_secs(1_790_000_000),
    };
    plan.can_take(&request).map(|()| plan.mounts_files(&request))
}

#[test]
fn what_cannot_come_late_gets_a_process_of_its_own() {
    let key = |name| Ask { variables: vec![(name, "k")], ..Ask::default() };
    let (openai, anthropic, google) = (key("CODEX_API_KEY"), key("CLAUDE_CODE_OAUTH_TOKEN"), key("GEMINI_API_KEY"));
    for (provider, ask) in [("openai", &openai), ("anthropic", &anthropic), ("google", &google)] {
        assert_eq!(taken(provider, ask), Ok(false), "{provider}");
        let none = taken(provider, &Ask::default()).unwrap_err();
        assert_eq!(none.to_string(), "a request without a credential cannot be handed to a running process");
        let env = Ask { env: vec![("GOOGLE_CLOUD_PROJECT", "p")], variables: ask.variables.clone(), ..Ask::default() };
        assert_eq!(taken(provider, &env), Err(Refusal::Environment), "{provider}");
    }
    assert_eq!(taken("openai", &Ask { model: Some("o3"), effort: Some("high"), ..openai }), Ok(false));
    assert_eq!(taken("anthropic", &Ask { effort: Some("high"), ..key("CLAUDE_CODE_OAUTH_TOKEN") }), Ok(false));
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
        assert_eq!(taken("anthropic", &key(name)), Err(Refusal::Credential(name.into())), "the native CLI ignores it");
        assert_eq!(taken("anthropic-node", &key(name)), Ok(false));
    }
    let opus = taken("anthropic", &Ask { model: Some("claude-opus-4-5"), ..anthropic });
    assert_eq!(opus, Err(Refusal::Model("claude-sonnet-4-5".into())));
    assert_eq!(taken("google", &Ask { effort: Some("medium"), ..key("GEMINI_API_KEY") }), Ok(false));
    assert_eq!(taken("google", &Ask { effort: Some("high"), ..google }), Err(Refusal::Effort("high".into())));
    let token = taken("google", &key("GOOGLE_CLOUD_ACCESS_TOKEN"));
    assert_eq!(token, Err(Refusal::Credential("GOOGLE_CLOUD_ACCESS_TOKEN".into())));

    let file = |name, content| Ask { files: vec![(name, content)], ..Ask::default() };
    assert_eq!(taken("anthropic", &file(".credentials.json", "{}")), Ok(true));
    assert_eq!(taken("google", &file("oauth_creds.json", "{}")), Ok(true));
    assert_eq!(taken("openai", &file("auth.json", r#"{"OPENAI_API_KEY":"sk-secret"}"#)), Ok(false), "no file needed");
    let odd = taken("openai", &file("auth.json", r#"{"OPENAI_API_KEY":"sk-secret","more":1}"#)).unwrap_err();
    assert_eq!(odd.to_string(), "auth.json: it is not of a known shape");
}

/// Each: a manifest, a piece of it, its replacement, and what the error must say.
const MISTAKES: &[(&str, &str, &str, &str)] = &[
    ("google", "protocol = \"gemini-acp\"", "protocol = \"acp\"", "unknown variant `acp`"),
    ("google", "protocol = \"gemini-acp\"", "protokol = \"gemini-acp\"", "unknown field `protokol`"),
    ("google", "[\"gemini\", \"-m\", \"{model}\", \"--acp\", \"-y\"]", "[\"{model}\"]", "must begin with a program"),
    ("google", "\"--acp\"", "\"{prompt}\"", "{prompt}, which is not known there"),
    ("google", "\"--acp\"", "\"{args}\", \"{args}\"", "more than once"),
    (
        "openai",
        "\"features.api_key_cyber_access_programs=false\",\n    \"{args}\"",
        "\"x\"",
        "needs an element `{args}`",
    ),
    ("anthropic", "\"claude\", \"--model\", \"{model}\", \"-p\", \"--input-format\"", "\"claude\"", "needs `{model}`"),
    ("anthropic", "model = \"fixed\"", "model = \"late\"", "must be \"fixed\""),
    ("google", "efforts = [\"medium\"]", "efforts = [\"huge\"]", "which `efforts` does not have"),
    ("google", "memory_mib = 192", "memory_mib = 0", "not between 1 and 1048576"),
    ("google", "memory_mib = 192", "memory_mib = 192\nquiet_ms = 100000", "not between 0 and 60000"),
    ("google", "\"env:GEMINI_API_KEY\", by = \"api-key\"", "\"env:KEY\", by = \"api-key\"", "does not have"),
    (
        "google",
        "\"env:GEMINI_API_KEY\", by = \"api-key\"",
        "\"env:GEMINI_API_KEY\", by = \"environment\"",
        "does not know",
    ),
    ("google", "\"env:GEMINI_API_KEY\", by = \"api-key\"", "\"file:oauth_creds.json\", by = \"file\"", "twice"),
    ("google", "[[prestart.when]]\nbase_url = true", "[[prestart.when]]", "only a `when` block with `base_url = true`"),
    ("google", "[[prestart.when]]\n", "[[prestart.when]]\ncredential = \"env:*\"\n", "not known before the claim"),
    ("google", "[prestart.env]\n", "[prestart.env]\nHOME = \"/\"\n", "the daemon's to set"),
];

#[test]
fn each_mistake_has_its_message() {
    for (name, piece, replacement, expected) in MISTAKES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("providers/{name}.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(piece), "the shipped manifest no longer has {piece}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{name}.toml")), text.replacen(piece, replacement, 1)).unwrap();
        let error = provider::load_dir(dir.path()).expect_err(replacement).to_string();
        assert!(error.contains(expected), "{replacement}: {error}");
    }
}
