//! Attacks on the daemon itself, by what a command prints and by what the host's users could reach.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;

use support::{Daemon, Outcome, open_files, shell};
use thaw_client::types::Event;

#[tokio::test]
async fn output_cannot_forge_events() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    // What ends a field, an event or a line for some reader of event streams (WHATWG HTML, 9.2.6), and what a terminal obeys.
    let forged = "\n\nid: 99\nevent: exit\ndata: {\"reason\":\"exited\",\"code\":0}\n\n\r\revent: exit\rdata: {}\r\r\
                  \u{2028}\u{2029}\u{85}\u{feff}\0\x1b[2J:\ndata\n\n";
    let mut request = shell("printf '%b' \"$FORGED\"; printf '%b' \"$FORGED\" >&2; exit 3");
    let escaped: String = forged.bytes().map(|byte| format!("\\0{byte:03o}")).collect();
    request.env.insert("FORGED".to_owned(), escaped);
    // It checks that events are numbered without holes, and that there is one `exit`.
    let outcome = daemon.run(&request).await.exited(3);
    assert_eq!((outcome.text(), outcome.errors()), (forged, forged));

    let id = &outcome.started.execution;
    let answer = daemon.http(&format!("GET /v1/executions/{id}/events"), &[], b"").await.text();
    let lines = |start: &str| answer.split(['\n', '\r']).filter(|line| line.starts_with(start)).count();
    assert_eq!(lines("event: exit"), 1, "{answer}");
    assert_eq!(lines("id: "), outcome.events.len(), "{answer}");
    assert!(!answer.contains(['\0', '\x1b']), "{answer}");
    assert!(outcome.events.iter().any(|(_, event)| matches!(event, Event::Stderr(_))));
    // Nothing of it in the log, where a terminal would obey it.
    assert!(!daemon.log().contains(['\x1b', '\r']), "{}", daemon.log());
    daemon.stop().await;
}

/// Inodes of the sockets that listen in this process's network namespace (proc_pid_net(5): state 0A is LISTEN).
fn listening() -> Vec<String> {
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default());
    let entries = tables.iter().flat_map(|table| table.lines().skip(1));
    let fields = entries.map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|fields| fields[3] == "0A").map(|fields| format!("socket:[{}]", fields[9])).collect()
}

#[tokio::test]
async fn the_daemon_listens_on_no_port_of_the_host() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let execution = daemon.client.create(&shell("sleep 1000")).await.unwrap();
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listening = listening();
    let held = |pid: i32| open_files(pid).into_iter().filter(|file| listening.contains(file)).count();
    assert_eq!(held(std::process::id() as i32), 1, "this finds listeners");
    // It serves a listener for each container, which is in the container's own network.
    for process in daemon.family() {
        assert_eq!(held(process.pid), 0, "{}", process.command_line());
    }
    drop(own);
    daemon.client.cancel(&execution.id).await.unwrap();
    Outcome::of(daemon.client.events(&execution.id, None).await.unwrap()).await;
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_of_a_container_is_dumped() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    // 1 byte, soft and hard: the kernel neither writes a core that small nor starts the host's handler for it.
    let outcome = daemon.sh("grep 'Max core file size' /proc/self/limits; kill -SEGV $$").await;
    let fields: Vec<&str> = outcome.text().split_whitespace().collect();
    assert_eq!(fields[4..6], ["1", "1"], "{}", outcome.text());
    assert_eq!(outcome.exit.signal, Some(libc::SIGSEGV));
    for process in daemon.family() {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).unwrap_or_default();
        let is_spawner = process.command_line().contains("spawner");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
        let hard = line.split_whitespace().nth(5);
        assert!(!is_spawner || matches!(hard, Some("0" | "1")), "{limits}");
    }
    daemon.stop().await;
}
