//! The manifests that ship: what exactly they start, with which limits, for which credential.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeMap, path::Path, time::Duration};

use thawd::provider::{self, CredentialError, Dialect, Invocation, InvocationError, PromptSpec, PromptVia, Provider};

const UPSTREAM: &str = "http://upstream.test:8080";

fn shipped() -> BTreeMap<String, Provider> {
    provider::load_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("providers")).unwrap()
}

fn test_provider() -> Provider {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/providers");
    provider::load_dir(&dir).unwrap().remove("test").unwrap()
}

fn spec<'a>(files: &'a [&'a str], env: &'a [&'a str]) -> PromptSpec<'a> {
    PromptSpec { prompt: "3*67", credential_files: files, credential_env: env, ..PromptSpec::default() }
}

fn variable<'a>(invocation: &'a Invocation, name: &str) -> Option<&'a str> {
    invocation.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[test]
fn each_provider_has_the_limits_of_the_mission() {
    let providers = shipped();
    let (unified, clis): (Vec<_>, Vec<_>) = providers.values().partition(|provider| provider.image == "unified");
    assert_eq!(
        clis.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>(),
        ["anthropic", "anthropic-node", "google", "openai"]
    );
    assert_eq!(unified.len(), 3);
    for provider in clis {
        let (idle, run) = (provider.resources.idle, provider.resources.run);
        assert_eq!((idle.memory_bytes, idle.cpu, idle.cpu_burst), (256 << 20, 0.1, Some(0.2)), "{}", provider.name);
        assert_eq!((run.memory_bytes, run.cpu, run.cpu_burst), (512 << 20, 0.5, Some(1.0)), "{}", provider.name);
        let second = Duration::from_secs(1);
        assert_eq!((idle.cpu_period, run.cpu_period), (second, second), "{}: enough at once", provider.name);
        assert_eq!(provider.pool_target, if provider.name == "anthropic-node" { 0 } else { 10 });
        assert_eq!(provider.timeouts.default, Duration::from_secs(30));
        assert_eq!(provider.home, "/home/runtime");
        assert!(provider.egress.iter().all(|pattern| pattern.ends_with(":443")));
    }
}

#[test]
fn the_unified_image_is_told_all_but_the_prompt_by_its_environment() {
    let providers = shipped();
    for (name, key, base) in [
        ("openai", "OPENAI_API_KEY", ("OPENAI_BASE_URL", "http://upstream.test:8080/v1")),
        ("anthropic", "ANTHROPIC_API_KEY", ("ANTHROPIC_BASE_URL", UPSTREAM)),
        ("google", "GOOGLE_API_KEY", ("GOOGLE_GEMINI_BASE_URL", UPSTREAM)),
    ] {
        let provider = &providers[&format!("unified-{name}")];
        let env = [key];
        let run = provider.invocation(&PromptSpec { base_url: Some(UPSTREAM), ..spec(&[], &env) }).unwrap();
        assert_eq!(
            (run.argv.as_slice(), run.stdin.as_deref()),
            (&["thaw-unified".to_owned()][..], Some(b"3*67".as_slice()))
        );
        assert_eq!(variable(&run, "PROVIDER"), Some(name));
        assert_eq!(variable(&run, "MODEL"), Some(providers[name].models.default.as_str()));
        assert_eq!(variable(&run, base.0), Some(base.1));
        assert_eq!(run.dialect, Dialect::Text);
        let (idle, run) = (provider.resources.idle, provider.resources.run);
        assert_eq!((idle.memory_bytes, idle.cpu, run.memory_bytes, run.cpu), (32 << 20, 0.1, 64 << 20, 0.5));
        let missing = provider.check_credentials(&[], &[]).unwrap_err().to_string();
        assert!(missing.contains(key), "{missing}");
    }
}

#[test]
fn google_takes_its_variables_by_the_names_that_others_use() {
    let google = &shipped()["google"];
    let given = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), ())).collect::<BTreeMap<_, _>>();
    assert_eq!(google.without_aliases(given(&["GOOGLE_API_KEY"])).unwrap(), given(&["GEMINI_API_KEY"]));
    assert_eq!(google.without_aliases(given(&["GEMINI_API_KEY"])).unwrap(), given(&["GEMINI_API_KEY"]));
    let both = google.without_aliases(given(&["GEMINI_API_KEY", "GOOGLE_API_KEY"]));
    assert!(matches!(both, Err(CredentialError::Several { .. })), "{both:?}");
    let mut env = BTreeMap::from([("GOOGLE_PROJECT_ID".to_owned(), "p".to_owned())]);
    google.add_aliased(&mut env);
    assert_eq!((env["GOOGLE_PROJECT_ID"].as_str(), env["GOOGLE_CLOUD_PROJECT"].as_str()), ("p", "p"));
    env.insert("GOOGLE_CLOUD_PROJECT".to_owned(), "q".to_owned());
    google.add_aliased(&mut env);
    assert_eq!(env["GOOGLE_CLOUD_PROJECT"], "q", "the CLI's own name goes first");
}

#[test]
fn codex_reads_the_prompt_from_standard_input() {
    let openai = &shipped()["openai"];
    let run = openai.invocation(&spec(&["auth.json"], &[])).unwrap();
    let expected = "codex exec -m gpt-5-codex --json --skip-git-repo-check \
        --dangerously-bypass-approvals-and-sandbox --ephemeral -";
    assert_eq!(run.argv.join(" "), expected);
    assert_eq!(run.stdin.as_deref(), Some(b"3*67".as_slice()));
    assert_eq!((run.dialect, run.model.as_str()), (Dialect::CodexExecJson, "gpt-5-codex"));
    assert_eq!((run.timeout, run.start_timeout), (Duration::from_secs(30), Duration::from_secs(20)));

    let file = openai.invocation(&PromptSpec { base_url: Some(UPSTREAM), ..spec(&["auth.json"], &[]) }).unwrap();
    let line = file.argv.join(" ");
    assert!(line.contains(r#"-c model_provider="thawd""#) && line.contains("requires_openai_auth=true"), "{line}");
    assert!(line.contains(r#"-c model_providers.thawd.base_url="http://upstream.test:8080/v1""#), "{line}");
    assert!(line.contains(r#"-c chatgpt_base_url="http://upstream.test:8080/backend-api""#), "{line}");
    assert!(line.ends_with(" -"), "the dash that asks for standard input stays last: {line}");

    for name in ["OPENAI_API_KEY", "CODEX_API_KEY"] {
        let line = openai.invocation(&spec(&[], &[name])).unwrap().argv.join(" ");
        assert!(line.contains(&format!(r#"-c model_providers.thawd.env_key="{name}""#)), "{line}");
        assert!(!line.contains("base_url"), "without another upstream the image's entry names OpenAI's: {line}");
    }
}

#[test]
fn claude_reads_the_prompt_from_standard_input() {
    let anthropic = &shipped()["anthropic"];
    let run = anthropic.invocation(&spec(&[".credentials.json"], &[])).unwrap();
    let expected = "claude --model claude-sonnet-4-5 -p --output-format stream-json --verbose \
        --include-partial-messages --dangerously-skip-permissions --no-session-persistence --strict-mcp-config \
        --disable-slash-commands";
    assert_eq!(run.argv.join(" "), expected);
    assert_eq!(run.stdin.as_deref(), Some(b"3*67".as_slice()));
    assert_eq!(variable(&run, "DISABLE_AUTOUPDATER"), Some("1"));
    assert_eq!(variable(&run, "ANTHROPIC_BASE_URL"), None);

    let other = PromptSpec { base_url: Some("https://gateway.example/"), ..spec(&[], &["ANTHROPIC_API_KEY"]) };
    let run = anthropic.invocation(&other).unwrap();
    assert_eq!(variable(&run, "ANTHROPIC_BASE_URL"), Some("https://gateway.example"));
}

#[test]
fn gemini_takes_the_prompt_as_one_argument() {
    let google = &shipped()["google"];
    let run = google.invocation(&spec(&[], &["GEMINI_API_KEY"])).unwrap();
    assert_eq!(run.argv.join(" "), "gemini -m gemini-2.5-flash -p=3*67 -y -o stream-json");
    assert_eq!(run.stdin, None);
    assert_eq!(variable(&run, "THAWD_GEMINI_AUTH"), Some("gemini-api-key"));
    assert_eq!(variable(&run, "GOOGLE_GENAI_USE_GCA"), None);

    for (files, env) in [(&[][..], &["GOOGLE_CLOUD_ACCESS_TOKEN"][..]), (&["oauth_creds.json"], &[])] {
        let run = google.invocation(&PromptSpec { base_url: Some(UPSTREAM), ..spec(files, env) }).unwrap();
        assert_eq!(variable(&run, "GOOGLE_GENAI_USE_GCA"), Some("true"));
        assert_eq!(variable(&run, "CODE_ASSIST_ENDPOINT"), Some(UPSTREAM));
        assert_eq!(variable(&run, "GOOGLE_GEMINI_BASE_URL"), None, "it would select the wrong kind of account");
    }

    // Neither flags nor placeholders in a prompt are anything but text.
    let sly = PromptSpec { prompt: "--yolo {model} $(id) '", ..spec(&[], &["GEMINI_API_KEY"]) };
    assert_eq!(google.invocation(&sly).unwrap().argv[3], "-p=--yolo {model} $(id) '");
}

#[test]
fn the_longest_timeout_that_applies_is_used() {
    let providers = shipped();
    let timeout = |name: &str, env: &str, model: Option<&str>, effort: Option<&str>| {
        let env = [env];
        let run = providers[name].invocation(&PromptSpec { model, effort, ..spec(&[], &env) }).unwrap();
        (run.timeout.as_secs(), run.model)
    };
    let claude = |model, effort| timeout("anthropic", "ANTHROPIC_API_KEY", model, effort);
    assert_eq!(claude(None, None), (30, "claude-sonnet-4-5".into()));
    assert_eq!(claude(Some("opus"), None), (90, "claude-opus-4-5".into()));
    assert_eq!(claude(Some("opus"), Some("high")), (120, "claude-opus-4-5".into()));
    assert_eq!(claude(None, Some("low")), (30, "claude-sonnet-4-5".into()));
    assert_eq!(timeout("openai", "OPENAI_API_KEY", None, Some("high")).0, 120);
    assert_eq!(timeout("google", "GEMINI_API_KEY", Some("pro"), None), (90, "gemini-2.5-pro".into()));
}

#[test]
fn efforts_reach_the_command_line() {
    let providers = shipped();
    let run = |name: &str, env: &str| {
        let env = [env];
        providers[name].invocation(&PromptSpec { effort: Some("high"), ..spec(&[], &env) }).unwrap()
    };
    assert!(run("openai", "OPENAI_API_KEY").argv.join(" ").contains(r#"-c model_reasoning_effort="high""#));
    assert!(run("anthropic", "ANTHROPIC_API_KEY").argv.join(" ").contains("--effort high"));
    let gemini = run("google", "GEMINI_API_KEY");
    let file = variable(&gemini, "GEMINI_CLI_SYSTEM_DEFAULTS_PATH").unwrap();
    let baked = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/google-slim/files").join(&file[1..]);
    assert!(baked.is_file(), "{} is not baked into the image", baked.display());
}

#[test]
fn bad_requests_are_told_apart() {
    let google = &shipped()["google"];
    let key = ["GEMINI_API_KEY"];
    let ask = |change: fn(&mut PromptSpec<'_>)| {
        let mut spec = spec(&[], &key);
        change(&mut spec);
        google.invocation(&spec).unwrap_err()
    };
    assert_eq!(ask(|s| s.prompt = " \n"), InvocationError::EmptyPrompt);
    assert!(matches!(ask(|s| s.prompt = "a\0b"), InvocationError::PromptHasNul { .. }));
    for model in ["claude-opus-4-5", "-y", "gemini 2", "gemini-\n", ""] {
        let mut spec = spec(&[], &key);
        spec.model = Some(model);
        let error = google.invocation(&spec).unwrap_err();
        assert!(matches!(&error, InvocationError::UnknownModel { .. }), "{error}");
    }
    let effort = ask(|s| s.effort = Some("extreme"));
    assert_eq!(effort.to_string(), "provider `google` has no effort \"extreme\"; it has high, low, medium");
    for url in ["ftp://x", "http://", "http://u:secret@x", "http://x\"", "http://x y", "https:///path"] {
        let mut spec = spec(&[], &key);
        spec.base_url = Some(url);
        let error = google.invocation(&spec).unwrap_err();
        assert!(matches!(&error, InvocationError::BaseUrl { .. }), "{error}");
        assert!(!error.to_string().contains("secret"));
    }
}

#[test]
fn a_prompt_fits_an_argument_or_is_refused_or_goes_to_standard_input() {
    let providers = shipped();
    let (shipped_google, openai) = (&providers["google"], &providers["openai"]);
    let mut google = shipped_google.clone();
    google.command.prompt = PromptVia::Argument;
    let longest = "x".repeat(128 * 1024 - 1 - "-p=".len());
    let run = google.invocation(&PromptSpec { prompt: &longest, ..spec(&[], &["GEMINI_API_KEY"]) }).unwrap();
    // The kernel is the judge.
    assert!(std::process::Command::new("/bin/true").args(&run.argv[1..]).status().unwrap().success());
    let longer = format!("{longest}x");
    let spec_longer = PromptSpec { prompt: &longer, ..spec(&[], &["GEMINI_API_KEY"]) };
    let error = google.invocation(&spec_longer).unwrap_err();
    assert!(matches!(error, InvocationError::PromptTooLong { limit: 131_068, .. }), "{error}");
    assert!(std::process::Command::new("/bin/true").arg(format!("-p={longer}")).status().is_err());
    let run = shipped_google.invocation(&spec_longer).unwrap();
    assert_eq!(run.stdin.as_deref(), Some(longer.as_bytes()));
    assert!(run.argv.iter().all(|argument| !argument.starts_with("-p")), "{:?}", run.argv);
    let fits = PromptSpec { prompt: &longest, ..spec_longer };
    assert_eq!(shipped_google.invocation(&fits).unwrap().stdin, None);
    assert!(openai.invocation(&PromptSpec { prompt: &longer, ..spec(&["auth.json"], &[]) }).is_ok());
}

#[test]
fn credentials_are_checked_by_name() {
    let openai = &shipped()["openai"];
    assert_eq!(openai.check_credentials(&["auth.json"], &[]), Ok(()));
    let missing = openai.check_credentials(&[], &[]).unwrap_err();
    let text = "provider `openai` needs a credential: give the file auth.json, \
        or the variable OPENAI_API_KEY or CODEX_API_KEY";
    assert_eq!(missing.to_string(), text);
    for name in ["../auth.json", "/etc/passwd", "auth.json/", "config.toml", ""] {
        let error = openai.check_credentials(&[name], &[]).unwrap_err();
        assert!(matches!(error, CredentialError::UnknownFile { .. }), "{name}: {error}");
    }
    let error = openai.check_credentials(&[], &["LD_PRELOAD"]).unwrap_err();
    assert!(matches!(error, CredentialError::UnknownVariable { .. }));
    let error = openai.check_credentials(&["auth.json"], &["OPENAI_API_KEY"]).unwrap_err();
    assert!(matches!(error, CredentialError::Several { .. }));
    assert_eq!(openai.check_credential_names(&[], &[]), Ok(()), "a command may do without");
}

#[test]
fn a_provider_without_a_cli_refuses_prompts() {
    let test = test_provider();
    assert_eq!(test.check_credentials(&[], &[]), Ok(()));
    let error = test.invocation(&spec(&[], &[])).unwrap_err();
    assert_eq!(error.to_string(), "provider `test` has no CLI that takes a prompt; give `command` instead");
}
