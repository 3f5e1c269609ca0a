//! What a request gives a command to read, and where it starts.

use sha2::{Digest as _, Sha256};
use thaw_client::client::ClientError;
use thaw_client::content::Content;
use thaw_client::types::{ExecutionRequest, ExitReason};

use crate::support::{Daemon, prompt, shell};

fn with_input(script: &str, bytes: impl Into<Content>) -> ExecutionRequest {
    ExecutionRequest { stdin: Some(bytes.into()), ..shell(script) }
}

async fn refused(daemon: &Daemon, request: &ExecutionRequest) -> (String, String) {
    match daemon.client.create(request).await.unwrap_err() {
        ClientError::Problem(problem) => (problem.code.clone(), problem.detail.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn input_arrives_byte_for_byte_and_ends() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.run(&with_input("od -An -tx1; echo end", b"a\0\xff\n".to_vec())).await.exited(0);
    assert_eq!(outcome.text(), " 61 00 ff 0a\nend\n");
    let outcome = daemon.run(&with_input("wc -c", "")).await.exited(0);
    assert_eq!(outcome.text().trim(), "0", "no byte is an end too");
    // More than a pipe takes by default (64 KiB, pipe(7)), to a reader that begins late.
    let large: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
    let outcome = daemon.run(&with_input("sleep 0.3; sha256sum", large.clone())).await.exited(0);
    let sum: String = Sha256::digest(&large).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(outcome.text(), format!("{sum}  -\n"));
    daemon.stop().await;
}

#[tokio::test]
async fn input_that_nobody_reads_holds_nothing_up() {
    let daemon = Daemon::start(|setup| setup).await;
    let large = vec![b'x'; 500_000];
    let outcome = daemon.run(&with_input("echo done", large.clone())).await.exited(0);
    assert_eq!(outcome.text(), "done\n");
    let outcome = daemon.run(&with_input("exec < /dev/null; echo closed", large)).await.exited(0);
    assert_eq!(outcome.text(), "closed\n");
    daemon.stop().await;
}

#[tokio::test]
async fn an_image_reads_its_input_too() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let request = ExecutionRequest {
        provider: String::new(),
        image: Some("test".to_owned()),
        workdir: Some("/tmp".to_owned()),
        ..with_input("pwd; cat", "through")
    };
    assert_eq!(daemon.run(&request).await.exited(0).text(), "/tmp\nthrough");
    daemon.stop().await;
}

#[tokio::test]
async fn a_prompt_takes_no_input_besides() {
    let daemon = Daemon::start(|setup| setup).await;
    let request = ExecutionRequest { stdin: Some("x".into()), ..prompt("test", "hello") };
    let (code, detail) = refused(&daemon, &request).await;
    assert!(code == "only_with_command" && detail.contains("`stdin`"), "{code}: {detail}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_starts_where_it_is_told() {
    let daemon = Daemon::start(|setup| setup).await;
    let there = |path: &str| ExecutionRequest { workdir: Some(path.to_owned()), ..shell("pwd") };
    assert_eq!(daemon.run(&there("/usr/bin")).await.exited(0).text(), "/usr/bin\n");
    let outcome = daemon.run(&there("/no/such/place")).await;
    assert_eq!((outcome.exit.reason, outcome.exit.code), (ExitReason::Exited, Some(126)));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("directory"), "{:?}", outcome.exit);
    for bad in ["", "relative", "./here", &format!("/{}", "x".repeat(4095)), "/a\0b"] {
        let (code, detail) = refused(&daemon, &there(bad)).await;
        assert!(code == "invalid_field" && detail.contains("`workdir`"), "{code}: {detail}");
    }
    daemon.stop().await;
}
