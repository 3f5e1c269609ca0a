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
const PAGES: [&str; 6] = [
    "docs/thawctl.md",
    "docs/quick-start.md",
    "docs/controllers.md",
    "docs/own-provider.md",
    "docs/sandboxes.md",
    "README.md",
];

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

fn run(daemon: &Daemon, folder: &Path, page: &str, script: &str) -> String {
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
    out.into_owned()
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
            .set("egress.identity.paris-1.bind", "127.0.0.2")
            .set("egress.identity.second.bind", "127.0.0.3")
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
                    let out = run(&daemon, folder.path(), page, &block);
                    if page == "docs/controllers.md" {
                        assert!(out.contains("hello from a container") || out.contains("out\n"), "{out}");
                    }
                }
                None => {}
            }
        }
    }
    assert!(scripts >= 7, "{scripts}");
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

/// Both controllers, whose connections are cut after each few bytes, print everything once.
#[tokio::test(flavor = "multi_thread")]
async fn controllers_come_back_and_miss_nothing() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let folder = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/controllers.md")).unwrap();
    for (info, block) in blocks(&page) {
        if let Some((_, file)) = info.split_once(' ') {
            std::fs::write(folder.path().join(file), block.replace("openai", "test")).unwrap();
        }
    }
    let socket = folder.path().join("cutting.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let target = daemon.socket();
    let cutting = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(cut(client, target.clone()));
        }
    });
    for (program, file) in [("node", "controller.mjs"), ("python3", "controller.py")] {
        let mut command = tokio::process::Command::new(program);
        command.arg(file).args(["sh", "-c", "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.2; done; exit 7"]);
        command.current_dir(folder.path()).env("THAWD_SOCKET", &socket);
        let done = command.output().await.unwrap();
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let expected: String = (1..=6).map(|line| format!("line {line}\n")).collect();
        assert_eq!(
            (out, done.status.code()),
            (expected, Some(7)),
            "{program}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    assert_eq!(daemon.client.executions().await.unwrap().len(), 2, "each started one execution");
    cutting.abort();
    daemon.stop().await;
}

/// Passes a connection on, and cuts it in the middle of what comes back.
async fn cut(mut client: tokio::net::UnixStream, target: std::path::PathBuf) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const KEPT: u64 = 700;
    let server = tokio::net::UnixStream::connect(target).await.unwrap();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.split();
    let there = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        std::future::pending::<()>().await;
    };
    let back = async {
        let _ = tokio::io::copy(&mut (&mut from_server).take(KEPT), &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::select! { () = there => {}, () = back => {} }
}
