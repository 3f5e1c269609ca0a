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
async fn ps_shows_what_runs_and_what_waits_frozen() {
    let fake = Fake::start(Script::default());
    let (code, table, _) = thawctl(&fake, &["ps"]).await;
    let rows = cells(&table);
    assert_eq!((code, rows.len()), (0, 3), "{table}");
    assert_eq!(rows[0], ["EXECUTION", "CONTAINER", "PROVIDER", "USER", "STATE", "PATH", "AGE"]);
    assert_eq!(rows[1][..6], ["e-1", "c-1", "openai", "u1", "running", "warm"]);
    assert_eq!(rows[2][..5], ["-", "c-2", "openai", "-", "warm, frozen"]);

    assert_eq!(thawctl(&fake, &["ps", "-q"]).await.1, "e-1\n");
    assert_eq!(thawctl(&fake, &["ps", "-aq"]).await.1, "e-1\ne-0\n");
    assert!(thawctl(&fake, &["ps", "-a"]).await.1.contains("exited (3)"));
    let items: Value = serde_json::from_str(&thawctl(&fake, &["ps", "--format", "json"]).await.1).unwrap();
    assert_eq!(items.as_array().unwrap().len(), 1);
    assert_eq!(items[0]["new_field"], "kept", "JSON is what the API said");
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
    assert_eq!(thawctl(&fake, &["logs", "e-1", "--since", "2"]).await.1, "b\n");
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
    assert!(stderr.contains("e-9: no execution e-9 (execution_not_found)"), "{stderr}");
    assert!(stderr.contains("is no execution id"), "{stderr}");
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
