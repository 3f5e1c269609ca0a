//! Files in a directory that belongs to a container: put there before anything of its user's runs ([`put`]), fetched when
//! everything in it has been killed ([`collect`]).
//!
//! All of it starts from a descriptor of the directory, and no path is resolved by the process's own root. Links are made
//! and kept as links and never followed; what is opened is a regular file or a directory.
//!
//! Deliberately absent: what the files are for, and who may see them.

mod collect;
mod index;
mod put;

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use collect::{Collected, Limits, Problem, collect};
pub(crate) use collect::{Rules, pack};
pub use index::{Index, Item, Kind};
pub(crate) use put::parents;
pub use put::{Entry, PutError, What, put};

/// Longest path, bytes (`PATH_MAX` with its final zero, limits.h(0p)).
pub const MAX_PATH: usize = 4095;

/// Longest name, bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Most directories above one another.
pub const MAX_DEPTH: usize = 64;

/// How every path is resolved.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens what `fd` looks at (`O_PATH`), and nothing else: not by its name, which may mean something else by now.
pub(crate) fn reopen(fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: whoever holds a lease on it (fcntl(2)) would let a plain open wait.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())
}

/// A path for people: on one line, as it is where it is plain text.
pub fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(|char| {
            let plain = !char.is_control();
            plain.then_some(char).into_iter().chain((!plain).then(|| char.escape_default()).into_iter().flatten())
        }));
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A path that was given from outside, below `top`, relative to it and without anything to resolve. Empty for `top` itself.
///
/// # Errors
/// Why it is none, as a fragment.
pub fn relative(path: &[u8], top: &str) -> Result<Vec<u8>, &'static str> {
    let rest = match path {
        [] => return Err("is empty"),
        [b'/', ..] => match path.strip_prefix(top.as_bytes()) {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
            _ => return Err("is not below /workspace"),
        },
        _ => path,
    };
    if rest.contains(&0) {
        return Err("contains a zero byte");
    }
    let parts: Vec<&[u8]> = rest.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err("contains `..`");
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err("has a name of more than 255 bytes");
    }
    if parts.len() > MAX_DEPTH {
        return Err("lies in more than 64 directories");
    }
    let clean = parts.join(&b'/');
    if clean.len() > MAX_PATH { Err("is longer than 4095 bytes") } else { Ok(clean) }
}

#[cfg(test)]
mod tests {
    use super::{relative, shown};

    #[test]
    fn paths_are_cleaned_or_refused() {
        for (given, clean) in [
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("/workspace/a", "a"),
            ("/workspace", ""),
            (".", ""),
            ("a\nb", "a\nb"),
            ("workspace/a", "workspace/a"),
        ] {
            assert_eq!(relative(given.as_bytes(), "/workspace").unwrap(), clean.as_bytes(), "{given:?}");
        }
        let deep = "d/".repeat(65);
        for bad in ["", "/", "/etc/passwd", "/workspacex", "a/../b", "..", "a\0b", &"x".repeat(256), &deep] {
            assert!(relative(bad.as_bytes(), "/workspace").is_err(), "{bad:?}");
        }
        assert!(relative("d/".repeat(64).as_bytes(), "/workspace").is_ok());
    }

    #[test]
    fn a_path_is_shown_on_one_line() {
        assert_eq!(shown("ä b".as_bytes()), "ä b");
        assert_eq!(shown(b"a\nb\xff\x1b[2J"), "a\\nb\\xff\\u{1b}[2J");
    }
}
