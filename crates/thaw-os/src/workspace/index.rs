//! What is in an archive that [`super::collect`] wrote.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use tar::{Archive, EntryType};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its path, relative to the directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// Size of a file's content, bytes.
    pub size: u64,
    /// Where that begins in the archive.
    pub offset: u64,
    /// Where a link leads.
    pub target: Option<Vec<u8>>,
}

/// The entries, in their order in the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// All of them.
    pub items: Vec<Item>,
}

impl Index {
    /// Reads the headers of an archive.
    ///
    /// # Errors
    /// It is none.
    pub fn read(mut archive: &File) -> io::Result<Self> {
        io::Seek::seek(&mut archive, io::SeekFrom::Start(0))?;
        let mut archive = Archive::new(archive);
        let mut items = Vec::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let kind = match entry.header().entry_type() {
                EntryType::Directory => Kind::Directory,
                EntryType::Symlink => Kind::Link,
                _ => Kind::File,
            };
            let path = entry.path_bytes();
            items.push(Item {
                // tar marks directories.
                path: path.strip_suffix(b"/").unwrap_or(&path).to_vec(),
                kind,
                mode: entry.header().mode()? & 0o7777,
                size: entry.size(),
                offset: entry.raw_file_position(),
                target: entry.link_name()?.map(|target| target.as_os_str().as_bytes().to_vec()),
            });
        }
        Ok(Self { items })
    }

    /// What has this path.
    pub fn find(&self, path: &[u8]) -> Option<&Item> {
        self.items.iter().find(|item| item.path == path)
    }
}
