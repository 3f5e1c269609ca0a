//! What an operator does: keys, backups, and what the daemon says when something is missing.

use std::process::{Command, Output};

use rustix::process::Signal;
use thaw_client::types::{Credential, UserKey, Vault};

use super::{MARKER, init, prepare, put, request, shown, with_vault};
use crate::support::{Daemon, programs, shell};

fn thawd(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawd"));
    command.arg("--config").arg(daemon.path("thawd.toml")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn found(daemon: &Daemon) -> String {
    daemon.sh("cat ~/.test/token").await.exited(0).text().to_owned()
}

#[tokio::test]
async fn a_new_master_key_is_taken_over_while_the_daemon_runs() {
    let mut daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", MARKER).await;
    let key = daemon.path("vault.key");
    let old = std::fs::read_to_string(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let said = init(&daemon);
    assert!(said.contains("back it up apart from the database"), "{said}");
    // Without the old one nothing could be read any more.
    let problem = request(&daemon, "POST /v1/vault/rotate-key", "").await.problem();
    assert_eq!((problem.code.as_str(), problem.status), ("master_key", 409), "{}", problem.detail);
    assert_eq!(found(&daemon).await, MARKER);
    let new = std::fs::read_to_string(&key).unwrap();
    std::fs::write(&key, format!("{new}{old}")).unwrap();
    let vault: Vault = daemon.client.rotate_master_key().await.unwrap();
    assert!(said.contains(&vault.master_key) && vault.users_under_other_master_keys == 0);
    assert_eq!(found(&daemon).await, MARKER);
    let user: UserKey = daemon.client.rotate_user_key("u1").await.unwrap();
    assert_eq!(user.credentials, 1);
    assert_eq!(found(&daemon).await, MARKER);
    // The old one can go.
    std::fs::write(&key, new).unwrap();
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    daemon.launch().await;
    assert_eq!(found(&daemon).await, MARKER);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_without_the_key_refuses_to_start_and_says_why() {
    let mut daemon = prepare(|setup| setup);
    let key = daemon.path("vault.key");
    daemon.launch().await;
    put(&daemon, "u1", MARKER).await;
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    let right = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    assert!(daemon.refused().await.contains("cannot read the master key"));
    init(&daemon);
    assert!(daemon.refused().await.contains("1 users' keys are wrapped with the master key"));
    std::fs::write(&key, right).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(daemon.refused().await.contains("chmod 600"));
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    daemon.launch().await;
    assert_eq!(found(&daemon).await, MARKER);
    daemon.stop().await;
}

#[tokio::test]
async fn systemd_hands_the_key_over_or_a_command_prints_it() {
    let mut daemon = Daemon::prepare(|setup| setup);
    init(&daemon);
    // As systemd lays out what LoadCredential= names.
    let folder = daemon.path("credentials");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(daemon.path("vault.key"), folder.join("thawd.vault-key")).unwrap();
    daemon.spawn(&[("CREDENTIALS_DIRECTORY", folder.to_str().unwrap())]);
    daemon.ready().await;
    put(&daemon, "u1", MARKER).await;
    daemon.signal(Signal::TERM);
    daemon.ended().await;

    let file = daemon.path("thawd.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let key = daemon.path("vault.key");
    let command = format!("\n[vault]\nkey_command = [\"/bin/cat\", {:?}]\n", key.to_str().unwrap());
    std::fs::write(&file, config + &command).unwrap();
    daemon.launch().await;
    assert_eq!(found(&daemon).await, MARKER);
    daemon.stop().await;
}

#[tokio::test]
async fn a_backup_brings_back_what_was_there() {
    let mut daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", "before").await;
    let copy = daemon.path("copy.db");
    let copy = copy.to_str().unwrap();
    let made = thawd(&daemon, &["store", "backup", copy]);
    assert!(made.status.success(), "{}", text(&made));
    assert!(text(&thawd(&daemon, &["store", "backup", copy])).contains("exists already"));
    assert!(text(&thawd(&daemon, &["store", "check"])).contains("ok: schema version 5, 1 users, 1 credentials"));
    put(&daemon, "u1", "after").await;
    put(&daemon, "u2", "after").await;
    assert!(text(&thawd(&daemon, &["store", "restore", copy])).contains("paths.state_dir"), "it runs");
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    let restored = thawd(&daemon, &["store", "restore", copy]);
    assert!(text(&restored).contains("1 users, 1 credentials"), "{}", text(&restored));
    assert!(daemon.path("state/store.db.before-restore").exists());
    daemon.launch().await;
    assert_eq!(found(&daemon).await, "before");
    assert_eq!(shown(&daemon, "u1").await.version, 1);
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    // Nothing is done with what is none.
    std::fs::write(daemon.path("none.db"), vec![7; 8192]).unwrap();
    let none = daemon.path("none.db");
    assert!(!thawd(&daemon, &["store", "restore", none.to_str().unwrap()]).status.success());
    daemon.launch().await;
    assert_eq!(found(&daemon).await, "before");
    daemon.stop().await;
}

#[tokio::test]
async fn thawctl_stores_lists_and_removes() {
    let daemon = with_vault(|setup| setup).await;
    let file = daemon.path("token");
    std::fs::write(&file, MARKER).unwrap();
    let thawctl = |arguments: &[&str]| {
        let mut command = Command::new(programs::thawctl());
        command.arg("--socket").arg(daemon.socket()).arg("credentials").args(arguments).env("KEY_OF_TEST", MARKER);
        let done = command.env("TEST_TOKEN", MARKER).output().unwrap();
        assert!(!text(&done).contains(MARKER));
        (done.status.code().unwrap(), text(&done))
    };
    let path = file.to_str().unwrap();
    assert_eq!(thawctl(&["put", "test", path, "--user", "u1"]), (0, "stored test for u1: file, valid\n".to_owned()));
    assert_eq!(daemon.run(&shell("cat ~/.test/token")).await.exited(0).text(), MARKER);
    let (code, list) = thawctl(&["ls", "--user", "u1"]);
    assert!(code == 0 && list.contains("PROVIDER") && list.contains("valid"), "{list}");
    let (_, list) = thawctl(&["ls", "--user", "u1", "--format", "json"]);
    let items: Vec<Credential> = serde_json::from_str(&list).unwrap();
    assert_eq!((items.len(), items[0].version), (1, 1));
    assert_eq!(thawctl(&["put", "test", "--credential-env", "TEST_TOKEN", "-u", "u1"]).0, 0);
    assert!(thawctl(&["rotate-key", "-u", "u1"]).1.contains("1 credentials encrypted with the key k-"));
    assert!(thawctl(&["rotate-key", "--master"]).1.contains("1 users' keys are wrapped"));
    let (code, error) = thawctl(&["put", "test", path, path, "-u", "a b"]);
    assert!(code == 125 && error.contains("is no user"), "{error}");
    assert_eq!(thawctl(&["rm", "test", "-u", "u1"]), (0, "removed test of u1\n".to_owned()));
    assert_eq!(thawctl(&["rm", "--all", "-u", "u1"]).0, 0);
    assert_eq!(thawctl(&["rm", "--all", "-u", "u1"]).0, 125);
    daemon.stop().await;
}
