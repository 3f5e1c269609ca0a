//! What a request can say of one run: less memory and CPU than its class, another entrypoint, variables on purpose; and what
//! is shown of its command.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Daemon, eventually, shell};
use thaw_client::client::ClientError;
use thaw_client::types::{Execution, ExecutionRequest, ExitReason};

const MIB: u64 = 1 << 20;

fn refused(result: Result<Execution, ClientError>) -> (String, String) {
    match result.unwrap_err() {
        ClientError::Problem(problem) => (problem.code, problem.detail),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_run_may_have_less_than_its_class_and_no_more() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let small = ExecutionRequest { memory_bytes: Some(32 * MIB), cpus: Some(0.2), ..shell("sleep 1000") };
    let execution = daemon.client.create(&small).await.unwrap();
    let usage = eventually("its container is listed", || async {
        let containers = daemon.client.containers().await.unwrap();
        containers.into_iter().find(|container| container.execution.as_ref() == Some(&execution.id))?.usage
    })
    .await;
    assert_eq!((usage.memory_limit_bytes, usage.cpu_limit), (32 * MIB, 0.2));
    daemon.client.cancel(&execution.id).await.unwrap();

    // 64 MiB fit into the class's 128, and not into 32.
    let fill = "head -c 64m /dev/zero | tail -c 64m | wc -c";
    assert_eq!(daemon.run(&shell(fill)).await.text().trim(), "67108864");
    let outcome = daemon.run(&ExecutionRequest { memory_bytes: Some(32 * MIB), ..shell(fill) }).await;
    let exit = &outcome.exit;
    let killed_inside = exit.reason == ExitReason::Exited && outcome.text().trim() != "67108864";
    assert!(exit.reason == ExitReason::Oom || killed_inside, "{exit:?}");
    if let (ExitReason::Oom, Some(detail)) = (exit.reason, &exit.detail) {
        assert!(detail.contains("32 MiB"), "{detail}");
    }

    for (request, field) in [
        (ExecutionRequest { memory_bytes: Some(129 * MIB), ..shell("true") }, "memory_bytes"),
        (ExecutionRequest { memory_bytes: Some(16 * MIB - 1), ..shell("true") }, "memory_bytes"),
        (ExecutionRequest { cpus: Some(0.51), ..shell("true") }, "cpus"),
        (ExecutionRequest { cpus: Some(0.009), ..shell("true") }, "cpus"),
    ] {
        let (code, detail) = refused(daemon.client.create(&request).await);
        assert_eq!(code, "invalid_field");
        assert!(detail.contains(&format!("`{field}`")), "{detail}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn less_than_the_class_is_still_less_in_the_next_daemon() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let small = ExecutionRequest { memory_bytes: Some(32 * MIB), background: true, ..shell("sleep 1000") };
    let execution = daemon.client.create(&small).await.unwrap();
    daemon.kill();
    daemon.launch().await;
    let usage = eventually("its container is adopted", || async {
        let containers = daemon.client.containers().await.ok()?;
        containers.into_iter().find(|container| container.execution.as_ref() == Some(&execution.id))?.usage
    })
    .await;
    assert_eq!(usage.memory_limit_bytes, 32 * MIB);
    let shown = daemon.client.execution(&execution.id).await.unwrap().command;
    assert!(shown.as_ref().is_some_and(|command| command.contains("sleep 1000")), "{shown:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_entrypoint_replaces_that_of_the_image_and_its_command() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let request = ExecutionRequest {
        image: Some("test".into()),
        user: "u1".into(),
        entrypoint: Some(vec!["/bin/echo".into(), "a".into()]),
        command: Some(vec!["b".into()]),
        ..ExecutionRequest::default()
    };
    assert_eq!(daemon.run(&request).await.text(), "a b\n");
    assert_eq!(daemon.run(&ExecutionRequest { command: None, ..request.clone() }).await.text(), "a\n");
    let of_provider = ExecutionRequest { entrypoint: request.entrypoint, ..shell("true") };
    assert_eq!(refused(daemon.client.create(&of_provider).await).0, "only_with_image");
    daemon.stop().await;
}

#[tokio::test]
async fn a_program_that_does_not_start_is_named_and_commands_are_shown_short() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let command = |words: &[&str]| ExecutionRequest {
        command: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        ..shell("")
    };
    let outcome = daemon.run(&command(&["no-such-program", "x"])).await;
    assert_eq!(outcome.exit.code, Some(127));
    assert!(outcome.errors().contains("cannot execute \"no-such-program\": No such file"), "{}", outcome.errors());
    let outcome = daemon.run(&command(&[&"p".repeat(1000)])).await;
    assert!(outcome.errors().contains(&format!("\"{}\"", "p".repeat(128))), "{}", outcome.errors());
    let outcome = daemon.run(&command(&["echo hi"])).await;
    assert!(outcome.errors().contains("separate words"), "{}", outcome.errors());

    let long = "x".repeat(1000);
    daemon.run(&command(&["echo", &long])).await;
    let all = daemon.client.executions().await.unwrap();
    let shown =
        all.iter().filter_map(|one| one.command.as_deref()).find(|command| command.starts_with("echo x")).unwrap();
    assert!(shown.starts_with("echo xxx") && shown.ends_with('…') && shown.len() == 256, "{} {shown}", shown.len());
    daemon.stop().await;
}

#[tokio::test]
async fn a_reload_takes_over_limits_of_executions_and_of_the_queue() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let long = ExecutionRequest { timeout_ms: Some(600_000), ..shell("sleep 1000") };
    let running = daemon.client.create(&long).await.unwrap();
    let file = daemon.path("thawd.toml");
    let mut config: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    config["execution"].as_table_mut().unwrap().insert("max_timeout_ms".to_owned(), 4_000.into());
    config.insert("queue".to_owned(), toml::toml! { timeout_ms = 3_000 }.into());
    std::fs::write(&file, config.to_string()).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    eventually("the new limit holds", || async {
        let tried = daemon.client.create(&ExecutionRequest { timeout_ms: Some(4_001), ..shell("true") }).await;
        tried.is_err().then_some(())
    })
    .await;
    let (code, detail) = refused(daemon.client.create(&long).await);
    assert!(code == "invalid_field" && detail.contains("from 1 to 4000"), "{detail}");
    assert_eq!(daemon.client.execution(&running.id).await.unwrap().timeout_ms, 600_000, "what runs keeps its limit");
    daemon.stop().await;
}
