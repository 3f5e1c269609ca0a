//! Files for a CLI that waited already started.

use std::collections::BTreeMap;

use super::support::{Daemon, Outcome, Setup, eventually, prompt};
use super::{file, problems};
use thaw_client::types::{Credentials, Event, ExecutionRequest, NewFile, Secret, Stage};

/// A CLI that speaks gemini's protocol, works in the directory of its session, and doubles the file `in`.
const GEMINI: &str = r#"
while read -r line; do case $line in
*'"initialize"'*) echo '{"jsonrpc":"2.0","id":0,"result":{}}' ;;
*'"authenticate"'*) echo '{"jsonrpc":"2.0","id":1,"result":{}}' ;;
*'"session/new"'*)
    cwd=${line#*'"cwd":"'}; cd "${cwd%%'"'*}"
    echo '{"jsonrpc":"2.0","id":2,"result":{"sessionId":"s"}}' ;;
*'"session/prompt"'*)
    cat in in > out; text="$(pwd) $(cat in)"
    echo '{"jsonrpc":"2.0","method":"session/update","params":{"update":{"sessionUpdate":"agent_message_chunk","content":{"text":"'$text'"}}}}'
    echo '{"jsonrpc":"2.0","id":4,"result":{"stopReason":"end_turn"}}' ;;
esac; done
"#;

/// One that speaks claude's, and cannot be moved.
const CLAUDE: &str = r#"
while read -r line; do case $line in
*'"initialize"'*) echo '{"type":"control_response","response":{"subtype":"success","request_id":"initialize"}}' ;;
*'"user"'*)
    cat /workspace/in /workspace/in > /workspace/out; text="$(pwd) $(cat /workspace/in)"
    echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'$text'"}}}'
    echo '{"type":"result","subtype":"success","is_error":false,"result":"'$text'"}' ;;
esac; done
"#;

const MANIFEST: &str = r#"
name = "cli"
image = "test"
home = "/home/runtime"
pool_target = 1
egress = []
[command]
argv = ["sh", "-c", "cat > /dev/null; cat /workspace/in /workspace/in > /workspace/out; echo $(pwd) cold"]
[models]
default = "m"
allowed = ["m"]
[credentials]
dir = ".cli"
env = ["TEST_TOKEN"]
tmpfs_mib = 1
[prestart]
protocol = ""
argv = ["sh", "-c", "", "{model}"]
memory_mib = 16
credentials = [{ credential = "env:TEST_TOKEN", by = "" }]
[resources.idle]
memory_mib = 64
cpu = 0.5
[resources.run]
memory_mib = 128
cpu = 0.5
"#;

fn cli(mut setup: Setup, protocol: &str, by: &str, script: &str) -> Setup {
    setup.clear_providers();
    let mut manifest: toml::Table = MANIFEST.parse().unwrap();
    let prestart = manifest["prestart"].as_table_mut().unwrap();
    prestart["protocol"] = protocol.into();
    prestart["argv"][2] = script.into();
    prestart["credentials"][0]["by"] = by.into();
    setup.add_provider(&manifest.to_string()).set("provider.cli.prestarted", 1)
}

async fn ask(daemon: &Daemon, workdir: Option<&str>) -> (Outcome, String) {
    eventually("everything waits", || async {
        let pools = daemon.client.pools().await.unwrap();
        let full = pools.iter().all(|pool| pool.warm == pool.target);
        (full && pools.iter().any(|pool| pool.stage == Stage::Prestarted)).then_some(())
    })
    .await;
    let token = [("TEST_TOKEN".to_owned(), Secret::new("sk-mine".to_owned()))];
    let request = ExecutionRequest {
        credentials: Some(Credentials { files: BTreeMap::new(), env: token.into() }),
        files: [("in".to_owned(), NewFile::new("word"))].into(),
        collect: vec!["out".to_owned()],
        workdir: workdir.map(str::to_owned),
        ..prompt("cli", "Say something.")
    };
    let outcome = daemon.run(&request).await;
    assert_eq!(problems(&outcome), [], "{:?}", outcome.exit);
    assert_eq!(file(daemon, &outcome, "out").await, "wordword");
    let said = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    let said: String = said.collect();
    (outcome, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_can_be_moved_works_in_the_workspace() {
    let daemon = Daemon::start(|setup| cli(setup, "gemini-acp", "api-key", GEMINI)).await;
    let (outcome, said) = ask(&daemon, None).await;
    assert!(outcome.started.prestarted, "{:?}", outcome.started);
    assert_eq!(said, "/workspace word");
    let log = daemon.log();
    assert!(!log.contains("wordword") && !log.contains("sk-mine"), "{log}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_cannot_be_moved_works_where_it_is_if_that_is_wanted() {
    let daemon = Daemon::start(|setup| cli(setup, "claude-stream-json", "environment", CLAUDE)).await;
    let (outcome, said) = ask(&daemon, Some("/home/runtime")).await;
    assert!(outcome.started.prestarted, "{:?}", outcome.started);
    assert_eq!(said, "/home/runtime word");
    let (outcome, _) = ask(&daemon, None).await;
    assert!(!outcome.started.prestarted, "{:?}", outcome.started);
    assert!(String::from_utf8_lossy(&outcome.stdout).contains("/workspace cold"));
    daemon.stop().await;
}
