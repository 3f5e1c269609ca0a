//! Owns unpacking: from the layers of an image, which are not trusted, to its root file system.
//!
//! There are two steps, so that layers can be shared. [`layer`] reads an archive into a folder of numbered files and a
//! list of its entries ([`content`]); no name of the archive is used on disk. [`compose`] replays the lists of an
//! image's layers into a directory, where files become hard links to the numbered ones.
//!
//! Every layer is treated as an attack: each write goes through a descriptor of its parent directory that was resolved
//! within the root (`openat2`), nothing is overwritten in place, no device is made, no setuid bit or extended attribute
//! survives, and an archive that two programs could read differently is refused.

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

/// Limits of one image. An image that reaches one is refused.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sum of the sizes of all files, bytes.
    pub unpacked_bytes: u64,
    /// Sum of the sizes of all tar archives, bytes: larger than `unpacked_bytes` by the headers.
    pub archive_bytes: u64,
    /// Entries of all archives, including directories that they imply.
    pub entries: u64,
    /// Sum of the lengths of all paths, bytes.
    pub path_bytes: u64,
    /// Levels of directories above a file.
    pub depth: usize,
    /// Number of layers.
    pub layers: usize,
    /// Size of an index, manifest or configuration, bytes.
    pub document_bytes: u64,
}

/// Average path length per entry for the default limit, bytes.
const PATH_BYTES: u64 = 256;
/// Size of header and padding per entry at most, bytes.
const HEADER_BYTES: u64 = 1024;
/// Default depth: deeper than any real tree, and shallow enough to be removed by recursion.
pub const MAX_DEPTH: usize = 128;
/// Docker's limit.
pub const MAX_LAYERS: usize = 127;
/// 4 MiB, the usual limit of registries.
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
    /// The archive cannot be read, or can be read in several ways.
    #[error("archive: {0}")]
    Archive(#[source] io::Error),
    /// An entry is not allowed.
    #[error("entry {path}: {reason}")]
    Entry {
        /// Path of the entry, with odd bytes escaped.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit was reached.
    #[error("more than the limit of {limit} {what}{}", set_by(what))]
    Limit {
        /// What the limit is for.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An operation on this machine failed.
    #[error("entry {path}: {source}")]
    Io {
        /// Path of the entry, with odd bytes escaped.
        path: String,
        /// Error of the system.
        source: io::Error,
    },
}

/// Configuration key of a limit, for a message.
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

/// Usage of the limits so far.
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

    /// Adds a whole layer.
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
