//! Does the daemon answer?

use std::io::ErrorKind;

use super::{Check, Status, provider};
use thaw_client::client::{Client, ClientError};

/// Checks that the daemon's socket can be reached, that the daemon is alive, and that it can serve executions.
pub async fn daemon(client: &Client) -> Vec<Check> {
    let socket = client.socket().display().to_string();
    let health = client.healthz().await;
    if let Err(ClientError::Connect { source, .. }) = &health {
        let (status, fix) = match source.kind() {
            // Before the first start there is no socket; the rest of the host can be checked all the same.
            ErrorKind::NotFound => (Status::Warn, "Start thawd, or name its socket with --socket or THAWD_SOCKET."),
            ErrorKind::PermissionDenied => {
                (Status::Fail, "Run this as root, or add your user to the group thawd and log in again.")
            }
            _ => (Status::Fail, "Start thawd: nothing listens on its socket any more."),
        };
        return vec![Check::new("daemon socket", status, format!("{socket}: {source}"), fix)];
    }
    let mut checks = vec![
        Check::new("daemon socket", Status::Ok, socket, "Start thawd."),
        answer("daemon health", &health, Status::Fail, "Restart thawd, and read its log for the reason."),
        answer("daemon ready", &client.readyz().await, Status::Warn, "Wait for the pools, or read thawd's log."),
    ];
    if health.is_ok() {
        checks.extend(provider::checks(client).await);
    }
    checks
}

fn answer(name: &str, result: &Result<(), ClientError>, bad: Status, fix: &str) -> Check {
    match result {
        Ok(()) => Check::new(name, Status::Ok, "yes", fix),
        Err(error) => Check::new(name, bad, error.to_string(), fix),
    }
}
