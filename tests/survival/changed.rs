//! A configuration that was changed while there was no daemon, or before one is restarted: what runs goes on.

use std::fs;
use std::process::Command;

use thaw_client::types::{Event, ExecutionRequest, ExecutionState, ExitReason};

use crate::support::{Daemon, Outcome, eventually, shell};

/// Goes on until it is told to end.
fn long() -> ExecutionRequest {
    let script = "trap 'echo end; exit 7' TERM; echo begun; while :; do sleep 0.05; done";
    ExecutionRequest { background: true, ..shell(script) }
}

fn change(daemon: &Daemon, from: &str, to: &str) {
    let file = daemon.path("thawd.toml");
    let config = fs::read_to_string(&file).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(file, config.replace(from, to)).unwrap();
}

/// What `thawd --check-config --against-running` says, and whether it is content.
fn against_running(daemon: &Daemon) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawd"));
    command.arg("--config").arg(daemon.path("thawd.toml")).args(["--check-config", "--against-running"]);
    let output = command.env_clear().output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Waits for the first output, before which a signal would come too early.
async fn begun(daemon: &Daemon, id: &str) {
    let mut stream = daemon.client.events(id, None).await.unwrap();
    while !matches!(stream.next().await.unwrap().unwrap().1, Event::Stdout(_)) {}
}

async fn start(daemon: &Daemon, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = daemon.client.create(&long()).await.unwrap().id;
        begun(daemon, &id).await;
        ids.push(id);
    }
    ids
}

/// All run, and end as if nothing had happened.
async fn go_on(daemon: &Daemon, ids: &[String]) {
    for id in ids {
        let execution = daemon.client.execution(id).await.unwrap();
        assert_eq!(execution.state, ExecutionState::Running, "{execution:?}");
    }
    for id in ids {
        daemon.client.cancel(id).await.unwrap();
        let outcome = Outcome::of(daemon.client.events(id, None).await.unwrap()).await.ended(ExitReason::Cancelled);
        assert_eq!((outcome.text(), outcome.exit.code), ("begun\nend\n", Some(7)));
    }
}

#[tokio::test]
async fn what_runs_goes_first_when_there_are_fewer_places() {
    let mut daemon = Daemon::start(|setup| setup.pool(2).set("container.max", 6)).await;
    let ids = start(&daemon, 3).await;
    daemon.settled_beside(3).await;
    change(&daemon, "max = 6", "max = 2");
    let (content, said) = against_running(&daemon);
    assert!(content && said.contains("3 running executions are kept"), "{said}");
    daemon.kill();
    daemon.launch().await;
    eventually("the warm ones have made way", || async { (daemon.containers().await.len() == 3).then_some(()) }).await;
    go_on(&daemon, &ids).await;
    daemon.settled().await;
    assert_eq!(daemon.sh("echo fine").await.exited(0).text(), "fine\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_runs_keeps_its_ids_when_they_begin_elsewhere() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("container.id_start", 1_879_048_192)).await;
    let ids = start(&daemon, 2).await;
    daemon.settled_beside(2).await;
    // Not by whole ranges, so that each survivor lies across two of the new ones.
    change(&daemon, "id_start = 1879048192", "id_start = 1879100000");
    daemon.kill();
    daemon.launch().await;
    daemon.settled_beside(2).await;
    assert_eq!(daemon.sh("id -u").await.exited(0).text(), "1000\n");
    go_on(&daemon, &ids).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_runs_goes_on_without_its_provider() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let manifest = daemon.path("providers/test.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let other = text.replace("\"test\"", "\"other\"").replace("image = \"other\"", "image = \"test\"");
    let other_manifest = daemon.path("providers/other.toml");
    fs::write(&other_manifest, &other).unwrap();
    daemon.kill();
    daemon.launch().await;
    let request = ExecutionRequest { provider: "other".to_owned(), ..long() };
    let id = daemon.client.create(&request).await.unwrap().id;
    begun(&daemon, &id).await;
    fs::remove_file(other_manifest).unwrap();
    daemon.kill();
    daemon.launch().await;
    go_on(&daemon, &[id]).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_named_before_it_happens() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let [id] = start(&daemon, 1).await.try_into().unwrap();
    let (content, said) = against_running(&daemon);
    assert!(content && said.contains("nothing that runs would be lost"), "{said}");
    let name = format!("name = {:?}", daemon.cgroup_name());
    let other = format!("name = \"{}-other\"", daemon.cgroup_name());
    change(&daemon, &name, &other);
    let (content, said) = against_running(&daemon);
    assert!(!content && said.contains(&id) && said.contains("`cgroup.name`"), "{said}");
    change(&daemon, &other, &name);
    go_on(&daemon, &[id]).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_of_its_own_and_all_that_runs() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    let file = daemon.path("thawd.toml");
    let good = fs::read_to_string(&file).unwrap();
    let bad = format!("{good}\n[provider.test]\negress = [\"no host at all\"]\n");
    fs::write(&file, &bad).unwrap();
    assert!(daemon.refused().await.contains("no host at all"));
    daemon.assert_nothing_left(&[]);
    // With something to lose, it stays where it is.
    fs::write(&file, &good).unwrap();
    daemon.launch().await;
    let ids = start(&daemon, 1).await;
    daemon.kill();
    fs::write(&file, &bad).unwrap();
    daemon.refused().await;
    fs::write(&file, &good).unwrap();
    daemon.launch().await;
    go_on(&daemon, &ids).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_directory_that_is_removed_is_made_again() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let ids = start(&daemon, 1).await;
    fs::remove_dir_all(daemon.path("run")).unwrap();
    eventually("it can be asked again", || async { daemon.client.readyz().await.ok() }).await;
    eventually("it could be found again", || async { daemon.path("run/keeper.sock").exists().then_some(()) }).await;
    eventually("another keeper has been told", || async {
        daemon.log().contains("another keeper has taken its place").then_some(())
    })
    .await;
    assert!(daemon.log().contains("sockets of this daemon have been removed"));
    daemon.kill();
    daemon.launch().await;
    go_on(&daemon, &ids).await;
    daemon.settled().await;
    daemon.stop().await;
}
