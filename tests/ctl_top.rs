//! `thawctl top`, the real program, against a real daemon.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::process::{Command as StdCommand, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Daemon, eventually, shell};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

fn top(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(support::programs::thawctl());
    command.arg("top").args(arguments).env("THAWD_SOCKET", daemon.socket()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn once(daemon: &Daemon, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = top(daemon, arguments).output().await.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn one_look_shows_executions_and_pools() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let busy = daemon.client.create(&shell("while :; do :; done")).await.unwrap();
    let idle = daemon.client.create(&shell("sleep 1000")).await.unwrap();

    let look: Value = serde_json::from_str(&once(&daemon, &["--once", "--json"]).await).unwrap();
    let rows = look["executions"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{look}");
    let (first, second) = (&rows[0], &rows[1]);
    assert_eq!(
        (&first["execution"], &second["execution"]),
        (&busy.id.into(), &idle.id.clone().into()),
        "the busiest first"
    );
    assert_eq!((&first["provider"], &first["user"]), (&"test".into(), &"u1".into()));
    // It may use half a CPU, and a burst more; the machine may give it less.
    let cpu = first["cpu_percent"].as_f64().unwrap();
    assert!((5.0..=110.0).contains(&cpu), "{cpu}");
    assert_eq!(first["cpu_limit_percent"], 50.0);
    assert!(second["cpu_percent"].as_f64().unwrap() < 5.0, "{second}");
    assert!(first["memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!(first["memory_limit_bytes"], 128 << 20);
    assert!(look["pools"].as_array().unwrap().iter().any(|pool| pool["provider"] == "test" && pool["target"] == 1));

    let text = once(&daemon, &["--once"]).await;
    assert!(text.starts_with("2 executions, 0 waiting, "), "{text}");
    let line = text.lines().find(|line| line.starts_with(&idle.id[..14])).unwrap();
    for cell in ["test", "u1", "50 %", "iB"] {
        assert!(line.contains(cell), "{cell} in {line}");
    }
    assert!(text.contains("THROTTLED") && !text.contains('\x1b'));
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_terminal_tables_follow_each_other_until_a_signal() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let mut child = top(&daemon, &["--interval", "0.1"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    while text.matches("POOL ").count() < 3 {
        let mut buffer = [0; 4096];
        let read = out.read(&mut buffer).await.unwrap();
        assert!(read > 0, "it ended: {text}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(!text.contains('\x1b'), "{text}");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    let wrong = top(&daemon, &["--interval", "0"]).output().await.unwrap();
    assert_eq!(wrong.status.code(), Some(125));
    daemon.stop().await;
}

/// Runs it on a terminal of its own (script(1)) and does something to it; what was on the terminal, and the exit code.
async fn on_a_terminal(daemon: &Daemon, keys: &str, sent: Option<Signal>) -> (String, Option<i32>) {
    let program = format!("exec {} top --interval 0.1", support::programs::thawctl());
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &program, "/dev/null"]);
    script.env("THAWD_SOCKET", daemon.socket()).env("TERM", "xterm").kill_on_drop(true);
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    while !text.contains("POOL ") {
        let mut buffer = [0; 4096];
        let read =
            tokio::time::timeout(Duration::from_secs(20), out.read(&mut buffer)).await.expect("it shows something");
        let read = read.unwrap();
        assert!(read > 0 && text.len() < 100_000, "it ended, or shows no tables: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    if let Some(sent) = sent {
        let own = eventually("the program is found", || async {
            let of =
                StdCommand::new("pgrep").args(["-P", &child.id().unwrap().to_string(), "thawctl"]).output().unwrap();
            String::from_utf8(of.stdout).unwrap().trim().parse::<i32>().ok()
        })
        .await;
        kill_process(Pid::from_raw(own).unwrap(), sent).unwrap();
    }
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, keys.as_bytes()).await.unwrap();
    let rest = async {
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).await.unwrap();
        rest
    };
    let rest = tokio::time::timeout(Duration::from_secs(20), rest).await.expect("it leaves");
    text.push_str(&String::from_utf8_lossy(&rest));
    (text, child.wait().await.unwrap().code())
}

#[tokio::test]
async fn a_terminal_is_left_as_it_was() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    // Other keys are not shown, and do nothing.
    for (what, keys, sent, code) in
        [("q", "xyzzyq", None, 0), ("Ctrl-C", "\x03", None, 0), ("SIGTERM", "", Some(Signal::TERM), 143)]
    {
        let (text, ended) = on_a_terminal(&daemon, keys, sent).await;
        assert_eq!(ended, Some(code), "{what}: {text:?}");
        assert!(text.contains("\x1b[?1049h\x1b[?25l") && !text.contains("xyzzy"), "{what}: {text:?}");
        assert!(text.trim_end().ends_with("\x1b[?25h\x1b[?1049l"), "{what}: {text:?}");
    }
    daemon.stop().await;
}

/// Reads until the text has so many of these.
async fn until(out: &mut tokio::process::ChildStdout, text: &mut String, what: &str, times: usize) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while text.matches(what).count() < times {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout_at(end, out.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| panic!("no {times} of {what:?} in {text:?}")).unwrap();
        assert!(read > 0, "it ended: {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[tokio::test]
async fn ctrl_z_gives_the_terminal_back_and_fg_takes_it_again() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    // A shell with job control: nothing stops in a process group that nobody could continue (SIGTSTP, signal(7)).
    let program = format!("exec bash --norc -ic '{} top --interval 0.1; fg'", support::programs::thawctl());
    let mut script = Command::new("script");
    script.args(["--quiet", "--flush", "--return", "--command", &program, "/dev/null"]);
    script.env("THAWD_SOCKET", daemon.socket()).env("TERM", "xterm").kill_on_drop(true);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut out, mut text) = (child.stdout.take().unwrap(), String::new());
    until(&mut out, &mut text, "POOL ", 1).await;
    let below = |parent: i32, name: &str| -> i32 {
        let found = StdCommand::new("pgrep").args(["-P", &parent.to_string(), name]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().trim().parse().unwrap()
    };
    let own = below(below(child.id().unwrap() as i32, "bash"), "thawctl");
    kill_process(Pid::from_raw(own).unwrap(), Signal::TSTP).unwrap();
    // The shell has it in the foreground again as soon as it has stopped.
    until(&mut out, &mut text, "Stopped", 1).await;
    until(&mut out, &mut text, "\x1b[?1049h", 2).await;
    assert!(text.contains("\x1b[?25h\x1b[?1049l"), "the shell had the terminal as it was: {text:?}");
    let tables = text.matches("POOL ").count();
    until(&mut out, &mut text, "POOL ", tables + 2).await;

    // A daemon that is gone is told above what was seen last; one that is back is shown again.
    daemon.kill();
    until(&mut out, &mut text, "this is from before", 1).await;
    until(&mut out, &mut text, "this is from before: cannot connect", 1).await;
    daemon.launch().await;
    let tables = text.matches("POOL ").count();
    until(&mut out, &mut text, "POOL ", tables + 3).await;
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"q").await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    daemon.stop().await;
}
