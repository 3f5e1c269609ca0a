//! Whether an image has to be repaired before it is mounted, and the repair.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{DiskError, Result, at};
use super::tool::{self, E2FSCK};

/// Where ext4's superblock is, and in it the magic number and the state (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
const MAGIC_AT: usize = 0x38;
const STATE_AT: usize = 0x3a;
const MAGIC: u16 = 0xef53;
/// Errors were seen.
const ERRORS: u16 = 2;

/// Most of what e2fsck says that is told, characters.
const SAID: usize = 400;

/// Whether the kernel has seen errors in it, or it is no ext4 at all. What an unclean end leaves, the journal mends when it is
/// mounted.
///
/// # Errors
/// The file cannot be read.
pub fn wants_check(image: &File, path: &Path) -> Result<bool> {
    let mut block = [0; 64];
    if image.metadata().map_err(at("look at", path))?.len() < SUPERBLOCK + block.len() as u64 {
        return Ok(true);
    }
    image.read_exact_at(&mut block, SUPERBLOCK).map_err(at("read", path))?;
    let number = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    Ok(number(MAGIC_AT) != MAGIC || number(STATE_AT) & ERRORS != 0)
}

/// Repairs what can be repaired without deciding anything (`e2fsck -p`). The image is not attached. Blocks.
///
/// # Errors
/// [`DiskError::Damaged`], with what e2fsck says.
pub fn repair(path: &Path) -> Result<()> {
    let (status, said) = tool::run(E2FSCK, &[OsStr::new("-p"), OsStr::new("-f"), path.as_os_str()])?;
    // 1: errors were corrected; e2fsck(8).
    if matches!(status.code(), Some(0 | 1)) {
        return Ok(());
    }
    let said = said.replace(&format!("{}: ", path.display()), "");
    let last: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said: String = last.join("; ").chars().take(SAID).collect();
    Err(DiskError::Damaged(if said.is_empty() { format!("e2fsck ended with {status}") } else { said }))
}
