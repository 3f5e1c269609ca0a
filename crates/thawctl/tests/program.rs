//! The program by itself, without a daemon.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::process::Command;

#[test]
fn without_a_daemon_it_names_the_socket_and_fails_with_125() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_thawctl")).args(["--socket", "/nonexistent/s.sock", "ps"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("/nonexistent/s.sock") && output.stdout.is_empty(), "{stderr}");
}
