//! The layout that a pull writes. Everything is downloaded to `.pull/` first, where an interrupted pull resumes. The
//! layout itself changes when everything is there and checked, its index last.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::RegistryError;
use crate::Limits;
use crate::digest::{HashingWriter, hex};
use crate::document::REF_NAME;
use crate::layout::{Layout, architecture};

/// Staging folder of a pull, below the layout.
const STAGING: &str = ".pull";

pub(super) struct Target {
    folder: PathBuf,
    staging: PathBuf,
    /// Whether this pull created the folder.
    created: bool,
    /// Lock: one pull into a folder at a time. The others wait, and then find the work done.
    _lock: File,
}

impl Target {
    /// Opens `folder`, which must be absent, empty, or a layout. Waits while another pull holds the lock.
    pub(super) async fn open(folder: &Path) -> Result<Self, RegistryError> {
        let created = !folder.exists();
        fs::create_dir_all(folder).map_err(RegistryError::io(folder))?;
        let staging = folder.join(STAGING);
        let is_layout = folder.join("oci-layout").exists() || staging.exists();
        if !is_layout && fs::read_dir(folder).map_err(RegistryError::io(folder))?.next().is_some() {
            return Err(RegistryError::NotALayout { path: folder.to_owned() });
        }
        let directory = File::open(folder).map_err(RegistryError::io(folder))?;
        let locked = tokio::task::spawn_blocking(move || directory.lock().map(|()| directory)).await;
        let lock = locked.map_err(io::Error::other).and_then(|result| result).map_err(RegistryError::io(folder))?;
        let blobs = staging.join("blobs/sha256");
        DirBuilder::new().recursive(true).mode(0o700).create(&blobs).map_err(RegistryError::io(&blobs))?;
        Ok(Target { folder: folder.to_owned(), staging, created, _lock: lock })
    }

    /// Removes what an earlier pull left of other images.
    pub(super) fn forget_others(&self, wanted: &BTreeSet<&str>) -> Result<(), RegistryError> {
        remove_others(&self.staging.join("blobs/sha256"), |name| {
            wanted.contains(name.strip_suffix(".partial").unwrap_or(name))
        })
    }

    /// Whether a blob is there already, complete and with the right content.
    pub(super) fn has(&self, digest: &str, size: u64) -> bool {
        [self.staged(digest), self.folder.join("blobs/sha256").join(hex(digest))].iter().any(|path| {
            let is_whole = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == size);
            is_whole && content(path).is_ok_and(|found| found == digest)
        })
    }

    /// Path of a downloaded blob.
    pub(super) fn staged(&self, digest: &str) -> PathBuf {
        self.staging.join("blobs/sha256").join(hex(digest))
    }

    /// Path of a blob during its download.
    pub(super) fn partial(&self, digest: &str) -> PathBuf {
        self.staged(digest).with_extension("partial")
    }

    /// Writes a document whose content has been checked.
    pub(super) fn put(&self, digest: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        write(&self.staged(digest), bytes)
    }

    /// Makes the layout hold this image and nothing else. Returns whether it did so before.
    pub(super) fn commit(
        &self,
        manifest: (&str, &str, usize),
        name: &str,
        blobs: &BTreeSet<&str>,
        limits: &Limits,
    ) -> Result<bool, RegistryError> {
        let (media_type, digest, size) = manifest;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": media_type, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": architecture()},
                "annotations": {REF_NAME: name},
            }],
        });
        let index = index.to_string().into_bytes();
        write(&self.staging.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        write(&self.staging.join("index.json"), &index)?;
        // Read the staged layout as the store will: what the store would refuse must not replace the layout.
        Layout::open(&self.staging, limits)?.image(limits)?;

        let own = self.folder.join("blobs/sha256");
        fs::create_dir_all(&own).map_err(RegistryError::io(&own))?;
        for blob in blobs {
            let (from, to) = (self.staged(blob), own.join(hex(blob)));
            match fs::rename(&from, &to) {
                // The blob was in the layout before.
                Err(error) if error.kind() == io::ErrorKind::NotFound && to.is_file() => {}
                other => other.map_err(RegistryError::io(&to))?,
            }
        }
        sync(&own)?;
        let unchanged = fs::read(self.folder.join("index.json")).is_ok_and(|before| before == index);
        for file in ["oci-layout", "index.json"] {
            let to = self.folder.join(file);
            fs::rename(self.staging.join(file), &to).map_err(RegistryError::io(&to))?;
        }
        sync(&self.folder)?;
        let kept: BTreeSet<&str> = blobs.iter().map(|blob| hex(blob)).collect();
        remove_others(&own, |name| kept.contains(name))?;
        fs::remove_dir_all(&self.staging).map_err(RegistryError::io(&self.staging))?;
        Ok(unchanged)
    }

    /// Removes everything of this pull.
    pub(super) fn abandon(self) {
        // The next pull removes what cannot be removed now.
        let _ = fs::remove_dir_all(&self.staging);
        if self.created {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The digest of a file.
pub(super) fn content(path: &Path) -> Result<String, RegistryError> {
    let mut hash = HashingWriter::new(io::sink());
    let mut file = File::open(path).map_err(RegistryError::io(path))?;
    io::copy(&mut file, &mut hash).map_err(RegistryError::io(path))?;
    Ok(hash.finish().2)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    let mut file = File::create(path).map_err(RegistryError::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(RegistryError::io(path))
}

fn sync(folder: &Path) -> Result<(), RegistryError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(RegistryError::io(folder))
}

fn remove_others(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<(), RegistryError> {
    for entry in fs::read_dir(folder).map_err(RegistryError::io(folder))? {
        let entry = entry.map_err(RegistryError::io(folder))?;
        if !entry.file_name().to_str().is_some_and(&keep) {
            fs::remove_file(entry.path()).map_err(RegistryError::io(&entry.path()))?;
        }
    }
    Ok(())
}
