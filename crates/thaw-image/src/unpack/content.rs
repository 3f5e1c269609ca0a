//! List of a layer's entries on disk: one JSON object per line, in the order of the archive.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::root::Owner;
use crate::digest::HashingReader;

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// Path from the root, without `.`, `..` and empty parts; empty means the root itself.
    #[serde(with = "name")]
    pub(crate) path: Vec<u8>,
    #[serde(rename = "is")]
    pub(crate) what: What,
}

/// What the layer does at the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// Hides a file of lower layers.
    Whiteout,
    /// Hides everything that lower layers have in the directory `path`.
    Opaque,
    /// Gives the file at `target`, a clean path, another name.
    Hardlink {
        #[serde(with = "name")]
        target: Vec<u8>,
    },
    /// Makes a node.
    Node { kind: Kind, mode: u32, owner: Owner, mtime: i64 },
}

/// The kinds of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Directory,
    /// Files are numbered in the order of the list, from 0.
    File {
        /// Size of the content, bytes.
        size: u64,
        /// Digest of the content. Early versions of the store have SHA-256 here.
        #[serde(alias = "sha256")]
        digest: String,
    },
    Symlink {
        #[serde(with = "name")]
        target: Vec<u8>,
    },
}

/// Names are bytes: text if they are UTF-8, otherwise a list of numbers.
mod name {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Name {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(name: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(name) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => name.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Name::deserialize(deserializer)? {
            Name::Text(text) => text.into_bytes(),
            Name::Bytes(bytes) => bytes,
        })
    }
}

/// Writes one line.
pub(super) fn write(to: &mut impl Write, entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *to, entry)?;
    to.write_all(b"\n")
}

/// A list that is being read.
pub(crate) struct Contents {
    lines: BufReader<HashingReader<File>>,
    line: Vec<u8>,
}

impl Contents {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let lines = BufReader::new(HashingReader::new(File::open(path)?, u64::MAX));
        Ok(Contents { lines, line: Vec::new() })
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.line.clear();
        if self.lines.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&self.line)?))
    }

    /// Digest of the whole list.
    pub(crate) fn finish(self) -> io::Result<String> {
        Ok(self.lines.into_inner().finish()?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_whatever_their_names() {
        let owner = Owner::new(1000, 0).unwrap();
        let node = |kind| What::Node { kind, mode: 0o644, owner, mtime: -1 };
        let entries = [
            Entry { path: b"a \"quoted\"\nname/\xc3\xa4".to_vec(), what: node(Kind::Directory) },
            Entry { path: b"\xff\xfe".to_vec(), what: node(Kind::File { size: 3, digest: "blake3:0".to_owned() }) },
            Entry { path: b"l".to_vec(), what: node(Kind::Symlink { target: b"\x80".to_vec() }) },
            Entry { path: b"h".to_vec(), what: What::Hardlink { target: b"l".to_vec() } },
            Entry { path: Vec::new(), what: What::Opaque },
            Entry { path: b"gone".to_vec(), what: What::Whiteout },
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = File::create(file.path()).unwrap();
        entries.iter().for_each(|entry| write(&mut writer, entry).unwrap());
        let mut contents = Contents::open(file.path()).unwrap();
        let back: Vec<Entry> = std::iter::from_fn(|| contents.next().unwrap()).collect();
        assert_eq!(back, entries);
        assert_eq!(contents.finish().unwrap(), crate::digest::sha256(&std::fs::read(file.path()).unwrap()));
    }
}
