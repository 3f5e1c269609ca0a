//! What goes wrong around an execution and must not become its client's problem, or the next daemon's.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Answer, ContainerCgroup, Daemon, Outcome, children, eventually, shell};
use thaw_client::types::{ClaimPath, ExecutionState};
use tokio::io::AsyncReadExt;

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The daemon's directory in the v2 hierarchy.
fn core(daemon: &Daemon) -> PathBuf {
    daemon.cgroups().into_iter().find(|directory| directory.join("cgroup.freeze").exists()).unwrap()
}

fn with_accept() -> [(&'static str, &'static str); 1] {
    [("accept", "text/event-stream")]
}

#[tokio::test]
async fn a_warm_container_that_died_unnoticed_is_replaced_by_another() {
    let daemon = Daemon::start(|setup| setup.pool(3).set("pool.health_interval_seconds", 3600)).await;
    for container in daemon.settled().await {
        kill(container.pid.unwrap());
        let cgroup = ContainerCgroup::of(&container);
        eventually("it is dead", || async { (!cgroup.frozen_and_populated().1).then_some(()) }).await;
    }
    let outcome = daemon.sh("echo served").await.exited(0);
    assert_eq!((outcome.text(), outcome.started.path), ("served\n", ClaimPath::Cold));
    assert_eq!(daemon.settled().await.len(), 3, "the others were replaced too");
    daemon.stop().await;
}

#[tokio::test]
async fn an_execution_that_cannot_start_can_be_cancelled_and_its_streams_end() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    // From outside: thawing the container does not let it run.
    let freeze = core(&daemon).join("cgroup.freeze");
    std::fs::write(&freeze, "1").unwrap();
    let body = serde_json::to_vec(&shell("echo never")).unwrap();
    let mut starting = daemon.open("POST /v1/executions", &with_accept(), &body).await;
    let pending = eventually("it is pending", || async {
        let all = daemon.client.executions().await.unwrap();
        all.into_iter().find(|execution| execution.state == ExecutionState::Pending)
    })
    .await;
    let mut events = daemon.open(&format!("GET /v1/executions/{}/events", pending.id), &[], b"").await;
    // Its answer begins before the cancellation, after which the execution is forgotten.
    let mut stream = String::from_utf8(vec![events.read_u8().await.unwrap()]).unwrap();
    daemon.client.cancel(&pending.id).await.unwrap();

    let mut answer = String::new();
    tokio::time::timeout(support::PATIENCE, starting.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains(r#""code":"cancelled""#), "{answer}");
    tokio::time::timeout(support::PATIENCE, events.read_to_string(&mut stream)).await.unwrap().unwrap();
    assert_eq!(stream.matches("event: exit").count(), 1, "{stream}");
    assert!(stream.contains(r#""reason":"cancelled""#), "{stream}");
    std::fs::write(&freeze, "0").unwrap();
    daemon.sh("true").await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_while_nothing_gets_on_leaves_nothing_behind() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    std::fs::write(core(&daemon).join("cgroup.freeze"), "1").unwrap();
    let body = serde_json::to_vec(&shell("echo never")).unwrap();
    let _starting = daemon.open("POST /v1/executions", &with_accept(), &body).await;
    eventually("it is pending", || async { daemon.client.executions().await.unwrap().pop() }).await;
    // Neither does the refill get on, whose container is cloned into the frozen cgroup: the spawner is given up, and
    // what it had cloned may end so late that init reaps it instead of the daemon.
    let family = daemon.family();
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    eventually("all are reaped", || async { (!family.iter().any(|process| process.exists())).then_some(()) }).await;
    daemon.assert_nothing_left(&family);
}

#[tokio::test]
async fn a_client_that_stalls_does_not_make_a_stop_leave_containers_behind() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    daemon.settled().await;
    // Half a request, and a stream that nobody reads.
    let _half = daemon.open("POST /v1/executions", &[("content-length", "100")], b"").await;
    let body = serde_json::to_vec(&shell("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done")).unwrap();
    let _stalled = daemon.open("POST /v1/executions", &with_accept(), &body).await;
    eventually("it runs", || async { daemon.client.executions().await.unwrap().pop() }).await;
    daemon.stop().await;
}

#[tokio::test]
async fn every_last_event_id_is_harmless() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let outcome = daemon.sh("echo one").await.exited(0);
    for last in ["0", "2", "99", "18446744073709551614", "18446744073709551615"] {
        let request = format!("GET /v1/executions/{}/events", outcome.started.execution);
        let answer = daemon.http(&request, &[("last-event-id", last)], b"").await;
        // Behind the end there is nothing, and a browser has to be told so.
        assert_eq!(answer.status, if last.len() == 1 { 200 } else { 204 }, "{last}");
        assert_eq!(answer.text().contains("event: exit"), last.len() == 1, "{last}: {}", answer.text());
    }
    // The client library knows an end when it sees one.
    let begun = std::time::Instant::now();
    let mut stream =
        daemon.client.events(&outcome.started.execution, Some(outcome.events.last().unwrap().0)).await.unwrap();
    assert!(stream.next().await.is_none() && stream.next().await.is_none());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let wrong: Answer = daemon
        .http(
            &format!("GET /v1/executions/{}/events", outcome.started.execution),
            &[("last-event-id", "18446744073709551616")],
            b"",
        )
        .await;
    assert_eq!(wrong.problem().code, "invalid_last_event_id");
    daemon.stop().await;
}

#[tokio::test]
async fn commands_ignore_no_signal() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    // Rust programs ignore SIGPIPE: inherited, `yes | head` would not end as it does elsewhere.
    let outcome = daemon.sh("grep -E '^Sig(Ign|Blk)' /proc/self/status; umask").await.exited(0);
    let set = "0000000000000000";
    assert_eq!(outcome.text(), format!("SigBlk:\t{set}\nSigIgn:\t{set}\n0022\n"));
    daemon.stop().await;
}

#[tokio::test]
async fn spawners_that_are_killed_leave_no_zombies_and_lose_no_request_for_good() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    for round in 0..10u64 {
        daemon.settled().await;
        // While the refill of one claim creates a container, at another moment each time.
        let (outcome, ()) = tokio::join!(daemon.sh("echo x"), async {
            tokio::time::sleep(Duration::from_millis(round)).await;
            if let Some(spawner) = daemon.spawner() {
                kill(spawner.pid);
            }
        });
        outcome.exited(0);
    }
    let warm = daemon.settled().await;
    eventually("all zombies are reaped", || async {
        let family = children(daemon.pid());
        let strange = family.iter().filter(|child| {
            warm.iter().all(|container| container.pid != Some(child.pid))
                && daemon.spawner().is_none_or(|spawner| spawner.pid != child.pid)
                && daemon.keeper().is_none_or(|keeper| keeper.pid != child.pid)
        });
        (strange.count() == 0).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_daemon_with_the_same_cgroup_is_refused() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let before = daemon.settled().await;
    let second = Daemon::prepare(|setup| setup.set("cgroup.name", daemon.cgroup_name()));
    let output = Command::new(env!("CARGO_BIN_EXE_thawd"))
        .arg("--config")
        .arg(second.path("thawd.toml"))
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("another daemon uses"), "{error}");
    let after = daemon.settled().await;
    assert_eq!(before[0].id, after[0].id, "the first one's container lives");
    daemon.stop().await;
}

/// Waits until the daemon has stopped itself at a step.
#[cfg(debug_assertions)]
async fn stopped(daemon: &Daemon) {
    eventually("it stops at the step", || async {
        support::status_field(daemon.pid(), "State").starts_with('T').then_some(())
    })
    .await;
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn a_warm_container_that_dies_as_it_is_claimed_is_followed_by_the_next() {
    for step in ["claim.kept", "claim.raised", "claim.submitted", "claim.noted"] {
        let mut daemon = Daemon::prepare(|setup| setup.pool(2).set("pool.health_interval_seconds", 3600));
        daemon.spawn(&[("THAWD_STOP_AT", step)]);
        daemon.ready().await;
        let warm = daemon.settled().await;
        let client = daemon.client.clone();
        let asked =
            tokio::spawn(async move { Outcome::of(client.execute_stream(&shell("echo served")).await.unwrap()).await });
        stopped(&daemon).await;
        // One of the two is being claimed, the one that has waited for longer.
        let first = warm.iter().min_by_key(|container| container.created_at_ms).unwrap();
        kill(first.pid.unwrap());
        let cgroup = ContainerCgroup::of(first);
        // Frozen or thawed, it is dead before the daemon goes on.
        eventually("it is dead", || async { (!cgroup.frozen_and_populated().1).then_some(()) }).await;
        daemon.signal(Signal::CONT);
        let outcome = tokio::time::timeout(support::PATIENCE, asked).await.unwrap().unwrap().exited(0);
        assert_eq!(outcome.text(), "served\n", "{step}");
        assert_ne!(outcome.started.container, first.id, "{step}");
        daemon.settled().await;
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_base_cgroup_that_somebody_removes_is_made_again() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    daemon.sh("echo one").await.exited(0);
    eventually("nothing is left in them", || async { daemon.containers().await.is_empty().then_some(()) }).await;
    let mut removed = 0;
    for directory in daemon.cgroups() {
        // The one that the keeper is in cannot be removed.
        removed += usize::from(std::fs::remove_dir(&directory).is_ok());
    }
    let v2_only = daemon.cgroups().len() == 1;
    assert!(removed > 0 || v2_only, "{:?}", daemon.cgroups());
    daemon.sh("echo two").await.exited(0);
    assert!(removed == 0 || daemon.log().contains("was removed; made again"), "{}", daemon.log());
    daemon.stop().await;
}

#[tokio::test]
async fn refused_requests_are_counted_by_provider_and_without_one_by_a_name_of_their_own() {
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let wrong = |provider: &str| {
        let mut request = shell("true");
        request.provider = provider.to_owned();
        request.timeout_ms = Some(0);
        request
    };
    for provider in ["test", "test", "nothing-of-that-name"] {
        daemon.client.create(&wrong(provider)).await.unwrap_err();
    }
    let mut image = wrong("");
    image.image = Some("nothing-of-that-name".to_owned());
    daemon.client.create(&image).await.unwrap_err();
    let metrics = daemon.client.metrics().await.unwrap();
    for (provider, count) in [("test", 2), ("unknown", 1), ("image", 1)] {
        let line = format!("thawd_refused_total{{provider=\"{provider}\",reason=\"request\"}} {count}");
        assert!(metrics.lines().any(|had| had == line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("nothing-of-that-name"), "labels are bounded");
    daemon.stop().await;
}

#[tokio::test]
async fn a_provider_without_an_image_is_said_once() {
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/providers/test.toml")).unwrap();
    let other =
        manifest.replace("name = \"test\"", "name = \"other\"").replace("image = \"test\"", "image = \"absent\"");
    let mut daemon = Daemon::prepare(|setup| setup.pool(1).add_provider(&other));
    daemon.spawn(&[]);
    let said = |level: &str, text: &str| {
        let log = daemon.log();
        log.lines().filter(|line| line.contains(level) && line.contains(text) && line.contains("other")).count()
    };
    eventually("it was tried several times", || async {
        (said("DEBUG", "pool still cannot be filled") >= 3).then_some(())
    })
    .await;
    assert_eq!(said("WARN", "pool cannot be filled"), 1, "{}", daemon.log());
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
}
