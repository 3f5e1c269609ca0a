//! Making images: a template once for each size, and copies of it, which take a millisecond.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::error::{DiskError, Result, at, failed};
use super::tool::{self, MKFS};

/// Bytes of an inode on the disk.
const INODE_BYTES: u64 = 256;

/// Least number of inodes.
const MIN_INODES: u64 = 16_384;

/// Images are of whole mebibytes.
const MIB: u64 = 1 << 20;

/// From this size on the journal is the larger one.
const LARGE: u64 = 512 * MIB;

/// An ext4 file system to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Bytes that files can have, at least.
    pub usable_bytes: u64,
    /// Bytes for each of which there is an inode.
    pub bytes_per_inode: u64,
}

impl Format {
    /// Number of files that it can hold.
    pub fn inodes(&self) -> u64 {
        (self.usable_bytes / self.bytes_per_inode.max(1)).max(MIN_INODES)
    }

    /// Size of the journal, MiB: a small one makes syncs slower.
    fn journal_mib(&self) -> u64 {
        if self.usable_bytes < LARGE { 4 } else { 16 }
    }

    /// Size of the image, bytes: with inodes, journal, bitmaps, and the 2 % (16 MiB at most) that ext4 holds back.
    pub fn image_bytes(&self) -> u64 {
        let held_back = (self.usable_bytes / 50).min(16 * MIB);
        let maps = self.usable_bytes / 2048 + MIB;
        let parts = [self.usable_bytes, self.inodes() * INODE_BYTES, self.journal_mib() * MIB, held_back, maps];
        parts.iter().sum::<u64>().next_multiple_of(MIB)
    }
}

/// Makes an empty file system at `path`, which takes up no more space than what is in it. `directories` are in its root,
/// owned by root, mode 0755. Blocks for some 10 ms.
///
/// # Errors
/// See [`DiskError`]; nothing is left of it then.
pub fn make_template(path: &Path, format: &Format, directories: &[&str]) -> Result<()> {
    let content = path.with_extension("content");
    let partial = path.with_extension("partial");
    let _ = fs::remove_dir_all(&content);
    let _ = fs::remove_file(&partial);
    let made = fill(&content, &partial, format, directories)
        .and_then(|()| fs::rename(&partial, path).map_err(at("rename", &partial)));
    let _ = fs::remove_dir_all(&content);
    if made.is_err() {
        let _ = fs::remove_file(&partial);
    }
    made
}

fn fill(content: &Path, image: &Path, format: &Format, directories: &[&str]) -> Result<()> {
    fs::create_dir(content).map_err(at("create", content))?;
    for name in directories {
        let directory = content.join(name);
        fs::create_dir(&directory).map_err(at("create", &directory))?;
        // Whatever the umask is.
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).map_err(at("change the mode of", &directory))?;
    }
    fs::set_permissions(content, Permissions::from_mode(0o755)).map_err(at("change the mode of", content))?;
    create(image)?.set_len(format.image_bytes()).map_err(at("size", image))?;
    let journal = format!("size={}", format.journal_mib());
    let inodes = format.inodes().to_string();
    // What is known to be zero is not zeroed by a kernel thread later, which would wake frozen hosts.
    let extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,root_owner=0:0";
    let options = [
        "-q",
        "-F",
        "-b",
        "4096",
        "-I",
        "256",
        "-O",
        "^resize_inode",
        "-J",
        &journal,
        "-m",
        "0",
        "-N",
        &inodes,
        "-E",
        extended,
        "-d",
    ];
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.extend([content.as_os_str(), image.as_os_str()]);
    let (status, message) = tool::run(MKFS, &arguments)?;
    if !status.success() {
        return Err(DiskError::Tool { program: MKFS, message });
    }
    // Before it has its name: a template that a power cut has emptied would spoil every image.
    File::open(image).and_then(|image| image.sync_all()).map_err(at("sync", image))
}

fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(at("create", path))
}

/// Copies `template` to `path`, and takes all of its space; on the disk when this returns. `path` does not exist, or is what
/// is left of an earlier try. Blocks.
///
/// # Errors
/// See [`DiskError`]; nothing is left of it then.
pub fn make(template: &Path, path: &Path) -> Result<()> {
    let partial = path.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let made = copy(template, &partial)
        .and_then(|()| fs::rename(&partial, path).map_err(at("rename", &partial)))
        .and_then(|()| {
            let parent = path.parent().unwrap_or(Path::new("/"));
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(at("sync", parent))
        });
    if made.is_err() {
        let _ = fs::remove_file(&partial);
        let _ = fs::remove_file(path);
    }
    made
}

fn copy(template: &Path, path: &Path) -> Result<()> {
    let from = File::open(template).map_err(at("open", template))?;
    let to = create(path)?;
    let length = from.metadata().map_err(at("look at", template))?.len();
    to.set_len(length).map_err(at("size", path))?;
    let mut offset = 0;
    while offset < length {
        let data = match rustix::fs::seek(&from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No more data.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(at("read", template)(errno)),
        };
        let end = rustix::fs::seek(&from, SeekFrom::Hole(data)).map_err(at("read", template))?;
        range(&from, &to, data, end).map_err(at("write", path))?;
        offset = end;
    }
    match rustix::fs::fallocate(&to, FallocateFlags::empty(), 0, length) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP) => {
            let step = format!("take the space for {}: its file system cannot (fallocate)", path.display());
            return Err(failed(step)(Errno::OPNOTSUPP));
        }
        Err(errno) => return Err(at("take the space for", path)(errno)),
    }
    to.sync_all().map_err(at("sync", path))
}

/// Copies the bytes from `offset` to `end`, which stay where they are.
fn range(from: &File, to: &File, mut offset: u64, end: u64) -> std::result::Result<(), Errno> {
    let mut target = offset;
    while offset < end {
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX);
        if rustix::fs::copy_file_range(from, Some(&mut offset), to, Some(&mut target), length)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_larger_than_what_it_holds_by_what_ext4_needs() {
        for (usable, image_mib, inodes) in
            [(100 * MIB, 112, 16_384), (1024 * MIB, 1074, 65_536), (10_240 * MIB, 10_438, 655_360)]
        {
            let format = Format { usable_bytes: usable, bytes_per_inode: 16_384 };
            assert_eq!((format.image_bytes() / MIB, format.inodes()), (image_mib, inodes));
        }
    }
}
