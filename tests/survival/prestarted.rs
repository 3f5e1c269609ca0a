//! Prestarted CLIs, waiting and answering, when the daemon is killed.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use thaw_client::client::ClientError;
use thaw_client::types::{
    ClaimPath, Container, ContainerState, Credentials, Event, ExecutionRequest, ExitReason, Secret, Stage,
};

use super::load::{Kind, check, request, wait};
use super::strict::Strict;
use crate::support::{Daemon, Outcome, Setup, eventually, prompt};

fn two_wait(setup: Setup) -> Setup {
    setup.pool(0).add_provider(&wait().replace("pool_target = 1", "pool_target = 0")).set("provider.wait.prestarted", 2)
}

/// Those with a CLI that waits, once all of them do.
async fn waiting(daemon: &Daemon) -> Vec<Container> {
    eventually("CLIs wait", || async {
        let pools = daemon.client.pools().await.unwrap();
        let mut pools = pools.iter().filter(|pool| pool.stage == Stage::Prestarted);
        let full = pools.all(|pool| pool.warm == pool.target && pool.creating == 0);
        let mut containers = daemon.containers().await;
        let all = containers.len();
        containers.retain(|one| one.stage == Stage::Prestarted && one.state == ContainerState::Warm && one.frozen);
        (full && !containers.is_empty() && containers.len() == all).then_some(containers)
    })
    .await
}

fn ids(containers: &[Container]) -> BTreeSet<String> {
    containers.iter().map(|container| container.id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_waits_is_adopted_and_serves() {
    let mut daemon = Daemon::start(two_wait).await;
    let before = waiting(&daemon).await;
    for _ in 0..3 {
        daemon.kill();
        daemon.launch().await;
        assert_eq!(ids(&waiting(&daemon).await), ids(&before));
    }
    let strict = Strict::new(&daemon.socket());
    for _ in 0..2 {
        let seen = strict.run(&request(Kind::Prestarted, "token-of-mine"), true).await.unwrap();
        check(Kind::Prestarted, "token-of-mine", &seen);
        let Some((_, Event::Started(started))) = seen.events.first() else { panic!("{seen:?}") };
        assert!(started.prestarted && started.path == ClaimPath::Warm, "{started:?}");
        assert!(ids(&before).contains(&started.container), "one of those that waited: {started:?}");
        waiting(&daemon).await;
        daemon.kill();
        daemon.launch().await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_goes_on_through_many_daemons() {
    let mut daemon = Daemon::start(two_wait).await;
    waiting(&daemon).await;
    let asked = ExecutionRequest { background: true, ..request(Kind::Prestarted, "token-of-mine") };
    let execution = daemon.client.create(&asked).await.unwrap();
    let (strict, id) = (Strict::new(&daemon.socket()), execution.id.clone());
    let run = tokio::spawn(async move { strict.follow(&id, None).await });
    let mut restarts = 0;
    while !run.is_finished() {
        daemon.kill();
        daemon.launch().await;
        restarts += 1;
    }
    let seen = run.await.unwrap();
    check(Kind::Prestarted, "token-of-mine", &seen);
    assert!(seen.is_prestarted() && restarts > 1, "{restarts} restarts, {:?}", seen.events.first());
    let after = daemon.client.execution(&execution.id).await.unwrap();
    assert_eq!((after.container, after.path), (execution.container, Some(ClaimPath::Warm)));
    waiting(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_something_else_than_today_is_replaced() {
    let mut daemon = Daemon::start(two_wait).await;
    let mut before = waiting(&daemon).await;
    let manifest = daemon.path("providers/wait.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    // Another command, and the same one spoken with in another way.
    for changed in [text.replace("word$i", "wort$i"), text.replace("quiet_ms = 50", "quiet_ms = 60")] {
        assert_ne!(text, changed);
        fs::write(&manifest, changed).unwrap();
        daemon.kill();
        daemon.launch().await;
        let after = waiting(&daemon).await;
        assert!(ids(&after).is_disjoint(&ids(&before)), "{before:?} {after:?}");
        assert!(daemon.log().contains("made from something else than today"), "{}", daemon.log());
        before = after;
    }
    daemon.stop().await;
}

/// A CLI of codex's protocol whose provider refuses the access token, and its cold sibling, which has the file and renews
/// it; both take a moment.
const REFUSED: &str = r#"
name = "refused"
image = "test"
home = "/home/runtime"
pool_target = 1
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; sleep 0.4; echo renewed; cat ~/.refused/auth.json > /dev/null"]
prompt = "stdin"
dialect = "text"
[models]
default = "one"
allowed = ["one"]
[credentials]
dir = ".refused"
files = ["auth.json"]
tmpfs_mib = 1
[prestart]
protocol = "codex-app-server"
argv = ["sh", "-c", "CLI", "{model}"]
quiet_ms = 50
memory_mib = 8
credentials = [{ credential = "file:auth.json", by = "auth-json" }]
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 1.0
"#;

const REFUSED_CLI: &str = r#"
while read -r line; do case $line in
*'"initialize"'*) echo '{"id":0,"result":{}}' ;;
*'"thread/start"'*) echo '{"id":1,"result":{"thread":{"id":"t1"}}}' ;;
*'"account/login/start"'*)
    echo '{"id":2,"result":{"type":"chatgptAuthTokens"}}'
    echo '{"method":"account/login/completed","params":{"success":true}}' ;;
*'"turn/start"'*)
    echo '{"id":7,"method":"account/chatgptAuthTokens/refresh","params":{}}'
    read -r answer
    echo '{"method":"turn/completed","params":{"threadId":"t1","turn":{"status":"failed","error":{"message":"x"}}}}' ;;
esac; done
"#;

/// What is asked once more is told `started` before its second command has been handed over. Wherever the daemon dies
/// meanwhile, it has an end that says something.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_asked_once_more_is_not_lost_either() {
    let cli = toml::Value::from(REFUSED_CLI).to_string();
    let mut daemon = Daemon::prepare(|setup| {
        setup
            .pool(0)
            .add_provider(&REFUSED.replace("\"CLI\"", &cli))
            .set("provider.refused.prestarted", 1)
            .set("execution.reconnect_grace_ms", 20_000)
    });
    let jwt = "e30.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln";
    let auth = json!({"tokens": {"access_token": jwt, "refresh_token": "rt", "account_id": "a"}}).to_string();
    let request = ExecutionRequest {
        background: true,
        credentials: Some(Credentials {
            files: [("auth.json".to_owned(), Secret::new(auth))].into(),
            env: Default::default(),
        }),
        ..prompt("refused", "Say something.")
    };
    // At the second claim of the one execution: before its command was handed over, and behind that.
    for (step, renewed) in [("claim.kept:2", false), ("claim.injected:2", false), ("claim.noted:2", true)] {
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        waiting_beside(&daemon).await;
        // It may die before its answer is out: then the next daemon tells the id.
        let answer = daemon.client.create(&request).await;
        assert!(!daemon.ended().await.success());
        daemon.launch().await;
        let id = match answer {
            Ok(execution) => execution.id,
            Err(ClientError::Broken(_)) => newest(&daemon).await,
            Err(error) => panic!("{step}: {error}"),
        };
        let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await;
        assert!(outcome.started.prestarted, "{step}: {:?}", outcome.started);
        assert_eq!(outcome.exit.reason, ExitReason::Exited, "{step}: {:?}", outcome.exit);
        assert_eq!(outcome.exit.success, renewed, "{step}: {:?}", outcome.exit);
        let text = String::from_utf8_lossy(&outcome.stdout);
        if renewed {
            assert!(text.ends_with("renewed\n"), "{step}: {text}");
        } else {
            let detail = outcome.exit.detail.unwrap_or_default();
            assert!(detail.contains("refused the access token"), "{step}: {detail}");
        }
        daemon.kill();
    }
    daemon.launch().await;
    waiting_beside(&daemon).await;
    daemon.stop().await;
}

/// The execution that was begun last.
async fn newest(daemon: &Daemon) -> String {
    daemon.client.executions().await.unwrap().first().expect("it was begun").id.clone()
}

/// Every pool is full, of both stages.
async fn waiting_beside(daemon: &Daemon) {
    eventually("the pools are full", || async {
        let pools = daemon.client.pools().await.unwrap();
        pools.iter().all(|pool| pool.warm == pool.target && pool.creating == 0).then_some(())
    })
    .await;
}
