//! What the program says when it is not told what to do. What it does when it is told: `tests/unified.rs`.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::process::Command;

#[test]
fn without_a_provider_it_says_so_and_fails() {
    let output = Command::new(env!("CARGO_BIN_EXE_thaw-unified")).env_clear().output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("PROVIDER") && output.stdout.is_empty(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
