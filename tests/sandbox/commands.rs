//! Commands in a sandbox: executions as everywhere, several at once, and the container lives on.

use std::time::{Duration, Instant};

use thaw_client::types::{ExecutionRequest, ExitReason, Sandbox, SandboxState};

use super::{created, inside, now, problem, run, usual};
use crate::support::{Daemon, Outcome, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn commands_find_what_the_one_before_left_and_run_side_by_side() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, r#"{"env":{"GIVEN":"by the sandbox","BOTH":"sandbox"}}"#).await;
    let first = run(&daemon, &sandbox, "echo kept > ~/file; echo out; echo err >&2; exit 5").await;
    assert_eq!((first.text(), first.errors(), first.exit.code), ("out\n", "err\n", Some(5)));
    assert_eq!(first.started.container, sandbox.container.clone().unwrap());
    let request = ExecutionRequest {
        env: [("BOTH".to_owned(), "request".to_owned())].into(),
        workdir: Some("/tmp".to_owned()),
        labels: [("l".to_owned(), "v".to_owned())].into(),
        ..inside(&sandbox, "cat ~/file; echo $GIVEN $BOTH; pwd; id -u")
    };
    let second = daemon.run(&request).await;
    assert_eq!(second.text(), "kept\nby the sandbox request\n/tmp\n1000\n");
    let described = daemon.client.execution(&second.started.execution).await.unwrap();
    assert_eq!((described.sandbox.as_ref(), &*described.provider), (Some(&sandbox.id), "test"));
    assert_eq!((described.labels["l"].as_str(), described.container), ("v", sandbox.container.clone()));
    // Each waits for the other, so that they only end if they run at the same time.
    let meet = |mine: &str, other: &str| {
        format!(
            "mkfifo /tmp/f 2> /dev/null; touch /tmp/{mine}; while [ ! -e /tmp/{other} ]; do sleep 0.01; done; echo {mine}"
        )
    };
    let (left, right) = (meet("left", "right"), meet("right", "left"));
    let (left, right) = tokio::join!(run(&daemon, &sandbox, &left), run(&daemon, &sandbox, &right));
    assert_eq!((left.text(), right.text()), ("left\n", "right\n"));
    let many = futures_util::future::join_all((0..20).map(|number| {
        let (daemon, sandbox) = (&daemon, &sandbox);
        async move { run(daemon, sandbox, &format!("echo {number}; exit {number}")).await }
    }))
    .await;
    for (number, outcome) in many.iter().enumerate() {
        assert_eq!((outcome.text(), outcome.exit.code), (&*format!("{number}\n"), Some(number as i32)));
    }
    // The end is told first, and the command is taken out of the list then.
    eventually("none runs any more", || async { (now(&daemon, &sandbox).await.commands == 0).then_some(()) }).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_cancellation_and_time_limits_are_as_everywhere() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    // More than its pipe holds at once.
    let text = "0123456789abcdef".repeat(8 << 10);
    let request =
        ExecutionRequest { stdin: Some(text.clone().into_bytes().into()), ..inside(&sandbox, "sleep 0.1; wc -c; cat") };
    assert_eq!(daemon.run(&request).await.text().trim(), text.len().to_string());
    assert_eq!(run(&daemon, &sandbox, "wc -c").await.text().trim(), "0", "nothing to read");

    let body = serde_json::to_vec(&inside(&sandbox, "printf 'a\\0b'")).unwrap();
    let raw = daemon.http("POST /v1/executions", &[("accept", "application/octet-stream")], &body).await;
    assert_eq!(raw.body, b"a\0b");

    let request = ExecutionRequest { timeout_ms: Some(300), ..inside(&sandbox, "echo begun; exec sleep 1000") };
    let late = daemon.run(&request).await;
    assert_eq!((late.exit.reason, late.text()), (ExitReason::Timeout, "begun\n"));
    let stubborn = ExecutionRequest {
        timeout_ms: Some(300),
        ..inside(&sandbox, "trap '' TERM; echo begun; while :; do sleep 0.05; done")
    };
    let killed = daemon.run(&stubborn).await;
    assert_eq!((killed.exit.reason, killed.exit.signal), (ExitReason::Timeout, Some(libc::SIGKILL)));

    let created = daemon.client.create(&inside(&sandbox, "echo begun; exec sleep 1000")).await.unwrap();
    daemon.client.cancel(&created.id).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&created.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Cancelled);

    let none = ExecutionRequest { command: Some(vec!["/no/such".to_owned()]), ..inside(&sandbox, "") };
    let none = daemon.run(&none).await;
    assert_eq!((none.exit.code, none.errors().matches("/no/such").count()), (Some(127), 1));
    assert_eq!(run(&daemon, &sandbox, "echo alive").await.text(), "alive\n", "after all of that");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_leaves_running_goes_on_and_what_it_wrote_itself_is_whole() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let begun = Instant::now();
    let outcome = run(
        &daemon,
        &sandbox,
        "sh -c 'trap \"\" PIPE; while :; do echo more; sleep 0.01; date > /tmp/beat; done' & echo $! > /tmp/pid; \
         head -c 200000 /dev/zero | tr '\\0' x; echo; echo last >&2",
    )
    .await;
    assert!(begun.elapsed() < Duration::from_secs(20), "it is not waited for");
    assert_eq!(outcome.exit.code, Some(0));
    assert_eq!(outcome.text().matches('x').count(), 200_000);
    assert_eq!(outcome.errors(), "last\n");
    let beat = "rm -f /tmp/beat; while [ ! -e /tmp/beat ]; do sleep 0.01; done; kill -0 $(cat /tmp/pid) && echo alive";
    assert_eq!(run(&daemon, &sandbox, beat).await.text(), "alive\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_told_what_it_used_itself() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let busy = daemon.client.create(&inside(&sandbox, "while :; do :; done")).await.unwrap();
    let idle = run(&daemon, &sandbox, "sleep 0.3").await;
    let spent = run(&daemon, &sandbox, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    assert!(idle.exit.cpu_ms < 100 && spent.exit.cpu_ms > idle.exit.cpu_ms, "{:?} {:?}", idle.exit, spent.exit);
    assert!(spent.exit.memory_peak_bytes > 100_000, "{:?}", spent.exit);
    let stats = daemon.client.stats(&busy.id).await.unwrap();
    assert!(stats.usage.unwrap().cpu_us > 100_000, "of the sandbox as a whole");
    daemon.client.cancel(&busy.id).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_much_memory_ends_and_the_sandbox_does_not() {
    let daemon = Daemon::start(|setup| usual(setup).provider("resources.run.memory_mib", 64)).await;
    let sandbox = created(&daemon, "{}").await;
    let beside =
        daemon.client.create(&inside(&sandbox, "while [ ! -e /tmp/end ]; do sleep 0.02; done; echo beside")).await;
    let outcome = run(&daemon, &sandbox, "x=x; while :; do x=$x$x; done").await;
    assert_eq!(outcome.exit.reason, ExitReason::Oom, "{:?}", outcome.exit);
    assert!(outcome.exit.detail.as_ref().unwrap().contains("64 MiB"), "{:?}", outcome.exit);
    assert_eq!(run(&daemon, &sandbox, "touch /tmp/end; echo alive").await.text(), "alive\n");
    let beside = Outcome::of(daemon.client.events(&beside.unwrap().id, None).await.unwrap()).await;
    assert_eq!((beside.text(), beside.exit.reason), ("beside\n", ExitReason::Exited));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_in_a_sandbox_is_refused_with_a_sentence() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let whole = |field: &str| format!(r#"{{"sandbox":"{}","user":"u1","command":["true"],{field}}}"#, sandbox.id);
    for (field, code, about) in [
        (r#""provider":"test""#, "not_with_sandbox", "`provider`"),
        (r#""image":"test""#, "not_with_sandbox", "`image`"),
        (r#""entrypoint":["x"]"#, "not_with_sandbox", "`entrypoint`"),
        (r#""prompt":"hi""#, "prompt_or_command", "`prompt`"),
        (r#""model":"m""#, "not_with_sandbox", "`model`"),
        (r#""effort":"e""#, "not_with_sandbox", "`effort`"),
        (r#""credentials":{}"#, "not_with_sandbox", "`credentials`"),
        (r#""files":{"a":"b"}"#, "not_with_sandbox", "`files`"),
        (r#""archive":"x""#, "not_with_sandbox", "`archive`"),
        (r#""collect":["a"]"#, "not_with_sandbox", "`collect`"),
        (r#""memory_bytes":33554432"#, "not_with_sandbox", "`memory_bytes`"),
        (r#""cpus":0.1"#, "not_with_sandbox", "`cpus`"),
        (r#""queue_timeout_ms":1"#, "not_with_sandbox", "`queue_timeout_ms`"),
        (r#""timeout_ms":0"#, "invalid_field", "`timeout_ms`"),
        (r#""workdir":"tmp""#, "invalid_field", "`workdir`"),
        (r#""background":true,"env":{"":"x"}"#, "invalid_field", "`env`"),
    ] {
        let answer = daemon.http("POST /v1/executions", &[], whole(field).as_bytes()).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some(code)), "{field}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap().contains(about), "{field}: {}", answer.json());
    }
    let none = format!(r#"{{"sandbox":"{}","user":"u1"}}"#, sandbox.id);
    let answer = daemon.http("POST /v1/executions", &[], none.as_bytes()).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("invalid_field")));
    for request in [
        ExecutionRequest { user: "u2".to_owned(), ..inside(&sandbox, "true") },
        ExecutionRequest { sandbox: Some("s-none".to_owned()), ..inside(&sandbox, "true") },
    ] {
        let refused = problem(daemon.client.create(&request).await);
        assert_eq!((refused.status, &*refused.code), (404, "not_found"));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_sandbox_ends_its_commands_and_says_so() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let running = daemon.client.create(&inside(&sandbox, "echo begun; exec sleep 1000")).await.unwrap();
    eventually("it runs", || async {
        let now: Sandbox = daemon.client.sandbox(&sandbox.id).await.unwrap();
        (now.commands == 1).then_some(())
    })
    .await;
    let container = daemon.container(&sandbox.container.clone().unwrap()).await;
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    let outcome = Outcome::of(daemon.client.events(&running.id, None).await.unwrap()).await;
    assert_eq!(outcome.exit.reason, ExitReason::Killed, "{:?}", outcome.exit);
    assert!(outcome.exit.detail.as_ref().unwrap().contains("somebody deleted it"), "{:?}", outcome.exit);
    daemon.gone(&container).await;
    assert_eq!(now(&daemon, &sandbox).await.state, SandboxState::Gone);
    let refused = problem(daemon.client.create(&inside(&sandbox, "true")).await);
    assert_eq!((refused.status, &*refused.code), (409, "sandbox_gone"));
    daemon.stop().await;
}
