//! Reads tar headers, one entry at a time, with all long names and numbers resolved.
//!
//! Crate `tar` knows the fields of a header; the archive is split into entries, and extension headers are read, here,
//! where sizes can be bounded and contradictions refused.

use std::io::{self, Read};

use tar::EntryType;

use super::UnpackError;
use super::blocks::{Blocks, number};
use super::root::Owner;

/// Longest path or link target, bytes: the kernel's own limit.
const MAX_NAME: u64 = 4096;
/// Largest extension header, bytes: room for several long names and attributes.
const MAX_EXTENSION: u64 = 64 * 1024;
/// Smallest size that has no place in the octal field of a header, bytes: 8 GiB. Writers put 0 there and the size into
/// an extension header.
const BEYOND_OCTAL: u64 = 1 << 33;

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
    File {
        size: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    Hardlink {
        target: Vec<u8>,
    },
    /// A device or pipe, in words.
    Special(&'static str),
}

impl ItemKind {
    /// Bytes of its content.
    fn size(&self) -> u64 {
        if let ItemKind::File { size } = self { *size } else { 0 }
    }
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
    let mut blocks = Blocks::new(archive);
    let mut extensions = Extensions::default();
    while let Some(header) = blocks.header().map_err(UnpackError::Archive)? {
        let kind = header.entry_type();
        let is_extension = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        if !is_extension {
            let item = item(&header, std::mem::take(&mut extensions))?;
            handle(&item, &mut blocks.content(item.kind.size()))?;
            continue;
        }
        let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
        let mut content = blocks.content(size.ok_or_else(|| corrupt("extension header without a size"))?);
        match kind {
            EntryType::GNULongName => {
                set(&mut extensions.path, long_name(&mut content)?)?;
                extensions.any = true;
            }
            EntryType::GNULongLink => {
                set(&mut extensions.link, long_name(&mut content)?)?;
                extensions.any = true;
            }
            EntryType::XHeader => {
                extensions.any = true;
                pax(&mut extensions, &bounded(&mut content, MAX_EXTENSION)?)?;
            }
            _ => {
                // A global header may carry a comment (git writes one); anything that would change all entries
                // after it is read differently by different programs.
                let mut global = Extensions::default();
                pax(&mut global, &bounded(&mut content, MAX_EXTENSION)?)?;
                if !global.is_empty() {
                    return Err(corrupt("global header that changes entries"));
                }
            }
        }
    }
    if extensions.any {
        return Err(corrupt("ends after an extension header"));
    }
    ends_in_zeros(blocks.into_inner())
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
    // A directory without a name is the root, as in Go's tools.
    if path.len() as u64 > MAX_NAME || (path.is_empty() && header.entry_type() != EntryType::Directory) {
        return Err(bad("its path is empty or longer than 4096 bytes"));
    }
    let read = |field: &[u8]| number(field).ok_or_else(|| bad("a number in its header cannot be read"));
    let own = u64::try_from(read(&header.as_old().size)?).map_err(|_| bad("its size is negative"))?;
    let size = match extensions.size {
        // A size that fits its field must be there: readers that know no extension would lose their place.
        Some(said) if said != own && !(own == 0 && said >= BEYOND_OCTAL) => {
            return Err(bad("two headers give it different sizes"));
        }
        Some(said) => said,
        None => own,
    };
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
        EntryType::Char => ItemKind::Special("a character device"),
        EntryType::Block => ItemKind::Special("a block device"),
        EntryType::Fifo => ItemKind::Special("a named pipe"),
        EntryType::GNUSparse => {
            return Err(bad("is a sparse file, which OCI layers may not have: make the layer without tar's --sparse"));
        }
        other => return Err(bad(&format!("has the unknown type {:#04x}", other.as_byte()))),
    };
    if i64::try_from(size).is_err() {
        return Err(bad("its size is out of range"));
    }
    if size != 0 && !matches!(kind, ItemKind::File { .. }) {
        return Err(bad("has content, but is no file"));
    }
    let id = |said: Option<u64>, field: &[u8]| match said {
        Some(id) => Ok(id),
        None => u64::try_from(read(field)?).map_err(|_| bad("its owner is negative")),
    };
    let (uid, gid) = (id(extensions.uid, &header.as_old().uid)?, id(extensions.gid, &header.as_old().gid)?);
    let owner = Owner::new(uid, gid).ok_or_else(|| bad("its owner is above 2147483647"))?;
    let mtime = extensions.mtime.map_or_else(|| read(&header.as_old().mtime), Ok)?;
    // Twelve bits count; some writers put the kind of the file there too.
    let mode = u32::try_from(read(&header.as_old().mode)? & 0o7777).unwrap_or_default();
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
    let end = name.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    name.truncate(end);
    Ok(name)
}

/// Reads `LENGTH KEY=VALUE\n` records. Values may hold any byte, so only the length says where one ends.
fn pax(extensions: &mut Extensions, mut bytes: &[u8]) -> Result<(), UnpackError> {
    let bad = || corrupt("malformed extension header");
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = decimal(&bytes[..space]).ok_or_else(bad)?;
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
            b"size" => set(&mut extensions.size, decimal(value).ok_or_else(bad)?)?,
            b"uid" => set(&mut extensions.uid, decimal(value).ok_or_else(bad)?)?,
            b"gid" => set(&mut extensions.gid, decimal(value).ok_or_else(bad)?)?,
            // Fractions of a second are dropped.
            b"mtime" => {
                let whole = value.split(|b| *b == b'.').next().unwrap_or_default();
                let whole = if whole.is_empty() && value.len() > 1 { b"0" } else { whole };
                set(&mut extensions.mtime, decimal(whole).ok_or_else(bad)?)?;
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(corrupt("sparse files are not for OCI layers: make the layer without tar's --sparse"));
            }
            // The rest: times of access, names of owners, and extended attributes, of which a file capability is
            // as good as a setuid bit. None is taken over.
            _ => {}
        }
    }
    Ok(())
}

fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
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
