//! Every limit, crossed for real.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use libc::EMFILE;
use support::{ContainerCgroup, Daemon, Outcome, Program, Value, command, eventually, in_bed, prompt, shell};
use thaw_client::types::{Event, ExecutionRequest, ExitReason};

const MIB: u64 = 1 << 20;

/// A provider whose CLI prints nothing; `{start}` seconds are how long that is tolerated.
const SILENT: &str = r#"
name = "silent"
image = "test"
home = "/home/runtime"
pool_target = 1
egress = []
[command]
argv = ["sh", "-c", "cat > /tmp/prompt; case $(cat /tmp/prompt) in quiet) sleep 1000;; *) echo hello; sleep 2;; esac"]
start_timeout_s = 1
[models]
default = "none"
allowed = ["none"]
[credentials]
dir = ".test"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 64
cpu = 0.5
"#;

#[tokio::test]
async fn too_much_memory_ends_the_execution_and_nobody_else() {
    let daemon = Daemon::start(|setup| setup.pool(2).provider("resources.run.memory_mib", 64)).await;
    let other = daemon.client.create(&shell("sleep 3; echo still here")).await.unwrap().id;
    // One buffer of 300 MiB, which is filled.
    let outcome = daemon.sh("echo before; dd if=/dev/zero of=/dev/null bs=300M count=1; exit 3").await;
    let exit = outcome.ended(ExitReason::Oom).exit;
    assert!(!exit.success);
    assert!(exit.detail.unwrap().contains("64 MiB"));
    assert!(
        exit.memory_peak_bytes > 48 * MIB && exit.memory_peak_bytes <= 64 * MIB,
        "{} bytes",
        exit.memory_peak_bytes
    );
    // The shell as the culprit itself: everything that it writes to /tmp is memory as well.
    let exit = daemon.sh("exec dd if=/dev/zero of=/tmp/file bs=1M count=90").await.ended(ExitReason::Oom).exit;
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    let outcome = Outcome::of(daemon.client.events(&other, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.text(), "still here\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_that_survives_its_children_is_not_said_to_be_out_of_memory() {
    let daemon = Daemon::start(|setup| setup.pool(1).provider("resources.run.memory_mib", 64)).await;
    let outcome = daemon.sh("dd if=/dev/zero of=/dev/null bs=300M count=1; echo went on").await.exited(0);
    assert_eq!(outcome.text(), "went on\n");
    daemon.stop().await;
}

#[tokio::test]
async fn cpu_is_throttled_to_the_quota() {
    let daemon = Daemon::start(|setup| {
        setup.pool(1).provider("resources.run.cpu", 0.2).provider("resources.run.cpu_burst", 0.2)
    })
    .await;
    let mut request = shell("while :; do :; done");
    request.timeout_ms = Some(3000);
    let execution = daemon.client.create(&request).await.unwrap();
    let cgroup = ContainerCgroup::of(&daemon.container(&execution.container.unwrap()).await);
    eventually("the kernel throttles it", || async { (cgroup.throttled() > 5).then_some(()) }).await;
    let outcome = Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
    let exit = outcome.ended(ExitReason::Timeout).exit;
    let share = exit.cpu_ms as f64 / exit.duration_ms as f64;
    assert!((0.1..0.3).contains(&share), "a fifth of a CPU was {share}: {exit:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_fork_bomb_dies_inside() {
    let daemon = Daemon::start(|setup| setup.pool(2).provider("pids_max", 40)).await;
    let mut request = shell("sh -c 'f() { f | f & }; f' & exec sleep 1000");
    request.timeout_ms = Some(4000);
    let execution = daemon.client.create(&request).await.unwrap();
    let container = daemon.container(&execution.container.unwrap()).await;
    let cgroup = ContainerCgroup::of(&container);
    eventually("the kernel refuses it more processes", || async { (cgroup.pids_refused() > 0).then_some(()) }).await;
    assert!(cgroup.pids_now() <= 40);
    // The daemon and the other containers do not even notice.
    daemon.sh("echo fine").await.exited(0);
    daemon.client.cancel(&execution.id).await.unwrap();
    Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
    daemon.gone(&container).await;
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn everything_written_shares_one_quota() {
    let daemon = Daemon::start(|setup| setup.pool(1).provider("resources.run.memory_mib", 256)).await;
    let script = "cd; dd if=/dev/zero of=/tmp/a bs=1M count=60 2>/dev/null && echo sixty in /tmp; \
                  dd if=/dev/zero of=b bs=1M count=60 2>&1 | grep -o 'No space left on device'; \
                  echo x > /dev/shm/c || echo none for shm either; rm /tmp/a b; \
                  dd if=/dev/zero of=c bs=1M count=90 2>/dev/null && echo given back";
    let outcome = daemon.sh(script).await.exited(0);
    assert_eq!(outcome.text(), "sixty in /tmp\nNo space left on device\nnone for shm either\ngiven back\n");
    daemon.stop().await;
}

#[tokio::test]
async fn the_number_of_files_is_limited_too() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.ephemeral_inodes", 200)).await;
    let script = "cd /tmp; i=0; while [ $i -lt 300 ]; do true > f$i || break; i=$((i+1)); done 2>/dev/null; ls | wc -l";
    let made: u32 = daemon.sh(script).await.exited(0).text().trim().parse().unwrap();
    assert!(made > 150 && made < 200, "{made} files");
    let outcome = daemon.sh("cd ~/.test; i=0; while [ $i -lt 99 ]; do true > f$i; i=$((i+1)); done; ls | wc -l").await;
    assert_eq!(outcome.exited(0).text(), "99\n", "the next one has its own");
    daemon.stop().await;
}

#[tokio::test]
async fn open_files_are_limited() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.open_files", 64)).await;
    let mut program = Program::default();
    for _ in 0..80 {
        program.call(libc::SYS_open, &[c"/dev/null".into(), Value::Number(0)]);
    }
    let outcome = daemon.run(&program.request()).await.exited(0);
    let results = program.results(&outcome.stdout);
    let opened = results.iter().filter(|result| **result >= 0).count();
    assert_eq!(opened, 61, "64 with the standard three: {results:?}");
    assert!(results[61..].iter().all(|result| *result == -i64::from(EMFILE)));
    daemon.stop().await;
}

#[tokio::test]
async fn a_cli_that_says_nothing_is_given_up() {
    let daemon = Daemon::start(|setup| setup.pool(0).add_provider(SILENT)).await;
    let outcome = daemon.run(&prompt("silent", "quiet")).await.ended(ExitReason::Timeout);
    let exit = outcome.exit;
    assert!(exit.detail.as_ref().unwrap().contains("start timeout of 1000 ms"), "{exit:?}");
    assert!(exit.duration_ms >= 1000 && exit.duration_ms < 20_000, "{exit:?}");
    // One that has said something may take its time.
    let outcome = daemon.run(&prompt("silent", "speak")).await.exited(0);
    assert_eq!(outcome.text(), "hello\n");
    // And commands are nobody's CLI.
    let mut quiet = command(["sleep", "1.5"]);
    quiet.provider = "silent".to_owned();
    daemon.run(&quiet).await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn the_time_limit_is_the_smallest_that_applies() {
    let daemon =
        Daemon::start(|setup| setup.pool(1).set("execution.max_timeout_ms", 1500).provider("timeouts.default_s", 1))
            .await;
    let exit = daemon.sh("sleep 1000").await.ended(ExitReason::Timeout).exit;
    assert!(exit.detail.unwrap().contains("1000 ms"), "the manifest's");
    for (timeout, accepted) in [(0, false), (1500, true), (1501, false)] {
        let mut request = shell("true");
        request.timeout_ms = Some(timeout);
        assert_eq!(daemon.client.create(&request).await.is_ok(), accepted, "{timeout} ms");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn output_without_end_neither_ends_nor_fills_the_daemon() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("execution.output_bytes", 256 << 10)).await;
    let before = support::resident_bytes(daemon.pid());
    let mut request = command(["yes", "a line that is repeated for ever and ever"]);
    request.timeout_ms = Some(if in_bed() { 4000 } else { 2000 });
    let mut stream = daemon.client.execute_stream(&request).await.unwrap();
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event.unwrap().1);
    }
    let Some(Event::Exit(exit)) = last else { panic!("no exit: {last:?}") };
    assert_eq!(exit.reason, ExitReason::Timeout);
    let grown = support::resident_bytes(daemon.pid()).saturating_sub(before);
    assert!(grown < 16 * MIB, "grew by {grown} bytes");
    daemon.stop().await;
}

#[tokio::test]
async fn a_body_or_an_argument_that_is_too_large_starts_nothing() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("api.max_body_bytes", 400_000)).await;
    let warm = daemon.settled().await[0].id.clone();
    let post = |request: ExecutionRequest| {
        let daemon = &daemon;
        async move {
            let body = serde_json::to_vec(&request).unwrap();
            daemon.http("POST /v1/executions", &[("content-type", "application/json")], &body).await
        }
    };
    let long = |bytes: usize| "x".repeat(bytes);
    // 131072 bytes with the final NUL is the kernel's limit for one argument (execve(2), MAX_ARG_STRLEN).
    let fits = post(command(["true", &long(131_071)])).await;
    assert_eq!(fits.status, 201, "{}", fits.text());
    let id: thaw_client::types::Execution = serde_json::from_slice(&fits.body).unwrap();
    Outcome::of(daemon.client.events(&id.id, None).await.unwrap()).await.exited(0);
    let next = daemon.settled().await[0].id.clone();
    assert_ne!(next, warm);

    for (what, request, status, code) in [
        ("one argument", command(["true", &long(131_072)]), 400, "invalid_command"),
        ("all together", command(["true", &long(131_000), &long(131_000)]), 400, "invalid_command"),
        ("too many", command(std::iter::repeat_n("a", 600)), 400, "invalid_command"),
        ("the body", command(["true", &long(400_000)]), 413, "body_too_large"),
    ] {
        let answer = post(request).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (status, code), "{what}: {}", answer.text());
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(daemon.settled().await[0].id, next, "nothing was claimed");
    daemon.stop().await;
}
