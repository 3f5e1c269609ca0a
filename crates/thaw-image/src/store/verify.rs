//! Verifies that everything in the store is still as it was unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{Result, StoreError, at};
use super::record::{self, ImageRecord, LayerRecord, name_of};
use super::{Store, layers};
use crate::digest;
use crate::layout::LayerBlob;
use crate::progress::Progress;
use crate::unpack::{Contents, Entry, Kind, What, printable};

/// Most differences reported per layer or image; further ones are only counted.
const TOLD: usize = 10;

/// Result of a verification of the whole store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Layers verified.
    pub layers: usize,
    /// Images verified.
    pub images: usize,
    /// Files hashed.
    pub files: u64,
    /// Their size, bytes.
    pub bytes: u64,
    /// Damage found; empty if there is none.
    pub damage: Vec<Damage>,
}

/// A layer or image that differs from what was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// `layer sha256:…` or `image sha256:…`.
    pub what: String,
    /// Differences, one sentence each.
    pub reasons: Vec<String>,
    /// Names of the affected images: remove these, then build, import or pull them again.
    pub images: Vec<String>,
}

impl Verification {
    /// Names of the images to remove and make again.
    pub fn to_rebuild(&self) -> BTreeSet<&str> {
        self.damage.iter().flat_map(|damage| &damage.images).map(String::as_str).collect()
    }
}

/// Collects the first reasons and counts the others.
#[derive(Default)]
struct Reasons {
    told: Vec<String>,
    more: usize,
}

impl Reasons {
    fn add(&mut self, path: &[u8], reason: impl std::fmt::Display) {
        if self.told.len() < TOLD {
            self.told.push(format!("{}: {reason}", printable(path)));
        } else {
            self.more += 1;
        }
    }

    fn into_damage(mut self, what: String, images: &[String]) -> Option<Damage> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        (!self.told.is_empty()).then(|| Damage { what, reasons: self.told, images: images.to_vec() })
    }
}

impl Store {
    /// Hashes every file of every layer, and compares each root file system with its layers. Changes nothing; holds the
    /// lock, so no other process changes the store meanwhile.
    pub fn verify(&self, progress: &dyn Progress) -> Result<Verification> {
        let _lock = self.locked()?;
        let names = self.names()?;
        let mut found = Verification::default();
        // Which images have a layer, by name.
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut images = Vec::new();
        for file in self.entries("images")? {
            let digest = format!("sha256:{file}");
            let called = names.get(&digest).cloned().unwrap_or_default();
            found.images += 1;
            match record::read::<ImageRecord>(&self.record(&digest)) {
                Ok(Some(record)) => {
                    for layer in &record.layers {
                        users.entry(layer.diff_id.clone()).or_default().extend(called.iter().cloned());
                    }
                    images.push((digest, called, record));
                }
                Ok(None) => found.damage.push(Damage {
                    what: format!("image {digest}"),
                    reasons: vec!["its record is missing".to_owned()],
                    images: called,
                }),
                Err(error) => found.damage.push(Damage {
                    what: format!("image {digest}"),
                    reasons: vec![error.to_string()],
                    images: called,
                }),
            }
        }
        progress.started("verifying", Some(self.unpacked_bytes()?));
        for (diff_id, names) in &users {
            found.layers += 1;
            let mut reasons = Reasons::default();
            self.verify_layer(diff_id, &mut reasons, &mut found, progress)?;
            let names: Vec<String> = names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
            found.damage.extend(reasons.into_damage(format!("layer {diff_id}"), &names));
        }
        for (digest, names, record) in &images {
            let mut reasons = Reasons::default();
            self.verify_image(digest, record, &mut reasons)?;
            found.damage.extend(reasons.into_damage(format!("image {digest}"), names));
        }
        progress.finished(if found.damage.is_empty() { "all well" } else { "damaged" });
        Ok(found)
    }

    /// Names by digest.
    fn names(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in self.entries("names")? {
            let path = self.root.join("names").join(&file);
            let digest = fs::read_to_string(&path).map_err(at(&path))?;
            names.entry(digest).or_default().extend(name_of(&file));
        }
        Ok(names)
    }

    fn verify_layer(
        &self,
        diff_id: &str,
        reasons: &mut Reasons,
        found: &mut Verification,
        progress: &dyn Progress,
    ) -> Result<()> {
        let folder = self.layer_folder(diff_id);
        let record = match record::read::<LayerRecord>(&folder.join(layers::RECORD)) {
            Ok(Some(record)) => record,
            Ok(None) => {
                reasons.add(b"layer.json", "is missing");
                return Ok(());
            }
            Err(error) => {
                reasons.add(b"layer.json", error);
                return Ok(());
            }
        };
        let list = match list(&folder.join(layers::CONTENTS), &record) {
            Ok(list) => list,
            Err(error) => {
                reasons.add(b"contents.jsonl", error);
                return Ok(());
            }
        };
        let mut number = 0_u64;
        for entry in list {
            let What::Node { kind: Kind::File { size, digest }, mode, owner, .. } = &entry.what else { continue };
            let path = folder.join(layers::FILES).join(number.to_string());
            number += 1;
            found.files += 1;
            match examine(&path, digest, progress) {
                Err(error) => reasons.add(&entry.path, error),
                Ok(file) => {
                    found.bytes += file.size;
                    if (file.size, &file.digest) != (*size, digest) {
                        let was = file.digest;
                        reasons.add(
                            &entry.path,
                            format!("has {} bytes, {was}; must be {size} bytes, {digest}", file.size),
                        );
                    } else if file.mode != *mode {
                        reasons.add(&entry.path, format!("has mode {:04o}; must be {mode:04o}", file.mode));
                    } else if rustix::process::geteuid().is_root() && file.owner != owner.ids() {
                        reasons.add(&entry.path, format!("belongs to {:?}; must be {:?}", file.owner, owner.ids()));
                    }
                }
            }
        }
        let files = folder.join(layers::FILES);
        let there = fs::read_dir(&files).map_or(0, |entries| entries.count() as u64);
        if there != number {
            reasons.add(b"files", format!("has {there} files; must be {number}"));
        }
        Ok(())
    }

    /// Composes the image once more in a temporary folder, and compares.
    fn verify_image(&self, digest: &str, image: &ImageRecord, reasons: &mut Reasons) -> Result<()> {
        let work = self.work_path();
        let blobs: Vec<LayerBlob> = image
            .layers
            .iter()
            .map(|layer| LayerBlob {
                digest: layer.digest.clone(),
                size: layer.compressed_bytes,
                diff_id: layer.diff_id.clone(),
            })
            .collect();
        let folders: Vec<(&LayerBlob, PathBuf)> =
            blobs.iter().map(|blob| (blob, self.layer_folder(&blob.diff_id))).collect();
        let composed = layers::compose(&work, &folders, &image.config, &self.limits);
        let compared = match composed {
            Ok(()) => compare(&work, &self.folder(digest).join("rootfs"), Path::new(""), reasons),
            // The damage is reported for its layers.
            Err(StoreError::Damaged { .. } | StoreError::Unpack { .. } | StoreError::Io { .. }) => {
                reasons.add(b"rootfs", "cannot be made again from the layers");
                Ok(())
            }
            Err(error) => Err(error),
        };
        if work.exists() {
            fs::remove_dir_all(&work).map_err(at(&work))?;
        }
        compared
    }
}

/// The entries of a layer, if they match its record.
fn list(path: &Path, record: &LayerRecord) -> io::Result<Vec<Entry>> {
    let mut contents = Contents::open(path)?;
    let mut entries = Vec::new();
    while let Some(entry) = contents.next()? {
        entries.push(entry);
    }
    if contents.finish()? == record.contents { Ok(entries) } else { Err(io::Error::other("was changed")) }
}

/// State of a file now.
struct Found {
    size: u64,
    mode: u32,
    owner: (u32, u32),
    digest: String,
}

/// Examines a file, and hashes it with the algorithm of `like`.
fn examine(path: &Path, like: &str, progress: &dyn Progress) -> io::Result<Found> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no file"));
    }
    let (size, digest) = digest::of_file(file, like)?;
    progress.advanced(size);
    Ok(Found { size, mode: metadata.mode() & 0o7777, owner: (metadata.uid(), metadata.gid()), digest })
}

/// Reports where `found` differs from `expected`.
fn compare(expected: &Path, found: &Path, below: &Path, reasons: &mut Reasons) -> Result<()> {
    let (wanted, there) = (expected.join(below), found.join(below));
    let path = below.as_os_str().as_bytes();
    let now = match fs::symlink_metadata(&there) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            reasons.add(path, "is missing");
            return Ok(());
        }
        other => other.map_err(at(&there))?,
    };
    let before = fs::symlink_metadata(&wanted).map_err(at(&wanted))?;
    if now.file_type() != before.file_type() {
        reasons.add(path, "is of another kind");
    } else if (now.mode(), now.uid(), now.gid()) != (before.mode(), before.uid(), before.gid()) {
        reasons.add(path, "has another mode or owner");
    } else if before.is_file() && before.nlink() == 1 {
        // In no layer: an empty file that containers have something mounted on.
        if now.len() != before.len() {
            reasons.add(path, "has other content");
        }
    } else if before.is_file() && now.ino() != before.ino() {
        reasons.add(path, "is not the file of its layer");
    } else if before.is_symlink() && fs::read_link(&there).ok() != fs::read_link(&wanted).ok() {
        reasons.add(path, "is a link to another place");
    } else if before.is_dir() {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&wanted).map_err(at(&wanted))? {
            names.insert(entry.map_err(at(&wanted))?.file_name());
        }
        for entry in fs::read_dir(&there).map_err(at(&there))? {
            let name = entry.map_err(at(&there))?.file_name();
            if !names.contains(&name) {
                reasons.add(below.join(name).as_os_str().as_bytes(), "is in no layer");
            }
        }
        for name in names {
            compare(expected, found, &below.join(name), reasons)?;
        }
    }
    Ok(())
}
