//! From the layers of an image to its root file system, whoever wrote them.
//!
//! In two steps, so that layers can be shared. [`layer`] reads an archive into a folder of numbered files and a
//! list of what the archive says ([`content`]): no name of the archive is used on disk. [`compose`] replays the
//! lists of an image's layers into a directory, where files become hard links to the numbered ones.
//!
//! A layer is taken as an attack: every write goes through a descriptor of its parent directory that was resolved
//! within the root (`openat2`), nothing is overwritten in place, no device is made, no setuid bit or extended
//! attribute survives, and an archive that two programs could read differently is refused.

mod blocks;
mod compose;
mod content;
mod headers;
mod layer;
mod notes;
mod root;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use thaw_client::config;

pub(super) use self::compose::Composer;
pub(super) use self::content::{Contents, Entry, Kind, What};
pub(super) use self::headers::{ItemKind, each};
pub(super) use self::layer::unpack;
pub(super) use self::notes::Notes;
pub(super) use self::root::Owner;

/// What one image may cost. Reaching a limit refuses the image.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sum of the sizes of all files, bytes.
    pub unpacked_bytes: u64,
    /// Sum of the sizes of all tar archives, bytes: above `unpacked_bytes` by the headers.
    pub archive_bytes: u64,
    /// Entries of all archives, and directories that they imply.
    pub entries: u64,
    /// Sum of the lengths of all paths, bytes.
    pub path_bytes: u64,
    /// Directories above a file.
    pub depth: usize,
    /// Layers of an image.
    pub layers: usize,
    /// Size of an index, manifest or configuration, bytes.
    pub document_bytes: u64,
}

/// Bytes of paths for each entry that there may be, on average.
const PATH_BYTES: u64 = 256;
/// A header and padding for each entry at most.
const HEADER_BYTES: u64 = 1024;
/// Deeper than any real tree, shallow enough to remove it again by recursion.
pub const MAX_DEPTH: usize = 128;
/// What Docker allows.
pub const MAX_LAYERS: usize = 127;
/// 4 MiB, as registries do.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

impl From<&config::Image> for Limits {
    fn from(set: &config::Image) -> Self {
        let (unpacked_bytes, entries) = (set.max_unpacked_bytes, set.max_entries);
        Limits {
            unpacked_bytes,
            archive_bytes: unpacked_bytes.saturating_add(entries.saturating_mul(HEADER_BYTES)),
            entries,
            path_bytes: entries.saturating_mul(PATH_BYTES),
            depth: MAX_DEPTH,
            layers: MAX_LAYERS,
            document_bytes: MAX_DOCUMENT_BYTES,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        (&config::Image::default()).into()
    }
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The archive cannot be read, or only one way of several.
    #[error("archive: {0}")]
    Archive(#[source] io::Error),
    /// An entry asks for something that is not done.
    #[error("entry {path}: {reason}")]
    Entry {
        /// Its path, with odd bytes escaped.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit was reached.
    #[error("more than the limit of {limit} {what}{}", set_by(what))]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// This machine failed.
    #[error("entry {path}: {source}")]
    Io {
        /// Path of the entry, with odd bytes escaped.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The key of the configuration that a limit comes from, for a message.
fn set_by(what: &str) -> &'static str {
    match what {
        "entries" | "bytes of paths" => " (`image.max_entries` in thawd.toml)",
        "unpacked bytes" | "bytes of archives" => " (`image.max_unpacked_bytes` in thawd.toml)",
        _ => "",
    }
}

impl UnpackError {
    pub(super) fn entry(path: &[u8], reason: impl fmt::Display) -> Self {
        UnpackError::Entry { path: printable(path), reason: reason.to_string() }
    }

    pub(super) fn io(path: &[u8], source: io::Error) -> Self {
        UnpackError::Io { path: printable(path), source }
    }
}

/// Bytes for people: quoted and without control characters.
pub(super) fn printable(path: &[u8]) -> String {
    let shown = &path[..path.len().min(200)];
    format!("\"{}\"", shown.escape_ascii())
}

/// What an image has used of its limits so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Used {
    /// Sum of the sizes of files, bytes.
    pub(super) bytes: u64,
    /// Sum of the sizes of archives, bytes.
    pub(super) archive_bytes: u64,
    pub(super) entries: u64,
    pub(super) path_bytes: u64,
}

impl Used {
    fn count_bytes(&mut self, size: u64, limits: &Limits) -> Result<(), UnpackError> {
        if size > limits.unpacked_bytes.saturating_sub(self.bytes) {
            return Err(UnpackError::Limit { what: "unpacked bytes", limit: limits.unpacked_bytes });
        }
        self.bytes += size;
        Ok(())
    }

    fn count_entry(&mut self, path_length: usize, limits: &Limits) -> Result<(), UnpackError> {
        self.entries += 1;
        self.path_bytes += path_length as u64;
        if self.entries > limits.entries {
            return Err(UnpackError::Limit { what: "entries", limit: limits.entries });
        }
        if self.path_bytes > limits.path_bytes {
            return Err(UnpackError::Limit { what: "bytes of paths", limit: limits.path_bytes });
        }
        Ok(())
    }

    /// Adds a layer as a whole.
    pub(super) fn add(&mut self, layer: &Used, limits: &Limits) -> Result<(), UnpackError> {
        self.count_bytes(layer.bytes, limits)?;
        self.entries += layer.entries;
        self.path_bytes += layer.path_bytes;
        self.archive_bytes += layer.archive_bytes;
        let over = |what, limit| Err(UnpackError::Limit { what, limit });
        if self.entries > limits.entries {
            return over("entries", limits.entries);
        }
        if self.path_bytes > limits.path_bytes {
            return over("bytes of paths", limits.path_bytes);
        }
        if self.archive_bytes > limits.archive_bytes {
            return over("bytes of archives", limits.archive_bytes);
        }
        Ok(())
    }

    fn since(&self, before: &Used) -> Used {
        Used {
            bytes: self.bytes - before.bytes,
            archive_bytes: self.archive_bytes - before.archive_bytes,
            entries: self.entries - before.entries,
            path_bytes: self.path_bytes - before.path_bytes,
        }
    }
}

/// Directory and name of a clean path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None if path.is_empty() => None,
        None => Some((&[], path)),
    }
}
