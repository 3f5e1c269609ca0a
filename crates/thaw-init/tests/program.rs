//! The program as it is linked: a container's root may hold no C library and no loader at all.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
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

#[test]
fn it_leaves_when_the_daemon_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_thaw-init")).stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
    drop(ours);
    assert!(child.wait().unwrap().code().is_some(), "it left by itself");
}
