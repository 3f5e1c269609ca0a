//! Credentials that the daemon keeps: through the API, into executions, and back, with the real program.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod ahead;
mod api;
mod audit;
mod auth_server;
mod login;
mod postgres;
mod refused;
mod renewal;
mod used;

use std::collections::BTreeMap;
use std::process::Command;

use support::{Answer, Daemon, Setup};
use thaw_client::types::{Credential, Credentials, Secret};

/// What a test looks for where it must not be.
pub const MARKER: &str = "sk-marker-9c41f7";

/// A daemon with a vault.
pub async fn with_vault(change: impl FnOnce(Setup) -> Setup) -> Daemon {
    let mut daemon = prepare(change);
    daemon.launch().await;
    daemon
}

/// The same, not started; with a master key.
pub fn prepare(change: impl FnOnce(Setup) -> Setup) -> Daemon {
    let daemon = Daemon::prepare(change);
    init(&daemon);
    let file = daemon.path("thawd.toml");
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let vault = config.entry("vault").or_insert_with(|| toml::Table::new().into());
    let key = daemon.path("vault.key").to_str().unwrap().to_owned();
    vault.as_table_mut().unwrap().insert("key_file".to_owned(), key.into());
    std::fs::write(&file, config.to_string()).unwrap();
    daemon
}

/// Makes a master key as an operator does; returns what that says.
pub fn init(daemon: &Daemon) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawd"));
    let done = command.args(["vault", "init", "--key-file"]).arg(daemon.path("vault.key")).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Files of a credential.
pub fn files(name: &str, text: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.files = BTreeMap::from([(name.to_owned(), Secret::new(text.to_owned()))]);
    credentials
}

/// Stores the file `token` of the provider `test`.
pub async fn put(daemon: &Daemon, user: &str, text: &str) -> Credential {
    daemon.client.put_credential(user, "test", &files("token", text)).await.unwrap()
}

/// What is shown of the credential of the provider `test`.
pub async fn shown(daemon: &Daemon, user: &str) -> Credential {
    let answer = request(daemon, &format!("GET /v1/users/{user}/credentials/test"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// A request by hand.
pub async fn request(daemon: &Daemon, request: &str, body: &str) -> Answer {
    daemon.http(request, &[("content-type", "application/json")], body.as_bytes()).await
}
