//! The description of the API is of use to tools that nobody here wrote: a validator takes it, generators make clients of
//! it that compile strictly and work on a daemon, and schemathesis finds no answer that it does not have. And what reads
//! event streams as a browser does can read ours.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::{Daemon, shell};
use thaw_client::types::Sandbox;
use tokio::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a program in `folder`, and asserts that it succeeds; returns what it wrote.
async fn run(folder: &Path, program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let path = format!("{}:{}", folder_of_tools().join("python/bin").display(), std::env::var("PATH").unwrap());
    let done = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{} {arguments:?}: {}\n{stdout}\n{stderr}", program.display(), done.status);
    stdout.into_owned()
}

fn folder_of_tools() -> PathBuf {
    Path::new(ROOT).join("target/clients")
}

/// Installs what is missing of the tools, and gives an empty folder to work in.
async fn tools() -> (PathBuf, tempfile::TempDir) {
    let done = Command::new(Path::new(ROOT).join("tests/clients/tools")).output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    (folder_of_tools(), tempfile::tempdir_in(folder_of_tools()).unwrap())
}

fn source(name: &str) -> String {
    Path::new(ROOT).join("tests/clients").join(name).to_str().unwrap().to_owned()
}

fn description() -> String {
    Path::new(ROOT).join("docs/openapi.json").to_str().unwrap().to_owned()
}

async fn daemon() -> Daemon {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    daemon.settled().await;
    daemon
}

#[tokio::test]
async fn a_validator_finds_nothing_wrong() {
    let (tools, work) = tools().await;
    run(work.path(), tools.join("python/bin/openapi-spec-validator"), &[&description()]).await;
    // And it does find something: an operation id that is there twice.
    let text = std::fs::read_to_string(description()).unwrap();
    let wrong = work.path().join("wrong.json");
    std::fs::write(&wrong, text.replace("\"operationId\": \"listPools\"", "\"operationId\": \"listImages\"")).unwrap();
    let found = Command::new(tools.join("python/bin/openapi-spec-validator")).arg(&wrong).output().await.unwrap();
    assert!(!found.status.success());
}

#[tokio::test]
async fn a_client_in_python_is_made_checked_strictly_and_used() {
    let (tools, work) = tools().await;
    let python = tools.join("python/bin");
    let folder = work.path();
    for name in ["client.py", "mypy.ini", "openapi-python-client.yml"] {
        std::fs::copy(source(name), folder.join(name)).unwrap();
    }
    let config = ["--config", "openapi-python-client.yml", "--fail-on-warning"];
    let generate = ["generate", "--path", &description(), "--output-path", "thawd_client", "--meta", "none"];
    run(folder, python.join("openapi-python-client"), &[&generate[..], &config].concat()).await;
    run(folder, python.join("mypy"), &["thawd_client", "client.py"]).await;
    let daemon = daemon().await;
    let said = run(folder, python.join("python"), &["client.py", daemon.socket().to_str().unwrap()]).await;
    assert_eq!(said, "python: all as described\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_in_typescript_is_made_compiled_strictly_and_used() {
    let (tools, work) = tools().await;
    let folder = work.path();
    std::os::unix::fs::symlink(tools.join("node/node_modules"), folder.join("node_modules")).unwrap();
    for name in ["client.ts", "tsconfig.json", "package.json"] {
        std::fs::copy(source(name), folder.join(name)).unwrap();
    }
    run(folder, "node_modules/.bin/openapi-typescript", &[&description(), "--output", "schema.d.ts"]).await;
    run(folder, "node_modules/.bin/tsc", &["--project", "."]).await;
    let daemon = daemon().await;
    let said = run(folder, "node", &["built/client.js", daemon.socket().to_str().unwrap()]).await;
    assert_eq!(said, "typescript: all as described\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_event_source_follows_a_stream_over_a_break_and_stops_at_its_end() {
    let (tools, work) = tools().await;
    let folder = work.path();
    std::os::unix::fs::symlink(tools.join("node/node_modules"), folder.join("node_modules")).unwrap();
    std::fs::copy(source("events.mjs"), folder.join("events.mjs")).unwrap();
    let daemon = daemon().await;
    let id = daemon.client.create(&shell("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.3; done")).await.unwrap().id;
    let said = run(folder, "node", &["events.mjs", daemon.socket().to_str().unwrap(), &id]).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    let seen = said["seen"].as_array().unwrap();
    let ids: Vec<_> = seen.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "each event once, in order: {said}");
    assert_eq!((&seen[0]["name"], &seen.last().unwrap()["name"]), (&"started".into(), &"exit".into()));
    let text: String = seen.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(text, (1..=6).map(|i| format!("line {i}\n")).collect::<String>());
    // The stream, its continuation, and the 204 that ends it.
    assert_eq!(said["requests"], 3, "{said}");
    daemon.settled().await;
    daemon.stop().await;
}

/// Tries what its schemas allow and forbid; THAWD_SCHEMATHESIS_EXAMPLES sets how much (`make schemathesis`).
#[tokio::test]
async fn schemathesis_finds_no_answer_that_is_not_described() {
    let (tools, work) = tools().await;
    let daemon = Daemon::start(|setup| {
        setup.pool(2).set("container.max", 40).set("execution.max_timeout_ms", 20_000).set("queue.timeout_ms", 20_000)
    })
    .await;
    daemon.settled().await;
    // It speaks TCP only.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut bridge = Command::new("socat")
        .arg(format!("TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"))
        .arg(format!("UNIX-CONNECT:{}", daemon.socket().display()))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let examples = std::env::var("THAWD_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "15".to_owned());
    for name in ["schemathesis.toml", "hooks.py"] {
        std::fs::copy(source(name), work.path().join(name)).unwrap();
    }
    let url = format!("http://127.0.0.1:{port}");
    let arguments = ["run", &description(), "--url", &url, "--max-examples", &examples, "--seed", "7"];
    run(work.path(), tools.join("python/bin/schemathesis"), &arguments).await;
    bridge.kill().await.unwrap();
    // Whatever it has started ends by itself.
    for execution in daemon.client.executions().await.unwrap() {
        if execution.exit.is_none() {
            daemon.client.cancel(&execution.id).await.unwrap();
        }
    }
    let all = Default::default();
    for sandbox in daemon.client.sandboxes_where::<Sandbox>(&all).await.unwrap().items {
        daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    }
    daemon.settled().await;
    daemon.stop().await;
}
