//! Prompts in a sandbox: the provider's CLI finds what is there, and has its user's credentials for itself alone.

use std::collections::BTreeMap;

use thaw_client::types::{Credentials, ExecutionRequest, ExitReason, Sandbox, SandboxRequest, Secret};

use super::{problem, run, usual};
use crate::support::{Daemon, Outcome, Setup, eventually};

/// A CLI that says what it finds, and does what the prompt says: waits, or changes its login.
pub const PROVIDER: &str = r#"
name = "ask"
image = "test"
home = "/home/runtime"
pool_target = 1
pids_max = 64
egress = []
[command]
argv = ["sh", "-c", '''
prompt=$(cat)
echo "file $(cat ~/.ask/token 2>/dev/null) variable $ASK_KEY before $(cat ~/seen 2>/dev/null)"
echo "$prompt" > ~/seen
echo session > ~/.ask/session
touch /tmp/asked
case $prompt in wait*) while [ ! -e /tmp/end ]; do sleep 0.02; done; echo ended;; esac
''']
dialect = "text"
[models]
default = "m"
allowed = ["m"]
[credentials]
dir = ".ask"
files = ["token"]
env = ["ASK_KEY"]
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 0.5
"#;

fn with_cli(setup: Setup) -> Setup {
    usual(setup).add_provider(PROVIDER)
}

async fn created(daemon: &Daemon) -> Sandbox {
    let request = SandboxRequest {
        user: "u1".to_owned(),
        template: "ask".to_owned(),
        env: [("GIVEN".to_owned(), "by the sandbox".to_owned())].into(),
        ..SandboxRequest::default()
    };
    daemon.client.create_sandbox(&request, None).await.unwrap_or_else(|error| panic!("{error}"))
}

fn named(name: &str, value: &str) -> BTreeMap<String, Secret> {
    [(name.to_owned(), Secret::new(value.to_owned()))].into()
}

pub fn asked(sandbox: &Sandbox, prompt: &str) -> ExecutionRequest {
    let mut credentials = Credentials::default();
    credentials.files = named("token", "hush");
    ExecutionRequest {
        provider: "ask".to_owned(),
        sandbox: Some(sandbox.id.clone()),
        user: sandbox.user.clone(),
        prompt: Some(prompt.to_owned()),
        credentials: Some(credentials),
        ..ExecutionRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_finds_what_was_before_and_its_credentials_are_gone_after_it() {
    let daemon = Daemon::start(with_cli).await;
    let sandbox = created(&daemon).await;
    let first = daemon.run(&asked(&sandbox, "first")).await;
    assert_eq!((first.text(), first.exit.success), ("file hush variable  before \n", true), "{}", first.errors());
    let left = run(&daemon, &sandbox, "ls -A ~/.ask; cat ~/seen; echo $GIVEN").await;
    assert_eq!(left.text(), "session\nfirst\nby the sandbox\n", "what the CLI keeps stays");
    let mut second = asked(&sandbox, "second");
    let mut credentials = Credentials::default();
    credentials.env = named("ASK_KEY", "key");
    second.credentials = Some(credentials);
    assert_eq!(daemon.run(&second).await.text(), "file  variable key before first\n");
    // Something of that name that a command has left is not in the way, and goes too.
    run(&daemon, &sandbox, "echo mine > ~/.ask/token").await;
    assert_eq!(daemon.run(&asked(&sandbox, "third")).await.text(), "file hush variable  before second\n");
    assert_eq!(run(&daemon, &sandbox, "ls -A ~/.ask").await.text(), "session\n");
    let described = daemon.client.execution(&first.started.execution).await.unwrap();
    assert_eq!((described.sandbox.as_ref(), described.model.as_deref()), (Some(&sandbox.id), Some("m")));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_prompt_at_a_time_and_one_that_is_cancelled_leaves_no_credential() {
    let daemon = Daemon::start(with_cli).await;
    let sandbox = created(&daemon).await;
    let waiting = daemon.client.create(&asked(&sandbox, "wait")).await.unwrap();
    let is_there = "while [ ! -e /tmp/asked ]; do sleep 0.02; done; cat ~/.ask/token";
    assert_eq!(run(&daemon, &sandbox, is_there).await.text(), "hush");
    let refused = problem(daemon.client.create(&asked(&sandbox, "second")).await);
    assert_eq!((refused.status, &*refused.code), (409, "sandbox_prompting"));
    daemon.client.cancel(&waiting.id).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&waiting.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Cancelled);
    assert_eq!(run(&daemon, &sandbox, "ls -A ~/.ask").await.text(), "session\n");
    let next =
        eventually("it is its turn", || async { daemon.client.create(&asked(&sandbox, "third")).await.ok() }).await;
    assert!(Outcome::of(daemon.client.events(&next.id, None).await.unwrap()).await.exit.success);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_goes_on_with_a_prompt_and_takes_its_credentials_away() {
    let mut daemon = Daemon::start(with_cli).await;
    let sandbox = created(&daemon).await;
    let waiting = daemon.client.create(&asked(&sandbox, "wait")).await.unwrap();
    run(&daemon, &sandbox, "while [ ! -e /tmp/asked ]; do sleep 0.02; done").await;
    daemon.kill();
    daemon.launch().await;
    assert_eq!(run(&daemon, &sandbox, "cat ~/.ask/token").await.text(), "hush", "it may need it yet");
    let refused = problem(daemon.client.create(&asked(&sandbox, "second")).await);
    assert_eq!(refused.code, "sandbox_prompting");
    run(&daemon, &sandbox, "touch /tmp/end").await;
    let outcome = Outcome::of(daemon.client.events(&waiting.id, None).await.unwrap()).await;
    assert_eq!((outcome.text(), outcome.exit.success), ("file hush variable  before \nended\n", true));
    assert_eq!(run(&daemon, &sandbox, "ls -A ~/.ask").await.text(), "session\n");
    daemon.stop().await;
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn dying_before_the_end_of_a_prompt_leaves_no_credential() {
    let mut daemon = Daemon::prepare(with_cli);
    for step in ["inside.kept", "inside.submitted", "run.started", "end.seen", "end.brought_back", "end.written"] {
        daemon.spawn(&[]);
        daemon.ready().await;
        let sandbox = created(&daemon).await;
        daemon.kill();
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        let client = daemon.client.clone();
        let request = asked(&sandbox, "short");
        let asks = tokio::spawn(async move { client.create(&request).await });
        let status = tokio::time::timeout(crate::support::PATIENCE, daemon.ended()).await;
        assert!(!status.unwrap_or_else(|_| panic!("{step} is never reached")).success(), "{step}");
        asks.abort();
        daemon.launch().await;
        eventually(&format!("{step}: it has ended"), || async {
            let executions = daemon.client.executions().await.unwrap();
            executions.iter().all(|one| one.exit.is_some()).then_some(())
        })
        .await;
        let left = run(&daemon, &sandbox, "ls ~/.ask/token; true").await;
        assert_eq!(left.text(), "", "{step}");
        assert!(daemon.run(&asked(&sandbox, "again")).await.exit.success, "{step}");
        daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
        daemon.kill();
    }
    daemon.launch().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_prompt_in_a_sandbox_cannot_be_is_refused_with_a_sentence() {
    let daemon = Daemon::start(with_cli).await;
    let sandbox = created(&daemon).await;
    for (fields, code, about) in [
        (r#""prompt":"hi""#, "invalid_field", "`provider`"),
        (r#""prompt":"hi","provider":"test""#, "invalid_field", "\"ask\""),
        (r#""prompt":"hi","provider":"ask""#, "missing_credentials", "credential"),
        (r#""prompt":"hi","provider":"ask","command":["x"]"#, "prompt_or_command", "`prompt`"),
        (r#""prompt":"hi","provider":"ask","stdin":"x""#, "only_with_command", "`stdin`"),
        (
            r#""prompt":"hi","provider":"ask","model":"x","credentials":{"env":{"ASK_KEY":"k"}}"#,
            "unknown_model",
            "\"x\"",
        ),
        (r#""prompt":"hi","provider":"ask","files":{"a":"b"}"#, "not_with_sandbox", "`files`"),
        (r#""prompt":"hi","provider":"ask","credentials":{"files":{"x":"y"}}"#, "invalid_credentials", "\"x\""),
    ] {
        let body = format!(r#"{{"sandbox":"{}","user":"u1",{fields}}}"#, sandbox.id);
        let answer = daemon.http("POST /v1/executions", &[], body.as_bytes()).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (400, code), "{fields}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap().contains(about), "{fields}: {}", answer.json());
    }
    daemon.stop().await;
}
