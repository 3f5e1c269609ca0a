//! `[storage]`: space on the disk for sandboxes.

use serde::{Deserialize, Serialize};

/// Least size of a root to write to, bytes: room for ext4's own parts is added.
pub const MIN_STORAGE_BYTES: u64 = 32 << 20;

/// `[storage]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Bytes of disk space for all images of file systems together; all of it is taken when an image is made.
    pub pool_bytes: u64,
    /// Bytes that the file system of `paths.state_dir` keeps free for others.
    pub reserve_bytes: u64,
    /// Bytes of a file system whose size nobody says.
    pub default_bytes: u64,
    /// Largest file system, bytes.
    pub max_bytes: u64,
    /// Bytes of a file system for each of which it can hold a file; at least 16,384 files.
    pub bytes_per_inode: u64,
    /// Seconds that are waited for a file system to be let go of, before it is mounted again.
    pub detach_timeout_seconds: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            pool_bytes: 10 << 30,
            reserve_bytes: 1 << 30,
            default_bytes: 1 << 30,
            max_bytes: 10 << 30,
            bytes_per_inode: 16 << 10,
            detach_timeout_seconds: 10,
        }
    }
}

impl Storage {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: String| Err((format!("storage.{key}"), problem));
        if self.max_bytes < MIN_STORAGE_BYTES {
            return wrong("max_bytes", format!("must be at least {MIN_STORAGE_BYTES}"));
        }
        // What ext4 itself can make.
        if self.max_bytes > 1 << 44 {
            return wrong("max_bytes", format!("must be at most {}", 1_u64 << 44));
        }
        if !(MIN_STORAGE_BYTES..=self.max_bytes).contains(&self.default_bytes) {
            let problem = format!("must be from {MIN_STORAGE_BYTES} to `storage.max_bytes`, {}", self.max_bytes);
            return wrong("default_bytes", problem);
        }
        if !(4096..=1 << 26).contains(&self.bytes_per_inode) {
            return wrong("bytes_per_inode", "must be from 4096 to 67108864".to_owned());
        }
        if self.detach_timeout_seconds == 0 {
            return wrong("detach_timeout_seconds", "must be at least 1".to_owned());
        }
        Ok(())
    }
}
