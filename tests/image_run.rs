//! Commands in images of the store, without a provider.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Daemon, Outcome};
use thawd::types::{ClaimPath, Credentials, ExecutionRequest, ExitReason};

fn request(image: &str, script: &str) -> ExecutionRequest {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    ExecutionRequest {
        image: Some(image.to_owned()),
        user: "u1".to_owned(),
        command: Some(command),
        ..ExecutionRequest::default()
    }
}

async fn refused(daemon: &Daemon, request: &ExecutionRequest) -> (String, String) {
    match daemon.client.create(request).await.unwrap_err() {
        thawd::client::ClientError::Problem(problem) => (problem.code.clone(), problem.detail.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_image_runs_with_its_own_configuration() {
    // The provider's pool unpacks the image; the run then takes it from the store.
    let daemon = Daemon::start(|setup| setup.pool(1).set("image_run.memory_bytes", 64 << 20)).await;
    let script =
        "id -u; id -g; pwd; echo $HOME; touch $HOME/x /tmp/x && echo writable; touch /x 2>&1; grep -c . /proc/net/dev";
    let outcome: Outcome = daemon.run(&request("test", script)).await;
    assert_eq!(outcome.started.path, ClaimPath::Cold);
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["1000", "1000", "/home/runtime", "/home/runtime", "writable"], "{text}");
    assert!(lines[5].contains("Read-only file system"), "{text}");
    assert_eq!(lines[6], "3", "two lines of heading and lo: {text}");
    assert!(outcome.exit.success);

    let outcome = daemon.run(&request("test", "dd if=/dev/zero of=/dev/null bs=200M count=1")).await;
    assert_eq!(outcome.exit.reason, ExitReason::Oom, "{:?}", outcome.exit);
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_name() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let (code, detail) = refused(&daemon, &request("nothing", "true")).await;
    assert!(code == "unknown_image" && detail.contains("thawctl image"), "{code}: {detail}");
    let (code, _) = refused(&daemon, &request("../../etc", "true")).await;
    assert_eq!(code, "invalid_image");
    let both = ExecutionRequest { provider: "test".to_owned(), ..request("test", "true") };
    assert_eq!(refused(&daemon, &both).await.0, "provider_or_image");
    let neither = ExecutionRequest { image: None, ..request("test", "true") };
    assert_eq!(refused(&daemon, &neither).await.0, "provider_or_image");
    let secret = ExecutionRequest { credentials: Some(Credentials::default()), ..request("test", "true") };
    assert_eq!(refused(&daemon, &secret).await.0, "only_with_provider");
    daemon.stop().await;
}
