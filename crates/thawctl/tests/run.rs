//! `thawctl run`, the real program, against a server that speaks the API: output, exit codes, signals, secrets.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod fake;

use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use fake::{Cut, Fake, Script, exit, problem, started, success};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

fn thawctl(fake: &Fake, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thawctl"));
    command.args(args).env("THAWD_SOCKET", &fake.socket).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn output(command: &mut Command) -> Output {
    tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("thawctl hangs").unwrap()
}

async fn wait(child: Child) -> Output {
    tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.expect("thawctl hangs").unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits until a verbose thawctl says that the command runs; it knows the execution's id by then.
async fn started_line(child: &mut Child) {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let byte = child.stderr.as_mut().unwrap().read_u8();
        line.push(tokio::time::timeout(Duration::from_secs(20), byte).await.expect("nothing started").unwrap());
    }
    assert!(line.starts_with(b"thawctl: started e-1"), "{}", text(&line));
}

fn delta(text: &str) -> (&'static str, Value) {
    ("delta", json!({ "text": text }))
}

fn stdout(data: &str) -> (&'static str, Value) {
    ("stdout", json!({ "data": data }))
}

fn prompt_events() -> Vec<(&'static str, Value)> {
    vec![
        started(),
        stdout("{\"text\":\"201\"}\n"),
        ("stderr", json!({ "data": "banner\n" })),
        delta("20"),
        delta("1"),
        success(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_missing_is_a_failure() {
    let gap = ("gap", json!({ "from": 2, "to": 5 }));
    let fake =
        Fake::start(Script { events: vec![started(), gap, stdout("the rest\n"), success()], ..Script::default() });
    for args in [&["run", "openai", "--", "x"][..], &["run", "--json", "openai", "--", "x"], &["logs", "e-1"]] {
        let done = output(&mut thawctl(&fake, args)).await;
        assert_eq!(done.status.code(), Some(125), "{args:?}: {}", text(&done.stderr));
        assert!(text(&done.stderr).contains("gap: 4 events are missing"), "{args:?}: {}", text(&done.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_prints_its_answer_and_nothing_else() {
    let fake = Fake::start(Script { events: prompt_events(), ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "3*67", "--model", "m", "--timeout", "2.5"])).await;
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(0), "201\n", ""));
    let body = &fake.seen()[0].body;
    assert_eq!((&body["prompt"], &body["model"], &body["timeout_ms"]), (&"3*67".into(), &"m".into(), &2500.into()));
    let user = body["user"].as_str().unwrap();
    assert!(
        !user.is_empty() && user.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        "{user}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn verbose_tells_path_and_timings_and_raw_the_clis_own_output() {
    let fake = Fake::start(Script { events: prompt_events(), ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "hi", "--raw", "--verbose"])).await;
    assert_eq!(text(&done.stdout), "{\"text\":\"201\"}\n");
    let lines: Vec<_> = text(&done.stderr).lines().collect();
    assert_eq!(lines[0], "thawctl: started e-1 in container c-1 path=warm prestarted=false claim_us=540");
    assert_eq!(lines[1], "banner");
    assert!(
        lines[2].starts_with("thawctl: exit code=0 signal=- reason=exited success=true duration_ms=12 "),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_bytes_go_to_their_own_streams() {
    let events = vec![
        started(),
        stdout("out\n"),
        ("stderr", json!({ "data": "err\n" })),
        ("stdout", json!({ "data": "/wD+", "encoding": "base64" })),
        ("exit", exit(json!({ "code": 3 }))),
    ];
    let fake = Fake::start(Script { events, ..Script::default() });
    let done =
        output(&mut thawctl(&fake, &["run", "openai", "-e", "A=b=c", "-l", "k=v", "--", "sh", "-c", "exit 3"])).await;
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(3), "err\n"));
    assert_eq!(done.stdout, b"out\n\xff\x00\xfe");
    let body = &fake.seen()[0].body;
    assert_eq!(body["command"], json!(["sh", "-c", "exit 3"]));
    assert_eq!((&body["env"], &body["labels"]), (&json!({ "A": "b=c" }), &json!({ "k": "v" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_not_noticed() {
    let cuts = [Cut::Torn(3), Cut::Ended(4)].into();
    let fake = Fake::start(Script { events: prompt_events(), cuts, ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "hi"])).await;
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(0), "201\n", ""));
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_gives_each_event_as_a_line() {
    let fake = Fake::start(Script { events: prompt_events(), ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "hi", "--json"])).await;
    let lines: Vec<Value> = text(&done.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> =
        lines.iter().map(|line| (line["id"].as_u64().unwrap(), line["event"].as_str().unwrap())).collect();
    assert_eq!(names, [(1, "started"), (2, "stdout"), (3, "stderr"), (4, "delta"), (5, "delta"), (6, "exit")]);
    assert_eq!(lines[3]["data"], json!({ "text": "20" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_tells_how_it_ended() {
    let table = [
        (json!({ "code": 0, "success": true }), 0, ""),
        (json!({ "code": 0, "detail": "401 Unauthorized" }), 1, "reports a failure: 401 Unauthorized"),
        (json!({ "code": 127 }), 127, "exit code 127"),
        (json!({ "signal": 15 }), 143, "signal 15"),
        (json!({ "reason": "timeout", "signal": 9 }), 124, "timed out after 0.0 s: the limit is that of [timeouts]"),
        (json!({ "reason": "oom", "signal": 9 }), 137, "out of memory"),
        (json!({ "reason": "lost", "detail": "init is gone" }), 125, "init is gone"),
    ];
    for (changes, code, message) in table {
        let fake =
            Fake::start(Script { events: vec![started(), delta("x"), ("exit", exit(changes))], ..Script::default() });
        let done = output(&mut thawctl(&fake, &["run", "openai", "hi"])).await;
        assert_eq!(done.status.code(), Some(code), "{message}");
        assert_eq!(text(&done.stdout), "x\n");
        let stderr = text(&done.stderr);
        assert!(stderr.contains(message) && stderr.lines().count() == usize::from(!message.is_empty()), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_one_line_and_125() {
    let refuse = Some((422, problem(422, "credentials_missing", "openai needs\ncredentials: pass --file", false)));
    let fake = Fake::start(Script { refuse, ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "hi"])).await;
    assert_eq!(done.status.code(), Some(125));
    assert_eq!(text(&done.stderr), "thawctl: openai needs credentials: pass --file (credentials_missing)\n");
    assert!(done.stdout.is_empty());

    let mut nowhere = thawctl(&fake, &["run", "openai", "hi", "--socket", "/nonexistent/s"]);
    let done = output(&mut nowhere).await;
    assert_eq!(done.status.code(), Some(125));
    assert!(text(&done.stderr).contains("is thawd running?") && text(&done.stderr).lines().count() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_printed_as_it_comes_and_ctrl_c_cancels_and_waits() {
    let events = vec![started(), delta("first"), ("exit", exit(json!({ "reason": "cancelled", "signal": 9 })))];
    let fake = Fake::start(Script { events, wait_for_cancel: true, ..Script::default() });
    let mut child = thawctl(&fake, &["run", "openai", "hi"]).spawn().unwrap();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first");
    assert!(!fake.seen().iter().any(|seen| seen.what.ends_with("/cancel")));

    signal(&child, Signal::INT);
    let done = wait(child).await;
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(130), "\n"));
    assert_eq!(text(&done.stderr), "thawctl: cancelled\n");
    assert_eq!(fake.seen().iter().filter(|seen| seen.what == "POST /v1/executions/e-1/cancel").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    let fake = Fake::start(Script { events: vec![started(), success()], never_ends: true, ..Script::default() });
    let mut child = thawctl(&fake, &["run", "openai", "-v", "hi"]).spawn().unwrap();
    started_line(&mut child).await;
    signal(&child, Signal::TERM);
    fake.wait_for("POST /v1/executions/e-1/cancel").await;
    signal(&child, Signal::TERM);
    assert_eq!(wait(child).await.status.code(), Some(143));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_work_while_nobody_reads_the_output() {
    let flood = (0..64).map(|_| stdout(&"x".repeat(10_000)));
    let events = [started()].into_iter().chain(flood).chain([success()]).collect();
    let fake = Fake::start(Script { events, ..Script::default() });
    let mut child = thawctl(&fake, &["run", "openai", "--", "yes"]).spawn().unwrap();
    let pipe = child.stdout.take().unwrap();
    // A pipe takes at most 64 KiB; where it no longer grows, a write blocks.
    let full = async {
        let mut before = 0;
        while before < 40_000 || rustix::io::ioctl_fionread(&pipe).unwrap() != before {
            before = rustix::io::ioctl_fionread(&pipe).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), full).await.expect("the pipe never fills");
    signal(&child, Signal::INT);
    fake.wait_for("POST /v1/executions/e-1/cancel").await;
    signal(&child, Signal::INT);
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.expect("stuck in a write").unwrap();
    assert_eq!((status.code(), status.signal()), (Some(130), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_it_quietly() {
    let events = [started()].into_iter().chain((0..100).map(|_| stdout("y\n"))).chain([success()]).collect();
    let fake = Fake::start(Script { events, wait_for_cancel: true, ..Script::default() });
    let mut child = thawctl(&fake, &["run", "openai", "--", "yes"]).spawn().unwrap();
    drop(child.stdout.take());
    let done = wait(child).await;
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(141), ""));
    assert!(fake.seen().iter().any(|seen| seen.what == "POST /v1/executions/e-1/cancel"));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_travel_in_the_body_and_are_seen_nowhere_else() {
    let fake = Fake::start(Script { events: vec![started(), success()], never_ends: true, ..Script::default() });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"token\":\"s3cret-file\"}\n").unwrap();
    let file_arg = format!("auth.json={}", file.path().display());
    let args = ["run", "openai", "hi", "-v", "--file", &file_arg, "--credential-env", "TEST_API_KEY"];
    let mut child = thawctl(&fake, &args).env("TEST_API_KEY", "s3cret-env").spawn().unwrap();
    started_line(&mut child).await;
    let argv = std::fs::read(format!("/proc/{}/cmdline", child.id().unwrap())).unwrap();
    assert!(!String::from_utf8_lossy(&argv).contains("s3cret"));
    assert_eq!(
        fake.seen()[0].body["credentials"],
        json!({ "files": { "auth.json": "{\"token\":\"s3cret-file\"}\n" }, "env": { "TEST_API_KEY": "s3cret-env" } })
    );
    signal(&child, Signal::INT);
    fake.wait_for("POST /v1/executions/e-1/cancel").await;
    signal(&child, Signal::INT);
    let done = wait(child).await;
    assert!(!text(&done.stderr).contains("s3cret") && !text(&done.stdout).contains("s3cret"));

    let done = output(&mut thawctl(&fake, &["run", "openai", "hi", "--file", "auth.json=/nonexistent/a"])).await;
    assert_eq!(done.status.code(), Some(125));
    assert!(text(&done.stderr).contains("cannot read the credential file /nonexistent/a"));
    assert_eq!(fake.seen().iter().filter(|seen| seen.what == "POST /v1/executions").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_comes_from_stdin() {
    let fake = Fake::start(Script { events: prompt_events(), ..Script::default() });
    let mut child = thawctl(&fake, &["run", "openai", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all("was ist\n3*67?".as_bytes()).await.unwrap();
    drop(stdin);
    assert_eq!(text(&wait(child).await.stdout), "201\n");
    assert_eq!(fake.seen()[0].body["prompt"], "was ist\n3*67?");
}

#[tokio::test(flavor = "multi_thread")]
async fn detach_prints_the_id_and_asks_for_the_background() {
    let fake = Fake::start(Script::default());
    let done = output(&mut thawctl(&fake, &["run", "openai", "--detach", "--user", "u-7", "hi"])).await;
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(0), "e-1\n", ""));
    let body = &fake.seen()[0].body;
    assert_eq!((&body["background"], &body["user"]), (&true.into(), &"u-7".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_125_and_starts_nothing() {
    let fake = Fake::start(Script::default());
    for args in [&["run", "openai"][..], &["run", "openai", "a", "--", "b"], &["run", "openai", "a", "--env", "A"]] {
        let done = output(&mut thawctl(&fake, args)).await;
        assert_eq!(done.status.code(), Some(125), "{args:?}");
        assert!(!done.stderr.is_empty());
    }
    assert!(fake.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_passed_on_with_i_and_never_swallowed_without() {
    let fake = Fake::start(Script { events: vec![started(), success()], ..Script::default() });
    let piped = |args: &[&str], bytes: &'static [u8]| {
        let mut child = thawctl(&fake, args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        async move {
            // It may leave without reading.
            let _ = stdin.write_all(bytes).await;
            drop(stdin);
            wait(child).await
        }
    };
    let done = piped(&["run", "openai", "-i", "--", "wc", "-c"], b"a\0\xff").await;
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(fake.seen()[0].body["stdin"], json!({ "base64": "YQD/" }));
    let done = piped(&["run", "openai", "-i", "--", "cat"], b"text\n").await;
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(fake.seen()[1].body["stdin"], "text\n");

    let done = piped(&["run", "openai", "--", "wc", "-c"], b"lost").await;
    assert_eq!(done.status.code(), Some(125));
    let said = text(&done.stderr);
    assert!(said.contains("-i") && said.contains("< /dev/null") && said.lines().count() == 1, "{said}");
    assert_eq!(fake.seen().len(), 2, "nothing was started");

    let done = piped(&["run", "openai", "--", "true"], b"").await;
    assert_eq!(done.status.code(), Some(0), "an empty pipe loses nothing");
    assert_eq!(fake.seen()[2].body.get("stdin"), None);
    let done = piped(&["run", "openai", "-i", "a prompt"], b"").await;
    assert_eq!(done.status.code(), Some(125), "a prompt and input exclude each other");
    let done = piped(&["run", "openai", "a prompt"], b"lost").await;
    assert_eq!(done.status.code(), Some(125), "beside a prompt nobody reads either");
    assert!(text(&done.stderr).contains("give `-` as the prompt"), "{}", text(&done.stderr));
    assert_eq!(fake.seen().len(), 3, "nothing was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_names_and_entrypoints_travel_in_their_fields() {
    let fake = Fake::start(Script { events: vec![started(), success()], ..Script::default() });
    let args = ["run", "--rm", "--name", "mine", "-m", "64m", "--cpus", "0.25", "--image", "x", "--entrypoint", "sh"];
    let done = output(thawctl(&fake, &args).args(["--", "-c", "id"])).await;
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let body = &fake.seen()[0].body;
    assert_eq!((&body["memory_bytes"], &body["cpus"]), (&(64 << 20).into(), &0.25.into()));
    assert_eq!((&body["entrypoint"], &body["command"]), (&json!(["sh"]), &json!(["-c", "id"])));
    assert_eq!(body["labels"], json!({ "name": "mine" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_fields_are_told_as_options() {
    let refuse = Some((400, problem(400, "invalid_field", "`timeout_ms` must be from 1 to 3600000", false)));
    let fake = Fake::start(Script { refuse, ..Script::default() });
    let done = output(&mut thawctl(&fake, &["run", "openai", "hi", "--timeout", "1e9"])).await;
    assert_eq!(text(&done.stderr), "thawctl: --timeout must be from 0.001 s to 3600 s (invalid_field)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_come_from_files_and_the_directory_from_an_option() {
    let fake = Fake::start(Script { events: vec![started(), success()], ..Script::default() });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# ours\nA=from file\nB=b\nHERE\n").unwrap();
    let args =
        ["run", "openai", "--env-file", file.path().to_str().unwrap(), "-e", "A=given", "-w", "/tmp", "--", "env"];
    let done = output(thawctl(&fake, &args).env("HERE", "h")).await;
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let body = &fake.seen()[0].body;
    assert_eq!(body["env"], json!({ "A": "given", "B": "b", "HERE": "h" }));
    assert_eq!(body["workdir"], "/tmp");
    let done = output(&mut thawctl(&fake, &["run", "openai", "--env-file", "/nonexistent/e", "--", "env"])).await;
    assert_eq!(done.status.code(), Some(125));
    assert!(text(&done.stderr).contains("/nonexistent/e"));
}
