//! `docs/mistakes.md`: what thawctl says to mistakes, printed by the real program against a real daemon, line by line.
//!
//! `THAWD_UPDATE_GOLDEN=1 cargo test --test mistakes` writes the page again; read the difference before it is committed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use support::Daemon;

/// A provider whose CLI fails as one of Node's does: one line, then a stack.
const FAILING: &str = r#"
name = "failing"
image = "test"
home = "/home/runtime"
pool_target = 1
pids_max = 64
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; echo 'Error: 401 Unauthorized' >&2; for i in 1 2 3; do echo \"    at call (file:///usr/lib/cli.js:$i:5)\" >&2; done; exit 1"]
[models]
default = "m"
allowed = ["m"]
[credentials]
dir = ".failing"
files = ["token"]
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 0.5
"#;

/// A heading, what is typed, and where it does not go to the daemon that runs.
const MISTAKES: &[(&str, &str)] = &[
    ("A command with a typo", "thawctl rnu test -- id"),
    ("An option with a typo", "thawctl run test --timout 5 -- id"),
    ("Nothing to run", "thawctl run test"),
    ("No provider", "thawctl run -- id"),
    ("A provider with a typo", "thawctl run tset -- id"),
    ("docker's order of words", "thawctl run alpine echo hi"),
    ("A terminal", "thawctl run -it test -- sh"),
    ("A volume", "thawctl run --rm --volume /srv:/srv test -- ls /srv"),
    ("A verb of docker's that has no counterpart", "thawctl exec e-1 id"),
    ("A prompt for a provider without a CLI", "thawctl run test 'what is 3*67?'"),
    ("A time limit that is no number", "thawctl run --timeout soon test -- id"),
    ("A time limit above what is allowed", "thawctl run --timeout 1e9 test -- id"),
    ("More memory than the class has", "thawctl run --memory 4g test -- id"),
    ("A size that is none", "thawctl run --memory lots test -- id"),
    ("A variable without a value", "thawctl run --env KEY test -- env"),
    ("A file of variables that is not there", "thawctl run --env-file no-such-file test -- env"),
    ("A credential file that is not there", "thawctl run --file token=no-such-file test -- id"),
    ("A credential variable that is not set", "thawctl run --credential-env NO_SUCH_KEY test -- id"),
    ("A credential that the provider does not take", "echo x > key; thawctl run --file auth.json=key test -- id"),
    ("Input that the command would never see", "echo data | thawctl run test -- wc -c"),
    ("Input beside a prompt", "echo data | thawctl run failing 'summarise this'"),
    ("A command that is not there", "thawctl run test -- no-such-command"),
    ("A command in one word", "thawctl run test -- 'echo hi'"),
    ("A directory that is not there", "thawctl run --workdir /no/such test -- id"),
    ("A command that takes too long", "thawctl run --timeout 0.5 test -- sleep 60"),
    ("A CLI that fails with a stack", "thawctl run failing hello"),
    ("A variable that would break the CLI", "thawctl run --env LD_PRELOAD=/tmp/x.so failing hello"),
    ("A prompt above the limit", "head -c 2000000 /dev/zero | tr '\\0' x | thawctl run failing -"),
    ("An image that is not there", "thawctl run --image no-such-image"),
    ("An id that does not exist", "thawctl logs e-01zzzz"),
    ("Something that is no id", "thawctl cancel ../pools"),
    ("An end without saying of what", "thawctl cancel"),
    ("A signal that cannot be sent", "thawctl kill --signal HUP e-1"),
    ("A format that is none", "thawctl ps --format wide"),
    ("A field that there is not", "thawctl containers --format '{{.Names}}'"),
    ("A filter that there is not", "thawctl ps --filter ancestor=alpine"),
    ("A profile that there is not", "thawctl --profile work ps"),
    ("An interval of nothing", "thawctl top --interval 0"),
    ("A narrow terminal", "COLUMNS=40 thawctl providers"),
    ("Output that nobody takes any more", "thawctl run test -- yes | head -n 1"),
    ("Output that was closed before", "thawctl providers >&-"),
    ("No daemon", "thawctl --socket no-daemon.sock ps"),
    ("A daemon that is gone", "thawctl --socket deserted.sock ps"),
    ("A file in the place of the socket", "thawctl --socket key ps"),
    ("A user who may not", "setpriv --reuid 65534 --clear-groups thawctl ps"),
    ("An interrupt", "timeout --foreground --preserve-status --signal INT 1 thawctl run test -- sleep 60"),
];

const HEAD: &str = "\
# What thawctl says to mistakes

Each of these was typed at a shell, and this is what came back: standard output and standard error together, and the exit code \
where it is not 0. A message says what is wrong and what to do; it is one line unless the shape of the command line is wrong.
`tests/mistakes.rs` types them again and compares. The provider `test` has no CLI; that of `failing` fails.
";

fn typed(daemon: &Daemon, folder: &Path, line: &str) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_thawd")).parent().unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    let mut shell = Command::new("bash");
    // The pipe's own failure would hide behind that of its last program.
    shell.args(["--norc", "-o", "pipefail", "-c", &format!("{{ {line}; }} 2>&1")]);
    shell.current_dir(folder).env_clear().env("PATH", path).env("HOME", folder).env("THAWD_SOCKET", daemon.socket());
    let done = shell.stdin(Stdio::null()).output().unwrap();
    let code = done.status.code().map_or_else(|| "killed".to_owned(), |code| code.to_string());
    let mut text = String::from_utf8(done.stdout).unwrap();
    if code != "0" {
        writeln!(text, "exit code {code}").unwrap();
    }
    let socket = daemon.socket().display().to_string();
    let home = folder.display().to_string();
    without_ids(&text.replace(&socket, "/run/thawd/thawd.sock").replace(&home, "/home/alice"))
}

/// Ids and times differ from run to run.
fn without_ids(text: &str) -> String {
    let text = without(text, ", request ", |c| c.is_ascii_alphanumeric() || c == '-', "");
    without(&text, "timed out after ", |c| c.is_ascii_digit() || c == '.', "timed out after 0.5")
}

/// The text with `with` in the place of each `start` and what follows it of these characters.
fn without(text: &str, start: &str, of: impl Fn(char) -> bool, with: &str) -> String {
    let mut pieces = text.split(start);
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + with + piece.trim_start_matches(&of))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_what_the_page_says() {
    support::programs::thawctl();
    let daemon = Daemon::start(|setup| setup.pool(1).add_provider(FAILING)).await;
    daemon.settled().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("deserted.sock")).unwrap());
    let mut page = HEAD.to_owned();
    for (number, (heading, line)) in (1..).zip(MISTAKES) {
        let said = typed(&daemon, folder.path(), line);
        assert!(!said.contains("Broken pipe") && !said.contains("panicked"), "{line}: {said}");
        write!(page, "\n## {number}. {heading}\n\n```console\n$ {line}\n{said}```\n").unwrap();
    }
    daemon.stop().await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mistakes.md");
    if std::env::var_os("THAWD_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    for (kept, now) in kept.split("\n## ").zip(page.split("\n## ")) {
        assert_eq!(kept, now, "the page says something else: see the head of tests/mistakes.rs");
    }
    assert_eq!(kept.len(), page.len(), "mistakes came or went");
}
