//! `thawctl run --put --collect -o` and `thawctl files`, the real program.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Output, Stdio};

use super::support::{Daemon, programs};

async fn thawctl(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(programs::thawctl());
    command.args(arguments).env("THAWD_SOCKET", daemon.socket()).stdin(Stdio::null()).kill_on_drop(true);
    command.current_dir(daemon.path("here")).output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_folder_goes_in_and_what_was_made_comes_out() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let here = daemon.path("here");
    fs::create_dir_all(here.join("repo/src")).unwrap();
    fs::write(here.join("repo/src/tool"), "#!/bin/sh\necho tool $1\n").unwrap();
    fs::set_permissions(here.join("repo/src/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("src/tool", here.join("repo/link")).unwrap();
    fs::write(here.join("input"), "3").unwrap();

    let script = "cd repo && ./link $(cat ../input) > made && chmod 700 made && cd .. && mkdir out && cp repo/made out";
    let run = ["run", "test", "-f", "repo", "-f", "input", "--collect", "out", "--collect", "repo/link", "-o", "got"];
    let ran = thawctl(&daemon, &[&run[..], &["--", "sh", "-c", script]].concat()).await;
    assert!(ran.status.success() && ran.stdout.is_empty(), "{ran:?}");
    assert_eq!(fs::read_to_string(here.join("got/out/made")).unwrap(), "tool 3\n");
    assert_eq!(fs::metadata(here.join("got/out/made")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_link(here.join("got/repo/link")).unwrap().to_str(), Some("src/tool"));
    assert!(!here.join("got/input").exists());

    // What is in it, and all of what it left.
    let ran =
        thawctl(&daemon, &["run", "test", "-f", "repo/", "-o", "all", "--", "sh", "-c", "src/tool 4 > made; pwd"])
            .await;
    assert_eq!((ran.status.code(), text(&ran.stdout)), (Some(0), "/workspace\n"), "{ran:?}");
    assert_eq!(fs::read_to_string(here.join("all/made")).unwrap(), "tool 4\n");
    assert!(here.join("all/src/tool").exists());

    // Later, by its id.
    let id = daemon.client.executions().await.unwrap().pop().unwrap().id;
    let listed = thawctl(&daemon, &["files", &id]).await;
    let listed = text(&listed.stdout);
    assert!(
        listed.lines().any(|line| line.split_whitespace().eq(["700", "file", "7", "B", "out/made"]))
            && listed.contains("repo/link -> src/tool"),
        "{listed}"
    );
    let json = thawctl(&daemon, &["files", &id, "--format", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[1]["path"], "out/made", "{json}");
    assert_eq!(text(&thawctl(&daemon, &["files", &id, "out/made"]).await.stdout), "tool 3\n");
    let fetched = thawctl(&daemon, &["files", &id, "-o", "later"]).await;
    assert!(fetched.status.success(), "{fetched:?}");
    assert_eq!(fs::read_to_string(here.join("later/out/made")).unwrap(), "tool 3\n");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_missing_is_said_and_the_rest_is_written() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    fs::create_dir_all(daemon.path("here")).unwrap();
    let run = ["run", "test", "--collect", "a", "--collect", "missing", "-o", "got", "--", "sh", "-c", "echo a > a"];
    let ran = thawctl(&daemon, &run).await;
    assert_eq!(ran.status.code(), Some(125), "{ran:?}");
    assert_eq!(text(&ran.stderr), "thawctl: missing was not collected: it is not there\n");
    assert_eq!(fs::read_to_string(daemon.path("here/got/a")).unwrap(), "a\n");
    for (arguments, words) in [
        (&["run", "test", "-f", "nothing", "--", "true"][..], "nothing"),
        (&["run", "test", "--collect", "/etc/passwd", "--", "true"], "not below /workspace"),
        (&["files", "e-none"], "e-none"),
    ] {
        let ran = thawctl(&daemon, arguments).await;
        assert_eq!(ran.status.code(), Some(125), "{ran:?}");
        assert!(text(&ran.stderr).contains(words), "{ran:?}");
    }
    daemon.stop().await;
}
