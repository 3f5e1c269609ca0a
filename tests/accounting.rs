//! What the metrics and the list of containers say of executions: theirs, and nothing of anybody before them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Daemon, Outcome, eventually, shell};
use thaw_client::types::{ClaimPath, Container, ExecutionRequest, ExitReason, Usage};

const MIB: u64 = 1 << 20;

/// Value of the first series that begins so.
fn series(metrics: &str, beginning: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(beginning))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

async fn used(daemon: &Daemon, execution: &str) -> Option<(Container, Usage)> {
    let containers = daemon.containers().await;
    let container = containers.into_iter().find(|container| container.execution.as_deref() == Some(execution))?;
    let usage = container.usage?;
    Some((container, usage))
}

async fn cancelled(daemon: &Daemon, execution: &str) {
    daemon.client.cancel(execution).await.unwrap();
    Outcome::of(daemon.client.events(execution, None).await.unwrap()).await.ended(ExitReason::Cancelled);
}

#[tokio::test]
async fn an_execution_shows_what_it_used_and_nothing_of_those_before() {
    let daemon = Daemon::start(|setup| setup.pool(1).provider("resources.run.memory_mib", 64)).await;
    daemon.settled().await;
    // Busy for good, and one process of it killed at the memory limit.
    let busy = "dd if=/dev/zero of=/dev/null bs=300M count=1; while :; do :; done";
    let first = daemon.client.create(&shell(busy)).await.unwrap();
    let (container, usage) = eventually("it has used something", || async {
        used(&daemon, &first.id).await.filter(|(_, usage)| usage.cpu_us > 300_000 && usage.throttled_periods > 0)
    })
    .await;
    assert_eq!((container.provider.as_str(), container.user.as_deref()), ("test", Some("u1")));
    assert_eq!((usage.cpu_limit, usage.memory_limit_bytes, usage.oom_kills), (0.5, 64 * MIB, 1));
    assert!(usage.periods >= usage.throttled_periods && usage.throttled_us > 0, "{usage:?}");
    assert!(usage.memory_peak_bytes > 48 * MIB && usage.memory_bytes < 64 * MIB, "{usage:?}");
    assert!(container.cpu_ms * 1000 >= usage.cpu_us, "what it used before it was claimed is the container's alone");
    let labels = format!("{{provider=\"test\",execution=\"{}\",container=\"{}\"", first.id, container.id);
    let metrics = daemon.client.metrics().await.unwrap();
    for (name, least) in [
        ("cpu_seconds_total", 0.3),
        ("cpu_limit_cores", 0.5),
        ("cpu_periods_total", 1.0),
        ("cpu_throttled_periods_total", 1.0),
        ("cpu_throttled_seconds_total", 0.001),
        ("memory_bytes", 1000.0),
        ("memory_peak_bytes", 48.0 * MIB as f64),
        ("memory_limit_bytes", 64.0 * MIB as f64),
        ("oom_kills_total", 1.0),
        ("network_bytes_total", 0.0),
    ] {
        let value = series(&metrics, &format!("thawd_execution_{name}{labels}"));
        assert!(value.is_some_and(|value| value >= least), "{name}: {value:?} in\n{metrics}");
    }
    cancelled(&daemon, &first.id).await;
    daemon.settled().await;

    // The next one begins at nothing, and the one before has left only sums.
    let second = daemon.client.create(&shell("sleep 1000")).await.unwrap();
    let (_, usage) = used(&daemon, &second.id).await.unwrap();
    assert!(usage.cpu_us < 100_000, "{usage:?}");
    assert_eq!((usage.oom_kills, usage.throttled_periods, usage.throttled_us), (0, 0, 0));
    assert!(usage.memory_bytes < 16 * MIB, "{usage:?}");
    let metrics = daemon.client.metrics().await.unwrap();
    assert!(!metrics.contains(&first.id), "{metrics}");
    assert!(metrics.contains(&second.id));
    assert_eq!(series(&metrics, "thawd_oom_kills_total{provider=\"test\"}"), Some(1.0));
    assert!(series(&metrics, "thawd_executions_cpu_seconds_total{provider=\"test\"}").unwrap() > 0.3);
    assert!(series(&metrics, "thawd_executions_throttled_seconds_total{provider=\"test\"}").unwrap() > 0.0);
    cancelled(&daemon, &second.id).await;
    daemon.settled().await;
    let metrics = daemon.client.metrics().await.unwrap();
    assert!(!metrics.contains("thawd_execution_cpu_seconds_total{"), "nothing runs: {metrics}");
    assert!(!metrics.contains(&second.id));
    daemon.stop().await;
}

#[tokio::test]
async fn commands_in_images_are_counted_too() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let request = ExecutionRequest { provider: String::new(), image: Some("test".to_owned()), ..shell("sleep 1000") };
    let running = daemon.client.create(&request).await.unwrap();
    let metrics = daemon.client.metrics().await.unwrap();
    for (name, value) in [
        (r#"thawd_containers{provider="image",stage="created",state="claimed"}"#, 1.0),
        (r#"thawd_containers{provider="image",stage="created",state="warm"}"#, 0.0),
        (r#"thawd_containers{provider="test",stage="created",state="claimed"}"#, 0.0),
        (r#"thawd_containers{provider="test",stage="created",state="warm"}"#, 1.0),
        (r#"thawd_claims_total{provider="image",path="cold"}"#, 1.0),
        (r#"thawd_create_seconds_count{provider="image",stage="created",what="claim"}"#, 1.0),
        (r#"thawd_create_seconds_count{provider="test",stage="created",what="refill"}"#, 1.0),
    ] {
        assert_eq!(series(&metrics, name), Some(value), "{name} in\n{metrics}");
    }
    assert!(
        metrics.contains(&format!("thawd_execution_cpu_limit_cores{{provider=\"image\",execution=\"{}\"", running.id))
    );
    cancelled(&daemon, &running.id).await;
    daemon.stop().await;
}

#[tokio::test]
async fn claims_and_first_bytes_are_timed_by_path() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    assert_eq!(daemon.sh("sleep 0.2; echo hello").await.exited(0).started.path, ClaimPath::Warm);
    daemon.settled().await;
    // Says nothing on its standard output.
    daemon.sh("echo error >&2").await.exited(0);
    daemon.settled().await;
    let metrics = daemon.client.metrics().await.unwrap();
    let warm = r#"{provider="test",path="warm"}"#;
    assert_eq!(series(&metrics, &format!("thawd_claims_total{warm}")), Some(2.0));
    assert_eq!(series(&metrics, &format!("thawd_claim_seconds_count{warm}")), Some(2.0));
    assert_eq!(series(&metrics, &format!("thawd_first_byte_seconds_count{warm}")), Some(1.0));
    let waited = series(&metrics, &format!("thawd_first_byte_seconds_sum{warm}")).unwrap();
    assert!((0.2..10.0).contains(&waited), "{waited}");
    assert_eq!(
        series(&metrics, r#"thawd_claims_total{provider="test",path="cold"}"#),
        Some(0.0),
        "shown from the start"
    );
    assert_eq!(series(&metrics, r#"thawd_execution_duration_seconds_count{provider="test"}"#), Some(2.0));
    assert_eq!(series(&metrics, r#"thawd_pool_claims_total{provider="test",stage="created",result="hit"}"#), Some(2.0));
    daemon.stop().await;
}

#[tokio::test]
async fn creations_that_fail_are_counted_by_reason() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let failures = r#"thawd_create_failures_total{provider="test",what="refill",reason="cgroup"}"#;
    assert_eq!(series(&daemon.client.metrics().await.unwrap(), failures), Some(0.0));
    // Without room for another cgroup (cgroup.max.descendants) the pool cannot refill.
    let core = daemon.cgroups().into_iter().find(|cgroup| cgroup.join("cgroup.max.descendants").exists()).unwrap();
    std::fs::write(core.join("cgroup.max.descendants"), "0").unwrap();
    daemon.sh("true").await.exited(0);
    eventually("a creation failed", || async {
        let metrics = daemon.client.metrics().await.unwrap();
        let failed = series(&metrics, failures) >= Some(1.0);
        (failed && series(&metrics, r#"thawd_pool_failing{provider="test",stage="created"}"#) == Some(1.0))
            .then_some(())
    })
    .await;
    std::fs::write(core.join("cgroup.max.descendants"), "max").unwrap();
    daemon.settled().await;
    let metrics = daemon.client.metrics().await.unwrap();
    assert_eq!(series(&metrics, r#"thawd_pool_failing{provider="test",stage="created"}"#), Some(0.0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_spawner_that_died_is_counted() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    assert_eq!(series(&daemon.client.metrics().await.unwrap(), "thawd_spawner_failures_total"), Some(0.0));
    let spawner = daemon.spawner().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(spawner.pid).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually("its end is counted", || async {
        let metrics = daemon.client.metrics().await.unwrap();
        (series(&metrics, "thawd_spawner_failures_total") == Some(1.0)).then_some(())
    })
    .await;
    daemon.sh("true").await.exited(0);
    daemon.settled().await;
    assert_eq!(series(&daemon.client.metrics().await.unwrap(), "thawd_spawner_failures_total"), Some(1.0));
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_used_before_the_daemon_was_killed_still_counts() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("log.format", "json")).await;
    daemon.settled().await;
    let body = br#"{"provider":"test","user":"u1","background":true,"command":["sh","-c","i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000"]}"#;
    let headers = [("content-type", "application/json"), ("x-request-id", "kept-1")];
    let answer = daemon.http("POST /v1/executions", &headers, body).await;
    let execution: thaw_client::types::Execution = serde_json::from_slice(&answer.body).unwrap();
    let (_, before) = eventually("it has used something", || async {
        used(&daemon, &execution.id).await.filter(|(_, usage)| usage.cpu_us > 50_000)
    })
    .await;
    daemon.kill();
    daemon.launch().await;
    let (container, after) = used(&daemon, &execution.id).await.unwrap();
    assert!(after.cpu_us >= before.cpu_us && after.memory_limit_bytes == before.memory_limit_bytes, "{after:?}");
    assert_eq!(container.claimed_at_ms, Some(execution.created_at_ms));
    assert_eq!(daemon.client.execution(&execution.id).await.unwrap().request_id.as_deref(), Some("kept-1"));
    cancelled(&daemon, &execution.id).await;
    let outcome = Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.request_id.as_deref(), Some("kept-1"));
    let log = daemon.log();
    let ended = log.lines().find(|line| line.contains("execution ended")).unwrap();
    assert!(ended.contains("\"request_id\":\"kept-1\"") && ended.contains(&execution.id), "{ended}");
    daemon.stop().await;
}
