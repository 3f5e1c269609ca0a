//! The program as it is linked: a container's root may hold no C library and no loader at all.
//!
//! It is started here only as a user that nobody else is: its last act is to kill every process that it may signal.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// elf(5): type of a program header that names a loader, and of the table of shared libraries.
const PT_INTERP: u32 = 3;
const PT_DYNAMIC: u32 = 2;

#[test]
fn it_is_static_and_small() {
    let file = fs::read(env!("CARGO_BIN_EXE_thaw-init")).unwrap();
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let half = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap());
    let (headers, size, count) = (word(32) as usize, usize::from(half(54)), usize::from(half(56)));
    assert_eq!(&file[..4], b"\x7fELF");
    assert!(count > 1, "{count} program headers");
    for header in (0..count).map(|index| headers + index * size) {
        let kind = u32::from_le_bytes(file[header..header + 4].try_into().unwrap());
        assert!(kind != PT_INTERP && kind != PT_DYNAMIC, "program header of type {kind}");
    }
}

/// A user id that no account and no container has.
const NOBODY_ELSE: u32 = 60_123;

#[test]
fn outside_a_pid_namespace_of_its_own_it_refuses_to_run() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_thaw-init"), &program).unwrap();
    let mut command = Command::new(&program);
    let status = command.uid(NOBODY_ELSE).gid(NOBODY_ELSE).stdin(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(104));
}
