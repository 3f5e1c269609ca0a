//! Reads tar headers, one entry at a time, with all long names and numbers resolved.
//!
//! Crate `tar` splits the archive into raw entries; the extension headers are read here, where their size can be
//! bounded and their contradictions refused.

use std::io::{self, Read};

use tar::{Archive, EntryType};

use super::UnpackError;
use super::root::Owner;

/// Longest path or link target, bytes: the kernel's own limit.
const MAX_NAME: u64 = 4096;
/// Largest extension header, bytes: room for several long names and attributes.
const MAX_EXTENSION: u64 = 64 * 1024;

/// One entry of a layer.
pub(crate) struct Item {
    /// As the archive has it.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: ItemKind,
    /// All twelve bits.
    pub(crate) mode: u32,
    pub(crate) owner: Owner,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
}

/// The kinds of entries that are unpacked.
pub(crate) enum ItemKind {
    Directory,
    File { size: u64 },
    Symlink { target: Vec<u8> },
    Hardlink { target: Vec<u8> },
}

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    any: bool,
}

impl Extensions {
    /// Whether nothing is said that would change an entry.
    fn is_empty(&self) -> bool {
        let Extensions { path, link, size, uid, gid, mtime, any: _ } = self;
        path.is_none() && link.is_none() && size.is_none() && uid.is_none() && gid.is_none() && mtime.is_none()
    }
}

/// Calls `handle` for every entry with its content, then makes sure that nothing follows the end mark.
pub(crate) fn each(
    archive: impl Read,
    mut handle: impl FnMut(&Item, &mut dyn Read) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let mut archive = Archive::new(archive);
    let mut extensions = Extensions::default();
    for entry in archive.entries().map_err(UnpackError::Archive)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Archive)?;
        let header = entry.header().clone();
        match header.entry_type() {
            EntryType::GNULongName => {
                set(&mut extensions.path, long_name(&mut entry)?)?;
                extensions.any = true;
            }
            EntryType::GNULongLink => {
                set(&mut extensions.link, long_name(&mut entry)?)?;
                extensions.any = true;
            }
            EntryType::XHeader => {
                extensions.any = true;
                pax(&mut extensions, &bounded(&mut entry, MAX_EXTENSION)?)?;
            }
            EntryType::XGlobalHeader => {
                // A global header may carry a comment (git writes one); anything that would change all entries
                // after it is read differently by different programs.
                let mut global = Extensions::default();
                pax(&mut global, &bounded(&mut entry, MAX_EXTENSION)?)?;
                if !global.is_empty() {
                    return Err(corrupt("global header that changes entries"));
                }
            }
            _ => {
                let item = item(&header, std::mem::take(&mut extensions))?;
                handle(&item, &mut entry)?;
            }
        }
    }
    if extensions.any {
        return Err(corrupt("ends after an extension header"));
    }
    ends_in_zeros(archive.into_inner())
}

fn corrupt(reason: &str) -> UnpackError {
    UnpackError::Archive(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()))
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), UnpackError> {
    if slot.replace(value).is_some() {
        return Err(corrupt("two extension headers say the same thing about one entry"));
    }
    Ok(())
}

fn item(header: &tar::Header, extensions: Extensions) -> Result<Item, UnpackError> {
    let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let bad = |reason: &str| UnpackError::entry(&path, reason);
    if path.is_empty() || path.len() as u64 > MAX_NAME {
        return Err(bad("its path is empty or longer than 4096 bytes"));
    }
    let io = |_| bad("a number in its header cannot be read");
    let size = header.entry_size().map_err(io)?;
    if extensions.size.is_some_and(|other| other != size) {
        return Err(bad("two headers give it different sizes"));
    }
    let link = || {
        let target = match &extensions.link {
            Some(link) => link.clone(),
            None => header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default(),
        };
        if target.is_empty() || target.len() as u64 >= MAX_NAME || target.contains(&0) {
            return Err(bad("its link target is empty, too long or has a zero byte"));
        }
        Ok(target)
    };
    let kind = match header.entry_type() {
        EntryType::Directory => ItemKind::Directory,
        // Before 1988 a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => ItemKind::Directory,
        EntryType::Regular | EntryType::Continuous => ItemKind::File { size },
        EntryType::Symlink => ItemKind::Symlink { target: link()? },
        EntryType::Link => ItemKind::Hardlink { target: link()? },
        EntryType::Char | EntryType::Block => return Err(bad("is a device, which images may not bring")),
        EntryType::Fifo => return Err(bad("is a named pipe, which images may not bring")),
        EntryType::GNUSparse => return Err(bad("is a sparse file, which OCI layers may not have")),
        other => return Err(bad(&format!("has the unknown type {:#04x}", other.as_byte()))),
    };
    if size != 0 && !matches!(kind, ItemKind::File { .. }) {
        return Err(bad("has content, but is no file"));
    }
    let uid = extensions.uid.map_or_else(|| header.uid().map_err(io), Ok)?;
    let gid = extensions.gid.map_or_else(|| header.gid().map_err(io), Ok)?;
    let owner = Owner::new(uid, gid).ok_or_else(|| bad("its owner is above 2147483647"))?;
    let mtime = match extensions.mtime {
        Some(mtime) => mtime,
        None => i64::try_from(header.mtime().map_err(io)?).map_err(|_| bad("its time is out of range"))?,
    };
    let mode = header.mode().map_err(io)?;
    Ok(Item { path, kind, mode, owner, mtime })
}

fn bounded(content: &mut impl Read, limit: u64) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    content.take(limit + 1).read_to_end(&mut bytes).map_err(UnpackError::Archive)?;
    if bytes.len() as u64 > limit {
        return Err(UnpackError::Limit { what: "bytes of an extension header", limit });
    }
    Ok(bytes)
}

fn long_name(content: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut name = bounded(content, MAX_NAME + 1)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// Reads `LENGTH KEY=VALUE\n` records. Values may hold any byte, so only the length says where one ends.
fn pax(extensions: &mut Extensions, mut bytes: &[u8]) -> Result<(), UnpackError> {
    let bad = || corrupt("malformed extension header");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = number(&bytes[..space]).ok_or_else(bad)?;
        if length > bytes.len() || length < space + 2 || bytes[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &bytes[space + 1..length - 1];
        bytes = &bytes[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => set(&mut extensions.path, value.to_vec())?,
            b"linkpath" => set(&mut extensions.link, value.to_vec())?,
            b"size" => set(&mut extensions.size, number(value).ok_or_else(bad)?)?,
            b"uid" => set(&mut extensions.uid, number(value).ok_or_else(bad)?)?,
            b"gid" => set(&mut extensions.gid, number(value).ok_or_else(bad)?)?,
            // Fractions of a second are dropped.
            b"mtime" => {
                let whole = value.split(|b| *b == b'.').next().unwrap_or_default();
                set(&mut extensions.mtime, number(whole).ok_or_else(bad)?)?;
            }
            key if key.starts_with(b"GNU.sparse.") => return Err(corrupt("sparse files are not for OCI layers")),
            // The rest: times of access, names of owners, and extended attributes, of which a file capability is
            // as good as a setuid bit. None is taken over.
            _ => {}
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// After the end mark there may be padding; anything else is for another reader.
fn ends_in_zeros(mut rest: impl Read) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match rest.read(&mut buffer).map_err(UnpackError::Archive)? {
            0 => return Ok(()),
            count if buffer[..count].iter().any(|b| *b != 0) => return Err(corrupt("data after its end mark")),
            _ => {}
        }
    }
}
