//! What is written about thawd, against what thawd is: man pages, completions, and the pages of `docs/` that name numbers
//! and tests.

#![allow(clippy::unwrap_used)]

mod benchmarks;
mod completions;
mod limits;
mod man;
mod pages;
mod problems;
mod seccomp;
mod specification;

#[path = "../support/programs.rs"]
mod programs;

use std::process::Command;

use tempfile::TempDir;

/// The two programs that write pages of their own.
fn both_programs() -> [(&'static str, String); 2] {
    [("thawd", env!("CARGO_BIN_EXE_thawd").to_owned()), ("thawctl", programs::thawctl())]
}

/// A folder with all that the programs write.
fn paper() -> TempDir {
    let directory = TempDir::new().unwrap();
    for (_, program) in both_programs() {
        output(Command::new(program).arg("paper").arg(directory.path()));
    }
    directory
}

/// What a command prints; it has to succeed and print nothing else.
fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; tests/deps installs it"));
    let complaints = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && complaints.is_empty(), "{command:?}: {:?}\n{complaints}", done.status);
    String::from_utf8(done.stdout).unwrap()
}
