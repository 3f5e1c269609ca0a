//! `thawctl`'s lists, logs, cancel, inspect and doctor, the real program, against a server that speaks the API.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod fake;

use fake::{Fake, Script, started, success};
use serde_json::{Value, json};
use tokio::process::Command;

/// Exit code, stdout and stderr.
async fn thawctl(fake: &Fake, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawctl"));
    let done = command.args(args).env("THAWD_SOCKET", &fake.socket).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

/// The words of each line; two words stay one where a single blank is between them.
fn cells(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_shows_what_runs_and_with_a_what_ended_newest_first() {
    let fake = Fake::start(Script::default());
    let (code, table, _) = thawctl(&fake, &["ps"]).await;
    let rows = cells(&table);
    assert_eq!((code, rows.len()), (0, 2), "{table}");
    assert_eq!(rows[0], ["EXECUTION", "PROVIDER", "USER", "STATE", "PATH", "STARTED", "NAME", "COMMAND"]);
    assert_eq!(rows[1][..5], ["e-1", "openai", "u1", "running", "warm"]);
    assert_eq!(rows[1][7], "sleep 9");

    assert_eq!(thawctl(&fake, &["ps", "-q"]).await.1, "e-1\n");
    assert_eq!(thawctl(&fake, &["ps", "-aq"]).await.1, "e-1\ne-0\n");
    assert!(thawctl(&fake, &["ps", "-a"]).await.1.contains("exited (3)"));
    assert_eq!(thawctl(&fake, &["ps", "-q", "--last", "1"]).await.1, "e-1\n");
    let items: Value = serde_json::from_str(&thawctl(&fake, &["ps", "--format", "json"]).await.1).unwrap();
    assert_eq!(items.as_array().unwrap().len(), 1);
    assert_eq!(items[0]["new_field"], "kept", "JSON is what the API said");
    let lines = thawctl(&fake, &["ps", "-a", "--format", "jsonl"]).await.1;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["id"], &lines[1]["id"]), (&"e-1".into(), &"e-0".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_chosen_and_rows_filtered_as_docker_does_it() {
    let fake = Fake::start(Script::default());
    let printed = |args: &'static [&'static str]| {
        let fake = &fake;
        async move { thawctl(fake, args).await }
    };
    assert_eq!(
        printed(&["ps", "-a", "--format", "{{.ID}} {{.State}} [{{.Exit.Code}}]"]).await.1,
        "e-1 running []\ne-0 exited [3]\n"
    );
    assert_eq!(printed(&["ps", "--format", "{{json .Labels}}"]).await.1, "{\"name\":\"mine\"}\n");
    assert_eq!(printed(&["ps", "-q", "--filter", "status=exited"]).await.1, "e-0\n", "whoever asks for it sees it");
    assert_eq!(printed(&["ps", "-aq", "--filter", "label=name=mine"]).await.1, "e-1\n");
    assert_eq!(printed(&["containers", "-q", "-f", "state=warm"]).await.1, "c-2\n");
    assert_eq!(printed(&["providers", "--format", "{{.Name}}"]).await.1, "openai\n");
    for (args, word) in [
        (&["ps", "--format", "{{.Names}}"][..], "`.Names`"),
        (&["ps", "--filter", "ancestor=x"], "`.ancestor`"),
        (&["ps", "--format", "wide"], "jsonl"),
        (&["run", "openai", "hi", "--format", "{{.ID}}"], "no items for a template"),
    ] {
        let (code, stdout, stderr) = thawctl(&fake, args).await;
        assert_eq!((code, stdout.as_str()), (125, ""), "{args:?}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_fit_the_width_that_there_is() {
    let fake = Fake::start(Script::default());
    for list in [&["ps", "-a"][..], &["pools"], &["containers"], &["providers"], &["images"], &["doctor"]] {
        for columns in ["80", "40"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_thawctl"));
            let done = command.args(list).env("THAWD_SOCKET", &fake.socket).env("COLUMNS", columns).output();
            let text = String::from_utf8(done.await.unwrap().stdout).unwrap();
            assert!(text.lines().count() > 1, "{text}");
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= columns.parse().unwrap(), "{list:?} needs {widest} of {columns}:\n{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_or_the_beginning_of_an_id_will_do() {
    let fake = Fake::start(Script { events: vec![started(), success()], ..Script::default() });
    for typed in ["e-1", "1", "mine"] {
        let (code, stdout, stderr) = thawctl(&fake, &["inspect", typed, "--format", "{{.ID}}"]).await;
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "e-1\n", ""), "{typed}");
    }
    let (code, _, stderr) = thawctl(&fake, &["logs", "e-"]).await;
    assert_eq!(code, 125);
    assert!(stderr.contains("fits 2 executions: e-1, e-0"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_prints_exit_codes_and_passes_one_on_when_asked() {
    let events = vec![started(), ("exit", fake::exit(json!({ "code": 7 })))];
    let fake = Fake::start(Script { events, ..Script::default() });
    assert_eq!(thawctl(&fake, &["wait", "e-1", "e-0"]).await, (0, "7\n3\n".into(), String::new()));
    assert_eq!(thawctl(&fake, &["wait", "--exit-code", "e-1"]).await.0, 7);
    let (code, _, stderr) = thawctl(&fake, &["logs", "-f", "--exit-code", "e-1"]).await;
    assert_eq!((code, stderr.as_str()), (7, "thawctl: the command failed with exit code 7\n"));
    assert_eq!(thawctl(&fake, &["attach", "e-1"]).await.0, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_deletes_what_ended() {
    let fake = Fake::start(Script::default());
    assert_eq!(thawctl(&fake, &["rm", "e-0"]).await, (0, "e-0\n".into(), String::new()));
    assert_eq!(fake.seen().last().unwrap().what, "DELETE /v1/executions/e-0");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_have_their_time_and_begin_at_one() {
    let out = |text: &str, at: &str| ("stdout", json!({ "data": text, "at": at }));
    let (early, late) = ("2020-01-01T00:00:00.000Z", "2090-01-01T00:00:00.000Z");
    let events = vec![started(), out("a\nb", early), out("c\nd\n", late), success()];
    let fake = Fake::start(Script { events, ..Script::default() });
    assert_eq!(thawctl(&fake, &["logs", "-t", "e-1"]).await.1, format!("{early} a\n{early} bc\n{late} d\n"));
    for since in ["10m", "2030-01-01T00:00:00Z"] {
        assert_eq!(thawctl(&fake, &["logs", "--since", since, "e-1"]).await.1, "c\nd\n", "{since}");
    }
    let (code, _, stderr) = thawctl(&fake, &["logs", "--since", "yesterday", "e-1"]).await;
    assert_eq!(code, 125);
    assert!(stderr.contains("10m"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_output_is_cut_out_of_it() {
    let out = |text: &str| ("stdout", json!({ "data": text }));
    let events = vec![started(), out("a\nb"), out("b\nc\n"), success()];
    let fake = Fake::start(Script { events, ..Script::default() });
    assert_eq!(thawctl(&fake, &["logs", "--tail", "2", "e-1"]).await.1, "bb\nc\n");
    assert_eq!(thawctl(&fake, &["logs", "-f", "-n", "1", "e-1"]).await.1, "c\n");
    assert_eq!(thawctl(&fake, &["logs", "--tail", "all", "e-1"]).await.1, "a\nbb\nc\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_says_where_and_as_whom() {
    let fake = Fake::start(Script { events: vec![started(), success()], ..Script::default() });
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join("thawd")).unwrap();
    let key = home.path().join("auth");
    std::fs::write(&key, "secret").unwrap();
    let text = format!(
        "[work]\nsocket = {:?}\nuser = 'w'\nprovider = 'openai'\n[work.credential_files.openai]\n'auth.json' = {key:?}\n",
        fake.socket
    );
    std::fs::write(home.path().join("thawd/profiles.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawctl"));
    command.args(["--profile", "work", "run", "3*67"]).env("XDG_CONFIG_HOME", home.path()).env_remove("THAWD_SOCKET");
    let done = command.stdin(std::process::Stdio::null()).output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let body = &fake.seen()[0].body;
    assert_eq!((&body["provider"], &body["user"], &body["prompt"]), (&"openai".into(), &"w".into(), &"3*67".into()));
    assert_eq!(body["credentials"]["files"]["auth.json"], "secret");
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawctl"));
    let done = command.args(["--profile", "play", "ps"]).env("XDG_CONFIG_HOME", home.path()).output().await.unwrap();
    assert!(String::from_utf8_lossy(&done.stderr).contains("there is no profile [play]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_completes_with_what_the_daemon_has() {
    let fake = Fake::start(Script::default());
    for (shell, word) in [("bash", "COMPREPLY"), ("zsh", "#compdef"), ("fish", "complete")] {
        let (code, script, _) = thawctl(&fake, &["completion", shell]).await;
        assert_eq!(code, 0);
        assert!(script.contains(word) && script.contains("THAWCTL_COMPLETE"), "{script}");
    }
    let (_, script, _) = thawctl(&fake, &["completion", "bash"]).await;
    for (line, expected) in [
        ("thawctl run o", "openai"),
        ("thawctl cancel e", "e-1"),
        ("thawctl logs m", "mine"),
        ("thawctl run --image o", "openai"),
        ("thawctl comp", "completion"),
        ("thawctl cancel --user u", "u1"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let asked = format!(
            "{script}\nCOMP_WORDS=({line}); COMP_CWORD={}; COMP_TYPE=9; _clap_complete_thawctl thawctl; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_thawctl")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &asked]).env("PATH", path).env("THAWD_SOCKET", &fake.socket);
        let done = bash.output().await.unwrap();
        let found = String::from_utf8_lossy(&done.stdout);
        assert!(
            found.lines().any(|word| word.trim() == expected),
            "{line}: {found}{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_is_the_daemon_at_a_glance() {
    let fake = Fake::start(Script::default());
    let (code, text, stderr) = thawctl(&fake, &["info"]).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(text.contains("1 running, 0 queued, 1 ended") && text.contains("2, 1 of 2 warm"), "{text}");
    let items: Value = serde_json::from_str(&thawctl(&fake, &["info", "--format", "json"]).await.1).unwrap();
    assert_eq!(items[0]["providers_ready"], json!(["openai"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_list_has_a_table_and_json() {
    let fake = Fake::start(Script::default());
    let table = [
        ("pools", "no space", "last_error"),
        ("containers", "1.5 MiB", "memory_bytes"),
        ("providers", "OPENAI_API_KEY", "credential_env"),
        ("images", "0123456789ab", "digest"),
    ];
    for (list, cell, key) in table {
        let (code, text, stderr) = thawctl(&fake, &[list]).await;
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(cells(&text)[1].contains(&cell), "{text}");
        let items: Value = serde_json::from_str(&thawctl(&fake, &[list, "--format", "json"]).await.1).unwrap();
        assert!(items[0].get(key).is_some(), "{items}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_stop_at_the_present_or_follow_to_the_end() {
    let events = vec![started(), ("stdout", json!({ "data": "a\n" })), ("stdout", json!({ "data": "b\n" })), success()];
    let fake = Fake::start(Script { events, wait_for_cancel: true, ..Script::default() });
    assert_eq!(thawctl(&fake, &["logs", "e-1"]).await, (0, "a\nb\n".into(), String::new()));
    assert_eq!(thawctl(&fake, &["logs", "e-1", "--after", "2"]).await.1, "b\n");
    let (followed, cancelled) = tokio::join!(thawctl(&fake, &["logs", "-f", "e-1"]), async {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        thawctl(&fake, &["cancel", "e-1"]).await
    });
    assert_eq!(followed, (0, "a\nb\n".into(), String::new()));
    assert_eq!(cancelled, (0, "e-1\n".into(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_goes_on_after_an_error_and_says_so() {
    let fake = Fake::start(Script::default());
    let (code, stdout, stderr) = thawctl(&fake, &["cancel", "e-9", "../x", "e-1"]).await;
    assert_eq!((code, stdout.as_str()), (125, "e-1\n"));
    assert!(stderr.contains("there is no execution \"e-9\""), "{stderr}");
    assert!(stderr.contains("is no execution id"), "{stderr}");
    let (code, stdout, stderr) = thawctl(&fake, &["kill", "e-0"]).await;
    assert_eq!((code, stdout.as_str()), (0, ""), "nothing was ended");
    assert!(stderr.contains("e-0 had ended before: exited (3)"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_takes_all_or_those_of_a_user_or_with_a_label() {
    for args in [
        &["cancel", "--all"][..],
        &["stop", "--user", "u1"],
        &["kill", "--label", "name"],
        &["stop", "-l", "name=mine"],
    ] {
        let fake = Fake::start(Script::default());
        assert_eq!(thawctl(&fake, args).await, (0, "e-1\n".into(), String::new()), "{args:?}");
    }
    let fake = Fake::start(Script::default());
    let (code, stdout, stderr) = thawctl(&fake, &["cancel", "--user", "nobody"]).await;
    assert_eq!((code, stdout.as_str()), (0, ""));
    assert!(stderr.contains("nothing runs that fits"), "{stderr}");
    assert_eq!(thawctl(&fake, &["cancel"]).await.0, 125, "all are ended when that is said, and only then");
    assert_eq!(thawctl(&fake, &["cancel", "--all", "e-1"]).await.0, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_prints_all_that_the_api_says() {
    let fake = Fake::start(Script::default());
    let (code, stdout, _) = thawctl(&fake, &["inspect", "e-1"]).await;
    let items: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &items[0]["id"], &items[0]["new_field"]), (0, &"e-1".into(), &"kept".into()));
    assert_eq!(thawctl(&fake, &["inspect", "e-9"]).await.0, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_the_daemon_too() {
    let fake = Fake::start(Script::default());
    let (code, stdout, _) = thawctl(&fake, &["doctor", "--format", "json"]).await;
    let checks: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let status = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["status"].clone();
    assert_eq!(
        (status("daemon socket"), status("daemon health"), status("daemon ready")),
        ("ok".into(), "ok".into(), "warn".into())
    );
    assert_eq!(code, i32::from(checks.iter().any(|check| check["status"] == "fail")));

    let dir = tempfile::tempdir().unwrap();
    let deserted = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&deserted).unwrap());
    let (code, stdout, _) = thawctl(&fake, &["doctor", "--socket", deserted.to_str().unwrap()]).await;
    assert_eq!(code, 1);
    assert!(cells(&stdout).iter().any(|row| row[0] == "fail" && row[1] == "daemon socket"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_build_makes_a_layout_and_needs_no_daemon() {
    let fake = Fake::start(Script::default());
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (layout, cache) = (folder("layouts/test"), folder("cache"));
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/test");
    let args = ["image", "build", manifest, "--output", &layout, "--cache", &cache, "--socket", "/nonexistent/s"];
    let (code, stdout, stderr) = thawctl(&fake, &args).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("test sha256:") && stdout.contains(&layout), "{stdout}");
    assert!(std::path::Path::new(&layout).join("index.json").is_file());
    let (_, again, _) = thawctl(&fake, &args).await;
    assert!(again.ends_with("unchanged\n"), "{again}");

    let (code, _, stderr) = thawctl(&fake, &["image", "build", "/nonexistent/images/x"]).await;
    assert_eq!((code, stderr.lines().count()), (125, 1), "{stderr}");
}
