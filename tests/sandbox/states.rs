//! What becomes of a sandbox over time: frozen, woken, gone, each with its reason, and never two of them at once.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use thaw_client::types::{
    DaemonEventKind, ExecutionRequest, ExitReason, Sandbox, SandboxChange, SandboxLifecycle, SandboxReason,
    SandboxState,
};

use super::{becomes, created, inside, now, problem, run, usual};
use crate::support::{Daemon, Outcome, eventually};

async fn is_frozen(daemon: &Daemon, sandbox: &Sandbox) -> bool {
    daemon.container(sandbox.container.as_ref().unwrap()).await.frozen
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_one_is_frozen_and_a_command_wakes_it() {
    let daemon = Daemon::start(|setup| usual(setup).set("sandbox.freeze_after_seconds", 1)).await;
    let sandbox = created(&daemon, "{}").await;
    let kept = created(&daemon, r#"{"lifecycle":{"keep_active":true}}"#).await;
    let slow = created(&daemon, r#"{"lifecycle":{"freeze_after_s":3600}}"#).await;
    run(&daemon, &sandbox, "sleep 1000 & echo 1 > /tmp/n").await;
    let frozen = becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    assert_eq!(frozen.reason, SandboxReason::Idle);
    assert!(frozen.since.unix_ms() >= frozen.used_at.unix_ms() + 1000, "{frozen:?}");
    assert!(is_frozen(&daemon, &sandbox).await, "the kernel says so too");
    assert_eq!(run(&daemon, &sandbox, "cat /tmp/n").await.text(), "1\n");
    let woken = now(&daemon, &sandbox).await;
    assert_eq!((woken.state, woken.reason), (SandboxState::Active, SandboxReason::Used));
    // A command keeps it awake for longer than the time of idleness.
    assert_eq!(run(&daemon, &sandbox, "sleep 2; echo through").await.text(), "through\n");
    assert_eq!(now(&daemon, &sandbox).await.since, woken.since, "all the time");
    becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    for other in [&kept, &slow] {
        assert_eq!(now(&daemon, other).await.state, SandboxState::Active);
    }
    // A changed lifecycle holds at once.
    let lifecycle = SandboxLifecycle { freeze_after_s: Some(1), ..Default::default() };
    let change = SandboxChange { lifecycle: Some(lifecycle), ..Default::default() };
    for other in [&kept, &slow] {
        let _: Sandbox = daemon.client.change_sandbox(&other.id, &change).await.unwrap();
        becomes(&daemon, other, SandboxState::Frozen).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_the_background_is_frozen_too_and_ends_when_it_is_told_to() {
    let daemon = Daemon::start(|setup| usual(setup).set("sandbox.freeze_after_seconds", 1)).await;
    let sandbox = created(&daemon, "{}").await;
    let background = |script: &str, timeout_ms| ExecutionRequest {
        background: true,
        timeout_ms: Some(timeout_ms),
        ..inside(&sandbox, script)
    };
    let first =
        daemon.client.create(&background("while :; do date +%s%N > /tmp/beat; sleep 0.01; done", 600_000)).await;
    let frozen = becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    assert_eq!(frozen.commands, 1);
    daemon.client.cancel(&first.as_ref().unwrap().id).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&first.unwrap().id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Cancelled);
    // Its time limit goes on while it is frozen, and ends it.
    let second = daemon.client.create(&background("exec sleep 1000", 2_500)).await.unwrap();
    becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    let outcome = Outcome::of(daemon.client.events(&second.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Timeout);
    // One that nobody streams, but that was not asked for in the background, keeps it awake.
    let third = daemon.client.create(&inside(&sandbox, "sleep 2; echo through")).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&third.id, None).await.unwrap()).await;
    assert_eq!(outcome.text(), "through\n");
    assert!(outcome.exit.duration_ms < 20_000, "{:?}", outcome.exit);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_frozen_and_woken_on_request() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let running =
        daemon.client.create(&inside(&sandbox, "while [ ! -e /tmp/end ]; do sleep 0.01; done")).await.unwrap();
    let busy = problem(daemon.client.freeze_sandbox::<Sandbox>(&sandbox.id).await);
    assert_eq!((busy.status, &*busy.code), (409, "sandbox_busy"));
    run(&daemon, &sandbox, "touch /tmp/end").await;
    Outcome::of(daemon.client.events(&running.id, None).await.unwrap()).await;
    let frozen: Sandbox =
        eventually("it can be frozen", || async { daemon.client.freeze_sandbox(&sandbox.id).await.ok() }).await;
    assert_eq!((frozen.state, frozen.reason), (SandboxState::Frozen, SandboxReason::Requested));
    assert!(is_frozen(&daemon, &sandbox).await);
    let again: Sandbox = daemon.client.freeze_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(again.since, frozen.since, "it was");
    let woken: Sandbox = daemon.client.wake_sandbox(&sandbox.id).await.unwrap();
    assert_eq!((woken.state, woken.reason), (SandboxState::Active, SandboxReason::Requested));
    assert!(!is_frozen(&daemon, &sandbox).await);
    let again: Sandbox = daemon.client.wake_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(again.since, woken.since);
    // A frozen one can be deleted as it is.
    let _: Sandbox = daemon.client.freeze_sandbox(&sandbox.id).await.unwrap();
    let container = daemon.container(sandbox.container.as_ref().unwrap()).await;
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    daemon.gone(&container).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_idle_for_too_long_or_whose_container_ends_is_gone_and_says_why() {
    let daemon = Daemon::start(usual).await;
    let idle = created(&daemon, r#"{"lifecycle":{"destroy_after_s":2}}"#).await;
    let container = daemon.container(idle.container.as_ref().unwrap()).await;
    assert_eq!(run(&daemon, &idle, "sleep 3; echo through").await.text(), "through\n", "it was not idle");
    let frozen: Sandbox =
        eventually("it can be frozen", || async { daemon.client.freeze_sandbox(&idle.id).await.ok() }).await;
    assert_eq!(frozen.state, SandboxState::Frozen);
    let gone = becomes(&daemon, &idle, SandboxState::Gone).await;
    assert_eq!(gone.reason, SandboxReason::Idle);
    daemon.gone(&container).await;

    for freeze in [false, true] {
        let killed = created(&daemon, "{}").await;
        let container = daemon.container(killed.container.as_ref().unwrap()).await;
        let running = match freeze {
            true => {
                let _: Sandbox = daemon.client.freeze_sandbox(&killed.id).await.unwrap();
                None
            }
            false => Some(daemon.client.create(&inside(&killed, "exec sleep 1000")).await.unwrap()),
        };
        kill_process(Pid::from_raw(container.pid.unwrap()).unwrap(), Signal::KILL).unwrap();
        let gone = becomes(&daemon, &killed, SandboxState::Gone).await;
        assert_eq!(gone.reason, SandboxReason::Ended);
        if let Some(running) = running {
            let outcome = Outcome::of(daemon.client.events(&running.id, None).await.unwrap()).await;
            assert_eq!(outcome.exit.reason, ExitReason::Lost, "{:?}", outcome.exit);
        }
        daemon.gone(&container).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_the_daemon_is_told() {
    let daemon = Daemon::start(usual).await;
    let since = [("since".to_owned(), thaw_client::time::Timestamp::now().to_string())];
    let sandbox = created(&daemon, "{}").await;
    let _: Sandbox = daemon.client.freeze_sandbox(&sandbox.id).await.unwrap();
    run(&daemon, &sandbox, "true").await;
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    let mut events = daemon.client.daemon_events(since.to_vec()).await.unwrap();
    let mut seen: Vec<(DaemonEventKind, Option<String>)> = Vec::new();
    while seen.last().is_none_or(|(kind, ..)| *kind != DaemonEventKind::SandboxGone) {
        let event = tokio::time::timeout(Duration::from_secs(30), events.next()).await.unwrap().unwrap();
        if event.sandbox.is_some() {
            assert_eq!((event.sandbox.as_ref(), event.user.as_deref()), (Some(&sandbox.id), Some("u1")));
            seen.push((event.kind, event.detail));
        }
    }
    let words = |word: &str| Some(word.to_owned());
    let of_sandbox: Vec<_> = seen.into_iter().filter(|(kind, _)| kind.name().starts_with("sandbox")).collect();
    assert_eq!(
        of_sandbox,
        [
            (DaemonEventKind::SandboxCreated, words("created")),
            (DaemonEventKind::SandboxFrozen, words("requested")),
            (DaemonEventKind::SandboxWoken, words("used")),
            (DaemonEventKind::SandboxGone, words("requested")),
        ]
    );
    daemon.stop().await;
}

/// Commands, freezes, wakes and at last a deletion, all at once: every command does all or nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wakes_freezes_commands_and_an_end_never_meet() {
    let daemon = Daemon::start(|setup| usual(setup).pool(1)).await;
    for round in 0..3 {
        let sandbox = created(&daemon, "{}").await;
        let until = Instant::now() + Duration::from_secs(4);
        let command = |number: usize| {
            let (daemon, sandbox) = (&daemon, &sandbox);
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let outcome = run(daemon, sandbox, &format!("echo {number} >> ~/log; echo {number}")).await;
                    assert_eq!((outcome.text(), outcome.exit.code), (&*format!("{number}\n"), Some(0)));
                    done += 1;
                }
                done
            }
        };
        let freeze = || async {
            let (mut frozen, mut busy) = (0, 0);
            while Instant::now() < until {
                match daemon.client.freeze_sandbox::<Sandbox>(&sandbox.id).await {
                    Ok(_) => frozen += 1,
                    Err(error) => {
                        assert_eq!(problem::<Sandbox>(Err(error)).code, "sandbox_busy");
                        busy += 1;
                    }
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            (frozen, busy)
        };
        let wake = || async {
            while Instant::now() < until {
                let _: Sandbox = daemon.client.wake_sandbox(&sandbox.id).await.unwrap();
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        };
        let commands = futures_util::future::join_all((0..3).map(command));
        let (commands, (frozen, busy), (), ()) = tokio::join!(commands, freeze(), wake(), wake());
        let done: usize = commands.iter().sum();
        println!("round {round}: {done} commands, {frozen} freezes, {busy} refused");
        assert!(done > 3 && frozen > 0, "{done} {frozen} {busy}");
        let logged = run(&daemon, &sandbox, "wc -l < ~/log").await;
        assert_eq!(logged.text().trim(), done.to_string(), "none was lost or run twice");
        // An end in the middle of everything.
        let last = |number: usize| {
            let (daemon, sandbox) = (&daemon, &sandbox);
            async move {
                loop {
                    match daemon.client.execute_stream(&inside(sandbox, &format!("echo {number}"))).await {
                        Ok(stream) => {
                            let outcome = Outcome::of(stream).await;
                            let reason = outcome.exit.reason;
                            assert!(matches!(reason, ExitReason::Exited | ExitReason::Killed), "{:?}", outcome.exit);
                        }
                        Err(error) => return problem::<()>(Err(error)).code,
                    }
                }
            }
        };
        let end = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
        };
        let (codes, ()) = tokio::join!(futures_util::future::join_all((0..4).map(last)), end);
        for code in codes {
            assert!(matches!(&*code, "sandbox_gone" | "container_failed"), "{code}");
        }
        assert_eq!(now(&daemon, &sandbox).await.state, SandboxState::Gone);
    }
    daemon.stop().await;
}
