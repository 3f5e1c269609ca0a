//! Manifests with mistakes: each is refused with a message that names the key and what to write.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use thawd::provider::{self, ManifestError};

fn google() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers/google.toml");
    std::fs::read_to_string(path).unwrap()
}

fn load(text: &str) -> Result<(), ManifestError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("google.toml"), text).unwrap();
    std::fs::write(dir.path().join("README.md"), "not a manifest").unwrap();
    provider::load_dir(dir.path()).map(drop)
}

/// Each: a piece of the shipped manifest, its replacement, and what the error must say.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("pids_max = 256", "pids_maximum = 256", "unknown field `pids_maximum`"),
    ("pids_max = 256", "pids_max = 1", "`pids_max` must be at least 2"),
    ("pids_max = 256", "pids_max = -1", "pids_max"),
    ("name = \"google\"", "name = \"Google\"", "`name` must be 1 to 32 characters"),
    ("name = \"google\"", "name = \"image\"", "`name` is \"image\", which stands for executions without a provider"),
    ("image = \"google\"", "image = \"goo gle\"", "`image` must be an image's name"),
    ("home = \"/home/runtime\"", "home = \"/home/../root\"", "`home` must be an absolute path"),
    ("home = \"/home/runtime\"", "home = \"/\"", "`home` must be an absolute path"),
    ("oauth2.googleapis.com:443", "oauth2.googleapis.com", "lacks a port"),
    ("oauth2.googleapis.com:443", "oauth2.googleapis.com:0", "port is not between 1 and 65535"),
    ("oauth2.googleapis.com:443", "*:443", "neither a name"),
    ("oauth2.googleapis.com:443", "https://oauth2.googleapis.com:443", "neither a name"),
    ("\"-p={prompt}\"", "\"-p={promt}\"", "{promt}, which is not known there"),
    ("\"-p={prompt}\"", "\"-p\"", "needs `{prompt}` exactly once"),
    ("prompt = \"argument_or_stdin\"", "prompt = \"stdin\"", "which needs `prompt = \"argument\"`"),
    ("prompt = \"argument_or_stdin\"", "prompt = \"shell\"", "unknown variant `shell`"),
    ("\"{args}\"", "\"x{args}\"", "as an element of its own"),
    ("\"{args}\"", "\"{args}\", \"{args}\"", "more than once"),
    ("[\"gemini\",", "[\"{model}\",", "must begin with a program"),
    ("default = \"gemini-2.5-flash\"", "default = \"gpt-5\"", "`models.default` is \"gpt-5\""),
    ("pro = \"gemini-2.5-pro\"", "pro = \"opus\"", "`models.aliases.pro` is \"opus\""),
    ("start_timeout_s = 20", "start_timeout_s = 0", "not between 1 and 86400"),
    ("dialect = \"gemini-stream-json\"", "dialect = \"json\"", "unknown variant `json`"),
    ("dir = \".gemini\"", "dir = \"../.gemini\"", "`credentials.dir` must be relative"),
    ("dir = \".gemini\"", "dir = \"/etc\"", "`credentials.dir` must be relative"),
    ("files = [\"oauth_creds.json\"]", "files = [\"a/b\"]", "not a plain file name"),
    ("files = [\"oauth_creds.json\"]", "files = [\"..\"]", "not a plain file name"),
    ("env = [\"GEMINI_API_KEY\",", "env = [\"GEMINI=KEY\",", "must not be empty or contain `=`"),
    ("env = [\"GEMINI_API_KEY\",", "env = [\"NO_COLOR\",", "which `env` sets already"),
    ("tmpfs_mib = 8", "tmpfs_mib = 0", "not between 1 and 1048576"),
    ("NO_COLOR = \"1\"", "HTTPS_PROXY = \"http://x\"", "the daemon's to set"),
    ("NO_COLOR = \"1\"", "NO_COLOR = \"{base_url}\"", "only a `when` block with `base_url = true`"),
    ("credential = \"env:GEMINI_API_KEY\"", "credential = \"GEMINI_API_KEY\"", "neither `file:NAME` nor `env:NAME`"),
    ("credential = \"env:GEMINI_API_KEY\"", "credential = \"env:OTHER\"", "`credentials.env` does not have"),
    ("credential = \"file:oauth_creds.json\"", "credential = \"file:x\"", "`credentials.files` does not have"),
    ("cpu = 0.1", "cpu = 0.0", "`resources.idle.cpu` must be between"),
    ("cpu = 0.1", "cpu = nan", "`resources.idle.cpu` must be between"),
    ("cpu_burst = 1.0", "cpu_burst = 0.1", "`resources.run.cpu_burst` must be between"),
    ("cpu_period_ms = 1000", "cpu_period_ms = 1001", "not between 1 and 1000"),
    ("cpu_burst = 1.0\ncpu_period_ms = 1000", "cpu_burst = 1.0", "`resources.run.cpu_period_ms` must not be shorter"),
    ("memory_mib = 256", "memory_mib = 268435456", "not between 1 and 1048576"),
    ("memory_mib = 256", "memory_bytes = 268435456", "unknown field `memory_bytes`"),
];

#[test]
fn each_mistake_has_its_message() {
    load(&google()).unwrap();
    for (piece, replacement, expected) in MISTAKES {
        let text = google();
        assert!(text.contains(piece), "the shipped manifest no longer has {piece}");
        let error = load(&text.replacen(piece, replacement, 1)).expect_err(replacement).to_string();
        assert!(error.contains(expected), "{replacement}: {error}");
        assert!(error.contains("google.toml"), "{error}");
    }
}

#[test]
fn added_arguments_need_a_place() {
    let error = load(&google().replacen(", \"{args}\"]", "]", 1).replacen(
        "[efforts.low]",
        "[efforts.low]\nargs = [\"-x\"]",
        1,
    ));
    assert!(error.unwrap_err().to_string().contains("needs an element `{args}`"));
}

#[test]
fn the_file_must_be_named_after_the_provider() {
    let error = load(&google().replacen("name = \"google\"", "name = \"gemini\"", 1)).unwrap_err();
    assert!(matches!(error, ManifestError::FileName { .. }));
    assert!(error.to_string().ends_with("the file must be named gemini.toml"), "{error}");
}

#[test]
fn a_missing_directory_is_named() {
    let error = provider::load_dir(Path::new("/nonexistent/providers")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nonexistent/providers: "), "{error}");
}
