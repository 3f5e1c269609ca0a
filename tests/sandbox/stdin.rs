//! Standard input that stays open, in a sandbox and without one.

use thaw_client::client::Upload;
use thaw_client::types::{ExecutionRequest, StdinTaken};

use super::{created, inside, problem, usual};
use crate::support::{Daemon, Outcome, eventually, shell};

fn open(request: ExecutionRequest) -> ExecutionRequest {
    ExecutionRequest { stdin_open: true, ..request }
}

async fn send(daemon: &Daemon, id: &str, offset: Option<u64>, text: &str, eof: bool) -> StdinTaken {
    let sent = daemon.client.send_stdin(id, offset, Upload::Whole(text.into()), eof).await;
    sent.unwrap_or_else(|error| panic!("{error}"))
}

async fn ended(daemon: &Daemon, id: &str) -> Outcome {
    Outcome::of(daemon.client.events(id, None).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reads_what_is_sent_while_it_runs() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    // The large part is not for `read`, which takes it byte by byte.
    let script = "while read -r line && [ \"$line\" != rest ]; do echo \"got $line\"; done; cat; echo end";
    for request in [inside(&sandbox, script), shell(script)] {
        let request = ExecutionRequest { stdin: Some("with the request\n".into()), ..open(request) };
        let id = daemon.client.create(&request).await.unwrap().id;
        assert_eq!(send(&daemon, &id, None, "one\n", false).await, StdinTaken { bytes: 21, eof: false });
        eventually("it has read it", || async {
            let stdout = daemon.client.events(&id, None).await.unwrap();
            drop(stdout);
            let answer = daemon.http(&format!("GET /v1/executions/{id}"), &[], b"").await;
            (answer.json()["state"] == "running").then_some(())
        })
        .await;
        assert_eq!(send(&daemon, &id, Some(17), "one\ntwo\n", false).await.bytes, 25, "what was taken is left out");
        let large = "x".repeat(1_300_000);
        send(&daemon, &id, None, &format!("rest\n{large}\n"), true).await;
        let outcome = ended(&daemon, &id).await.exited(0);
        let expected = format!("got with the request\ngot one\ngot two\n{large}\nend\n");
        assert!(outcome.text() == expected, "{} bytes", outcome.stdout.len());
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_goes_on_with_it_and_nothing_is_lost_or_read_twice() {
    let mut daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let mut running = Vec::new();
    for request in [inside(&sandbox, "while [ ! -e /tmp/go ]; do sleep 0.02; done; cat"), shell("cat")] {
        let id = daemon.client.create(&open(request)).await.unwrap().id;
        // More than its pipe holds.
        send(&daemon, &id, None, &"a".repeat(300_000), false).await;
        running.push(id);
    }
    daemon.kill();
    daemon.launch().await;
    for id in &running {
        assert_eq!(send(&daemon, id, None, "", false).await, StdinTaken { bytes: 300_000, eof: false });
        send(&daemon, id, Some(299_999), "ab", false).await;
        send(&daemon, id, None, "", true).await;
    }
    daemon.kill();
    daemon.launch().await;
    super::run(&daemon, &sandbox, "touch /tmp/go").await;
    for id in running {
        let outcome = ended(&daemon, &id).await.exited(0);
        assert!(outcome.text() == "a".repeat(300_000) + "b", "{} bytes", outcome.stdout.len());
        let closed = problem(daemon.client.send_stdin(&id, None, Upload::Whole(b"x".to_vec()), false).await);
        assert!(matches!(&*closed.code, "stdin_closed" | "stdin_not_open"), "{closed:?}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_said() {
    let daemon = Daemon::start(|setup| usual(setup).set("execution.stdin_wait_ms", 300)).await;
    let sandbox = created(&daemon, "{}").await;
    let refused = async |id: &str, query: &str, body: &[u8]| {
        let answer = daemon.http(&format!("POST /v1/executions/{id}/stdin{query}"), &[], body).await;
        (answer.status, answer.problem().code)
    };
    let of = |status: u16, code: &str| (status, code.to_owned());
    let closed = daemon.client.create(&inside(&sandbox, "exec sleep 1000")).await.unwrap().id;
    assert_eq!(refused(&closed, "", b"x").await, of(409, "stdin_not_open"));
    let id = daemon.client.create(&open(inside(&sandbox, "exec sleep 1000"))).await.unwrap().id;
    assert_eq!(refused(&id, "?offset=1", b"x").await, of(409, "stdin_gap"));
    assert_eq!(refused(&id, "?eof=yes", b"x").await, of(400, "invalid_query"));
    let full = daemon.http(&format!("POST /v1/executions/{id}/stdin"), &[], &vec![b'x'; 4 << 20]).await;
    assert_eq!((full.status, full.problem().code.as_str()), (503, "stdin_full"));
    assert!(full.json()["detail"].as_str().unwrap().contains("offset="), "{}", full.json());
    daemon.client.cancel(&id).await.unwrap();
    ended(&daemon, &id).await;
    assert_eq!(refused(&id, "", b"x").await, of(409, "stdin_closed"));
    let gone =
        daemon.client.create(&open(inside(&sandbox, "exec 0<&-; touch /tmp/gone; exec sleep 1000"))).await.unwrap().id;
    super::run(&daemon, &sandbox, "while [ ! -e /tmp/gone ]; do sleep 0.02; done").await;
    let code = eventually("it reads no more", || async {
        let answer = daemon.http(&format!("POST /v1/executions/{gone}/stdin"), &[], b"x").await;
        (answer.status != 200).then(|| answer.problem().code)
    })
    .await;
    assert_eq!(code, "stdin_closed");
    let prompt = br#"{"provider":"test","user":"u1","prompt":"x","stdin_open":true}"#;
    let answer = daemon.http("POST /v1/executions", &[], prompt).await;
    assert_eq!(answer.problem().code, "only_with_command");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thawctl_passes_on_what_comes_while_the_command_runs() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let daemon = Daemon::start(usual).await;
    created(&daemon, r#"{"name":"dev"}"#).await;
    let mut command = tokio::process::Command::new(crate::support::programs::thawctl());
    command.arg("--socket").arg(daemon.socket()).args(["exec", "-i", "u1/dev", "sh", "-c"]);
    command.arg("while read -r line; do echo \"got $line\"; done; exit 7");
    let pipe = std::process::Stdio::piped;
    let mut child = command.stdin(pipe()).stdout(pipe()).kill_on_drop(true).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    // Each answer comes before the next question.
    for word in ["one", "two", "three"] {
        input.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(crate::support::PATIENCE, output.next_line()).await.unwrap();
        assert_eq!(line.unwrap(), Some(format!("got {word}")));
    }
    drop(input);
    let status = tokio::time::timeout(crate::support::PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(7));
    daemon.stop().await;
}
