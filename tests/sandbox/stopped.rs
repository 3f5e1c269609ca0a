//! Sandboxes that are stopped and started again: their files are there, whatever happened to their processes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use thaw_client::types::{
    ExecutionRequest, ExitReason, Sandbox, SandboxChange, SandboxReason, SandboxRequest, SandboxState,
};

use super::prompts::{PROVIDER, asked};
use super::storage::{SMALL, attached, image, nothing_attached};
use super::{becomes, created, inside, now, problem, run, usual};
use crate::support::{Daemon, Outcome, Setup, eventually};

fn with_grace(setup: Setup) -> Setup {
    usual(setup).set("sandbox.stop_grace_seconds", 2)
}

async fn stop(daemon: &Daemon, sandbox: &Sandbox) -> Sandbox {
    daemon.client.stop_sandbox(&sandbox.id).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn wake(daemon: &Daemon, sandbox: &Sandbox) -> Sandbox {
    daemon.client.wake_sandbox(&sandbox.id).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn its_processes_are_told_and_its_files_kept() {
    let daemon = Daemon::start(with_grace).await;
    let sandbox = created(&daemon, r#"{"storage":{"size_bytes":33554432},"env":{"KEY":"hush"}}"#).await;
    let first = daemon.container(sandbox.container.as_ref().unwrap()).await;
    let trap = "trap 'echo told > ~/told; sync; exit 0' TERM; : > ~/ready; while :; do sleep 0.05; done";
    let polite = daemon.client.create(&inside(&sandbox, trap)).await.unwrap();
    let deaf = ExecutionRequest { background: true, ..inside(&sandbox, "trap '' TERM; while :; do sleep 0.05; done") };
    let deaf = daemon.client.create(&deaf).await.unwrap();
    let script =
        "echo kept > ~/file; echo gone > /tmp/file; mkdir ~/d; mv ~/d ~/e; until [ -e ~/ready ]; do sleep 0.05; done";
    run(&daemon, &sandbox, script).await;
    let stopped = stop(&daemon, &sandbox).await;
    assert_eq!((stopped.state, stopped.reason), (SandboxState::Stopped, SandboxReason::Requested));
    assert_eq!(stopped.container, None);
    nothing_attached(&daemon).await;
    daemon.gone(&first).await;
    let outcome = Outcome::of(daemon.client.events(&polite.id, None).await.unwrap()).await;
    assert_eq!((outcome.exit.reason, outcome.exit.code), (ExitReason::Exited, Some(0)));
    let outcome = Outcome::of(daemon.client.events(&deaf.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Killed);
    assert_eq!(outcome.exit.detail.as_deref(), Some("its sandbox was stopped: somebody asked for it"));
    assert_eq!(stop(&daemon, &sandbox).await.since, stopped.since, "once is enough");
    let refused = problem(daemon.client.freeze_sandbox::<Sandbox>(&sandbox.id).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "sandbox_not_running"));

    let again = run(&daemon, &sandbox, "cat ~/file ~/told; ls -d ~/e; ls /tmp; echo $KEY").await;
    assert_eq!(again.text(), "kept\ntold\n/home/runtime/e\nhush\n", "{}", again.errors());
    let woken = now(&daemon, &sandbox).await;
    assert_eq!((woken.state, woken.reason), (SandboxState::Active, SandboxReason::Used));
    assert_ne!(woken.container, sandbox.container);
    // A frozen one as well, and `wake` without a command.
    let _: Sandbox = daemon.client.freeze_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(stop(&daemon, &sandbox).await.state, SandboxState::Stopped);
    let woken = wake(&daemon, &sandbox).await;
    assert_eq!((woken.state, woken.reason), (SandboxState::Active, SandboxReason::Requested));
    assert_eq!(run(&daemon, &sandbox, "cat ~/file").await.text(), "kept\n");
    // Files over the API start it too, and nothing of such a call keeps its file system open.
    let file = format!("/v1/sandboxes/{}/files?path=/home/runtime/put", sandbox.id);
    let put = daemon.http(&format!("PUT {file}"), &[], b"over the API").await;
    assert!(put.status < 300, "{}", put.text());
    stop(&daemon, &sandbox).await;
    nothing_attached(&daemon).await;
    let got = daemon.http(&format!("GET {file}"), &[], b"").await;
    assert_eq!((got.status, got.text().as_str()), (200, "over the API"));
    assert_eq!(now(&daemon, &sandbox).await.state, SandboxState::Active);
    stop(&daemon, &sandbox).await;
    nothing_attached(&daemon).await;
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(now(&daemon, &sandbox).await.state, SandboxState::Gone);
    assert!(!image(&daemon, &sandbox).exists());
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idleness_freezes_stops_and_ends_it() {
    let daemon = Daemon::start(|setup| with_grace(setup).set("sandbox.stop_after_seconds", 3600)).await;
    let sandbox =
        created(&daemon, r#"{"storage":{"size_bytes":33554432},"lifecycle":{"freeze_after_s":1,"stop_after_s":3}}"#)
            .await;
    let kept = created(&daemon, r#"{"storage":{"size_bytes":33554432},"lifecycle":{"freeze_after_s":1}}"#).await;
    run(&daemon, &sandbox, "echo kept > ~/file").await;
    becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    let stopped = becomes(&daemon, &sandbox, SandboxState::Stopped).await;
    assert_eq!(stopped.reason, SandboxReason::Idle);
    assert!(stopped.since.unix_ms() >= stopped.used_at.unix_ms() + 3000, "{stopped:?}");
    assert_eq!(run(&daemon, &sandbox, "cat ~/file").await.text(), "kept\n");
    assert_eq!(now(&daemon, &kept).await.state, SandboxState::Frozen);
    let change: SandboxChange =
        serde_json::from_str(r#"{"lifecycle":{"freeze_after_s":1,"stop_after_s":1,"destroy_after_s":2}}"#).unwrap();
    let _: Sandbox = daemon.client.change_sandbox(&sandbox.id, &change).await.unwrap();
    let gone = becomes(&daemon, &sandbox, SandboxState::Gone).await;
    assert_eq!(gone.reason, SandboxReason::Idle);
    eventually("its storage is removed", || async { (!image(&daemon, &sandbox).exists()).then_some(()) }).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_lost_takes_no_file_with_it() {
    let mut daemon = Daemon::start(with_grace).await;
    let plain = created(&daemon, SMALL).await;
    let secret = created(&daemon, r#"{"name":"dev","storage":{"size_bytes":33554432},"env":{"KEY":"hush"}}"#).await;
    let other = created(&daemon, r#"{"storage":{"size_bytes":33554432},"env":{"KEY":"hush"}}"#).await;
    for sandbox in [&plain, &secret, &other] {
        run(&daemon, sandbox, "echo kept > ~/file; sync ~/file").await;
    }
    // Its PID 1 is killed from outside.
    let init = daemon.container(plain.container.as_ref().unwrap()).await.pid.unwrap();
    kill_process(Pid::from_raw(init).unwrap(), Signal::KILL).unwrap();
    let stopped = becomes(&daemon, &plain, SandboxState::Stopped).await;
    assert_eq!(stopped.reason, SandboxReason::Ended);
    assert_eq!(run(&daemon, &plain, "cat ~/file").await.text(), "kept\n");
    stop(&daemon, &other).await;
    // As after a restart of the host: daemon, keeper and containers are gone at once.
    let keeper = daemon.keeper().unwrap();
    daemon.kill();
    kill_process(Pid::from_raw(keeper.pid).unwrap(), Signal::KILL).unwrap();
    daemon.launch().await;
    for (sandbox, reason) in
        [(&plain, SandboxReason::Lost), (&secret, SandboxReason::Lost), (&other, SandboxReason::Requested)]
    {
        let found = now(&daemon, sandbox).await;
        assert_eq!((found.state, found.reason), (SandboxState::Stopped, reason), "{found:?}");
    }
    assert_eq!(run(&daemon, &plain, "cat ~/file").await.text(), "kept\n");
    // Values of variables are on no disk: a command without them would be another one.
    for sandbox in [&secret, &other] {
        let refused = problem(daemon.client.execute_stream(&inside(sandbox, "cat ~/file")).await.map(drop));
        assert_eq!((refused.status, refused.code.as_str()), (409, "sandbox_env_lost"));
        assert!(refused.detail.contains("KEY"), "{}", refused.detail);
        let refused = problem(daemon.client.wake_sandbox::<Sandbox>(&sandbox.id).await);
        assert_eq!(refused.code, "sandbox_env_lost");
    }
    let env = |json: &str| serde_json::from_str::<SandboxChange>(json).unwrap();
    let wrong = problem(daemon.client.change_sandbox::<Sandbox>(&other.id, &env(r#"{"env":{"A":"1"}}"#)).await);
    assert!(wrong.detail.starts_with("`env` must have the names [\"KEY\"]"), "{}", wrong.detail);
    let _: Sandbox = daemon.client.change_sandbox(&other.id, &env(r#"{"env":{"KEY":"again"}}"#)).await.unwrap();
    let wrong = problem(daemon.client.change_sandbox::<Sandbox>(&other.id, &env(r#"{"env":{"KEY":"no"}}"#)).await);
    assert!(wrong.detail.contains("this one has them"), "{}", wrong.detail);
    assert_eq!(run(&daemon, &other, "cat ~/file; echo $KEY").await.text(), "kept\nagain\n");
    let same = br#"{"template":"test","storage":{"size_bytes":33554432},"env":{"KEY":"third"}}"#;
    let same = daemon.http("PUT /v1/users/u1/sandboxes/dev", &[], same).await;
    assert_eq!((same.status, same.json()["id"].as_str()), (200, Some(&*secret.id)), "{}", same.text());
    assert_eq!(run(&daemon, &secret, "cat ~/file; echo $KEY").await.text(), "kept\nthird\n");
    // What is stopped has its variables with the next daemon, as long as the keeper lives.
    stop(&daemon, &secret).await;
    daemon.kill();
    daemon.launch().await;
    assert_eq!(now(&daemon, &secret).await.state, SandboxState::Stopped);
    assert_eq!(run(&daemon, &secret, "cat ~/file; echo $KEY").await.text(), "kept\nthird\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_of_the_daemon_keeps_the_files() {
    let mut daemon = Daemon::start(with_grace).await;
    let sandbox = created(&daemon, SMALL).await;
    run(&daemon, &sandbox, "echo kept > ~/file").await;
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    assert!(attached(&daemon).is_empty());
    daemon.launch().await;
    let found = now(&daemon, &sandbox).await;
    assert_eq!((found.state, found.reason), (SandboxState::Stopped, SandboxReason::Stopped));
    assert_eq!(run(&daemon, &sandbox, "cat ~/file").await.text(), "kept\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_mounted_says_so_and_nothing_is_made_anew() {
    let daemon = Daemon::start(with_grace).await;
    let damaged = created(&daemon, SMALL).await;
    let flawed = created(&daemon, SMALL).await;
    let missing = created(&daemon, SMALL).await;
    for sandbox in [&damaged, &flawed, &missing] {
        run(&daemon, sandbox, "echo kept > ~/file").await;
        stop(&daemon, sandbox).await;
    }
    // The kernel has seen errors: repaired, and mounted.
    let flagged = Command::new("/usr/sbin/debugfs")
        .args(["-w", "-R", "set_super_value state 2"])
        .arg(image(&daemon, &flawed))
        .output()
        .unwrap();
    assert!(flagged.status.success(), "{flagged:?}");
    assert_eq!(run(&daemon, &flawed, "cat ~/file").await.text(), "kept\n");
    assert!(daemon.log().contains("e2fsck has repaired"), "{}", daemon.log());

    let file = OpenOptions::new().read(true).write(true).open(image(&daemon, &damaged)).unwrap();
    let mut whole = vec![0; 1 << 20];
    file.read_exact_at(&mut whole, 0).unwrap();
    file.write_all_at(&vec![0x55; 1 << 20], 0).unwrap();
    let refused = problem(daemon.client.wake_sandbox::<Sandbox>(&damaged.id).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "sandbox_broken"), "{}", refused.detail);
    let broken = now(&daemon, &damaged).await;
    assert_eq!((broken.state, broken.reason), (SandboxState::Broken, SandboxReason::Damaged));
    assert!(broken.detail.as_ref().unwrap().contains("its file system is damaged"), "{broken:?}");
    // What cannot be repaired was not touched.
    let mut left = vec![0; 1 << 20];
    file.read_exact_at(&mut left, 0).unwrap();
    assert!(left.iter().all(|byte| *byte == 0x55));
    assert_eq!(run(&daemon, &flawed, "echo others go on").await.text(), "others go on\n");
    // Somebody has repaired it.
    file.write_all_at(&whole, 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(wake(&daemon, &damaged).await.state, SandboxState::Active);
    assert_eq!(run(&daemon, &damaged, "cat ~/file").await.text(), "kept\n");

    std::fs::remove_file(image(&daemon, &missing)).unwrap();
    let refused = problem(daemon.client.execute_stream(&inside(&missing, "cat ~/file")).await.map(drop));
    assert_eq!((refused.status, refused.code.as_str()), (409, "sandbox_broken"));
    assert!(refused.detail.contains("does not exist"), "{}", refused.detail);
    daemon.client.delete_sandbox(&missing.id).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_has_its_credentials_in_memory_and_its_files_on_the_disk() {
    let daemon = Daemon::start(|setup| with_grace(setup).add_provider(PROVIDER)).await;
    let request: SandboxRequest =
        serde_json::from_str(r#"{"user":"u1","template":"ask","storage":{"size_bytes":33554432}}"#).unwrap();
    let sandbox: Sandbox = daemon.client.create_sandbox(&request, None).await.unwrap_or_else(|error| panic!("{error}"));
    let first = daemon.run(&asked(&sandbox, "first")).await;
    assert_eq!((first.text(), first.exit.success), ("file hush variable  before \n", true), "{}", first.errors());
    stop(&daemon, &sandbox).await;
    let bytes = std::fs::read(image(&daemon, &sandbox)).unwrap();
    assert!(bytes.windows(5).any(|window| window == b"first"), "what the prompt has written is there");
    assert!(!bytes.windows(4).any(|window| window == b"hush"), "and nothing of its credential");
    let second = daemon.run(&asked(&sandbox, "second")).await;
    assert_eq!(second.text(), "file hush variable  before first\n", "{}", second.errors());
    let metrics = daemon.http("GET /metrics", &[], b"").await.text();
    for line in
        ["thawd_sandboxes{state=\"active\"} 1", "thawd_storage_bytes 44040192", "thawd_storage_max_bytes 10737418240"]
    {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    daemon.stop().await;
}
