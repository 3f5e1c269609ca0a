//! Sandboxes: containers of users that live on between commands, freeze when they are idle, and survive the daemon.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../survival/strict.rs"]
mod strict;

mod commands;
mod files;
mod kills;
mod prompts;
mod random;
mod resource;
mod states;
mod stdin;
mod steps;
mod stopped;
mod storage;
mod storage_kills;
mod survive;

use thaw_client::client::ClientError;
use thaw_client::types::{ExecutionRequest, Problem, Sandbox, SandboxFilter, SandboxRequest, SandboxState};

use support::{Daemon, Outcome, Setup, eventually, shell};

/// A daemon with room, whose sandboxes are not frozen by idleness unless a test wants it.
fn usual(setup: Setup) -> Setup {
    // Scratch space may be a tmpfs of less than the usual reserve.
    let setup = setup.set("storage.reserve_bytes", 16 << 20);
    setup.pool(2).set("sandbox.freeze_after_seconds", 3600).set("sandbox.max_per_user", 8)
}

/// A request of the user `u1` for a sandbox of the provider `test`.
fn wanted(json: &str) -> SandboxRequest {
    let mut request: serde_json::Value = serde_json::from_str(json).unwrap();
    request["user"] = "u1".into();
    request["template"] = "test".into();
    serde_json::from_value(request).unwrap()
}

async fn created(daemon: &Daemon, json: &str) -> Sandbox {
    daemon.client.create_sandbox(&wanted(json), None).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A shell script in a sandbox.
fn inside(sandbox: &Sandbox, script: &str) -> ExecutionRequest {
    let provider = String::new();
    ExecutionRequest { provider, sandbox: Some(sandbox.id.clone()), user: sandbox.user.clone(), ..shell(script) }
}

async fn run(daemon: &Daemon, sandbox: &Sandbox, script: &str) -> Outcome {
    daemon.run(&inside(sandbox, script)).await
}

async fn now(daemon: &Daemon, sandbox: &Sandbox) -> Sandbox {
    daemon.client.sandbox(&sandbox.id).await.unwrap()
}

async fn becomes(daemon: &Daemon, sandbox: &Sandbox, state: SandboxState) -> Sandbox {
    eventually(&format!("{} is {}", sandbox.id, state.name()), || async {
        let now = now(daemon, sandbox).await;
        (now.state == state).then_some(now)
    })
    .await
}

async fn all(daemon: &Daemon) -> Vec<Sandbox> {
    daemon.client.sandboxes_where(&SandboxFilter::default()).await.unwrap().items
}

fn problem<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Problem {
    match result.unwrap_err() {
        ClientError::Problem(problem) => *problem,
        other => panic!("{other}"),
    }
}
