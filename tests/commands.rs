//! The commands on the pages, run as they are written against a real daemon whose three providers answer without a network.
//!
//! A block marked `sh` is run as one script in a shell that stops at the first failure; a block with a file's name behind its
//! language is written to that file first. `text` blocks are not run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::Daemon;

/// Pages whose commands are run. One page's blocks share a folder, in order.
const PAGES: [&str; 4] = ["docs/thawctl.md", "docs/quick-start.md", "docs/own-provider.md", "README.md"];

/// A provider that answers 201 to whatever it is asked, on the image of the tests.
fn manifest(name: &str, file: &str, variable: &str) -> String {
    format!(
        r#"
name = "{name}"
image = "{name}"
home = "/home/runtime"
pool_target = 1
pids_max = 64
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; echo 201"]
dialect = "text"
[models]
default = "m"
allowed = ["m"]
[credentials]
dir = ".{name}"
files = ["{file}"]
env = ["{variable}"]
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 0.5
"#
    )
}

/// A block of a page: what stands behind the fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.to_owned(), String::new())),
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some((_, text)), _) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// A folder for one page, with the files that its commands take for granted.
fn folder(daemon: &Daemon) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(daemon.path("run")).unwrap();
    for file in [".codex/auth.json", ".claude/.credentials.json", "prompt.txt"] {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "made up").unwrap();
    }
    // A repository with a change, of which `git diff` says something.
    for arguments in [&["init", "--quiet"][..], &["add", "prompt.txt"]] {
        assert!(Command::new("git").args(arguments).current_dir(folder.path()).status().unwrap().success());
    }
    std::fs::write(folder.path().join("prompt.txt"), "changed").unwrap();
    folder
}

fn run(daemon: &Daemon, folder: &Path, page: &str, script: &str) {
    let programs = Path::new(env!("CARGO_BIN_EXE_thawd")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    // The pages name the usual place of the socket where a program cannot be told another one.
    let script = script.replace("/run/thawd/thawd.sock", daemon.socket().to_str().unwrap());
    let mut shell = Command::new("bash");
    shell.args(["--norc", "-euo", "pipefail", "-c", &script]).current_dir(folder).env("PATH", path);
    shell.env("HOME", folder).env("THAWD_SOCKET", daemon.socket()).stdin(Stdio::null());
    for variable in ["ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY"] {
        shell.env(variable, "made-up");
    }
    let done = shell.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{page}: {script}\n{:?}\n{out}\n{err}", done.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pages_say_can_be_typed() {
    let thawctl = support::programs::thawctl();
    let own = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/own-provider.md")).unwrap();
    let (_, words) = blocks(&own).into_iter().find(|(info, _)| info == "toml words.toml").unwrap();
    let mut daemon = Daemon::prepare(|setup| {
        setup
            .pool(1)
            .add_provider(&manifest("openai", "auth.json", "OPENAI_API_KEY"))
            .add_provider(&manifest("anthropic", ".credentials.json", "ANTHROPIC_API_KEY"))
            .add_provider(&manifest("google", "oauth_creds.json", "GEMINI_API_KEY"))
            .add_provider(&words)
    });
    for name in ["openai", "anthropic", "google"] {
        let store = daemon.path("state/images");
        let import = Command::new(&thawctl)
            .args(["image", "import", "--name", name, "--store"])
            .args([&store, &support::layouts().join("test")])
            .output();
        let import = import.unwrap();
        assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    }
    // The pages about credentials take a vault for granted.
    let key = daemon.path("vault.key");
    let init =
        Command::new(env!("CARGO_BIN_EXE_thawd")).args(["vault", "init", "--key-file"]).arg(&key).output().unwrap();
    assert!(init.status.success(), "{init:?}");
    let file = daemon.path("thawd.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{config}\n[vault]\nkey_file = {:?}\n", key.to_str().unwrap())).unwrap();
    daemon.launch().await;
    let mut scripts = 0;
    for page in PAGES {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
        let folder = folder(&daemon);
        for (info, block) in blocks(&text) {
            match info.split_once(' ') {
                Some((_, file)) => std::fs::write(folder.path().join(file), &block).unwrap(),
                None if info == "sh" => {
                    scripts += 1;
                    run(&daemon, folder.path(), page, &block);
                }
                None => {}
            }
        }
    }
    assert!(scripts >= 5, "{scripts}");
    set_up(&daemon);
    daemon.stop().await;
}

/// What quick-start.md says of `thawctl setup`: the login is found where its CLI keeps it, a prompt is answered, and the
/// profile remembers both.
fn set_up(daemon: &Daemon) {
    let folder = folder(daemon);
    let setup = |more: &[&str]| {
        let mut command = Command::new(support::programs::thawctl());
        command.args(["setup", "openai", "--yes"]).args(more).current_dir(folder.path());
        command.env("HOME", folder.path()).env_remove("XDG_CONFIG_HOME").env("THAWD_SOCKET", daemon.socket());
        command.env("THAWD_CONFIG", daemon.path("thawd.toml")).stdin(Stdio::null()).output().unwrap()
    };
    for more in [&["--pool", "1"][..], &[]] {
        let done = setup(more);
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success() && out.trim() == "201", "{done:?}");
        for step in ["machine: ", "daemon: ", "image: openai is there", "warm containers: openai 1/1", "credential: "] {
            assert!(err.contains(step), "{step}: {err}");
        }
    }
    let config = std::fs::read_to_string(daemon.path("thawd.toml")).unwrap();
    assert_eq!(config.matches("[provider.openai]\npool_target = 1\n").count(), 1, "{config}");
    run(daemon, folder.path(), "after setup", "test \"$(thawctl run 'What is 3*67?')\" = 201");
    assert!(!setup(&["--credential-env", "NOT_SET"]).status.success());
}
