//! Records of images and layers: `image.json` and `layer.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Result, StoreError, at};
use crate::document::Configuration;
use crate::unpack::{Notes, Used};

/// An image that is ready to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name in the store.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Its root file system. Mounted read-only; nothing may ever write there.
    pub rootfs: PathBuf,
    /// An empty directory on the same file system, for an overlay over `rootfs` alone.
    pub empty: PathBuf,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Size of its layers as stored in the layout, bytes.
    pub compressed_bytes: u64,
    /// Sum of the sizes of its layers' files, bytes.
    pub unpacked_bytes: u64,
    /// When it was unpacked, Unix milliseconds.
    pub unpacked_at_ms: u64,
    /// Notes about parts that were left out or are unusual, as sentences.
    pub notes: Vec<String>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLayer {
    /// Digest of its archive, `sha256:…`. Layers of several images with the same digest share their files.
    pub diff_id: String,
    /// Digest of its blob.
    pub digest: String,
    /// Size of its blob, bytes.
    pub compressed_bytes: u64,
    /// Sum of the sizes of its files, bytes.
    pub unpacked_bytes: u64,
}

/// The part of an image's configuration that is needed to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Environment, in the image's order.
    pub env: Vec<(String, String)>,
    /// `uid`, `uid:gid`, or names from its `/etc/passwd`; empty means root.
    pub user: String,
    /// Directory to start in; empty means `/`.
    pub workdir: String,
    /// Program and arguments that always come first.
    pub entrypoint: Vec<String>,
    /// Arguments if the caller gives none.
    pub cmd: Vec<String>,
    /// Labels of its maker.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl From<&Configuration> for ImageConfig {
    fn from(config: &Configuration) -> Self {
        let run = &config.config;
        // An entry without `=` sets nothing; one without a name cannot be set.
        let split = |pair: &String| {
            let (name, value) = pair.split_once('=')?;
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        };
        ImageConfig {
            env: run.env.iter().filter_map(split).collect(),
            user: run.user.clone(),
            workdir: run.working_dir.clone(),
            entrypoint: run.entrypoint.clone(),
            cmd: run.cmd.clone(),
            labels: run.labels(),
        }
    }
}

/// `image.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecord {
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<ImageLayer>,
    pub(super) unpacked_at_ms: u64,
    /// See [`Image::notes`].
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

impl ImageRecord {
    pub(super) fn image(self, name: &str, digest: &str, folder: &Path, empty: &Path) -> Image {
        Image {
            name: name.to_owned(),
            digest: digest.to_owned(),
            rootfs: folder.join("rootfs"),
            empty: empty.to_owned(),
            config: self.config,
            compressed_bytes: self.layers.iter().map(|layer| layer.compressed_bytes).sum(),
            unpacked_bytes: self.layers.iter().map(|layer| layer.unpacked_bytes).sum(),
            layers: self.layers,
            unpacked_at_ms: self.unpacked_at_ms,
            notes: self.notes,
        }
    }
}

/// `layer.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    /// Usage of an image's limits.
    pub(super) used: Used,
    /// Digest of the list of its entries.
    pub(super) contents: String,
    /// Digests of blobs that were read to their end and hold this layer's archive.
    #[serde(default)]
    pub(super) blobs: Vec<String>,
    /// Parts that were left out.
    #[serde(default)]
    pub(super) notes: Notes,
}

/// Reads a record; `None` if it does not exist.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at(path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| at(path)(error.into()))
}

pub(super) fn write(path: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(|error| at(path)(error.into()))?;
    fs::write(path, text).map_err(at(path))
}

/// File name for an image's name: a name may contain slashes, but never a percent sign.
pub(super) fn file_of(name: &str) -> Result<String> {
    let part = |part: &str| {
        part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:@".contains(&b))
            && part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    let file = name.replace('/', "%2f");
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if first && file.len() <= 250 && name.split('/').all(part) {
        Ok(file)
    } else {
        Err(StoreError::Name { name: name.to_owned() })
    }
}

/// The name that a file name stands for; `None` if it is not one.
pub(super) fn name_of(file: &str) -> Option<String> {
    let name = file.replace("%2f", "/");
    (file_of(&name).ok()? == file).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_references_and_never_paths() {
        for name in ["openai", "0.1_a-b", "docker.io/library/debian:Trixie-1", "localhost:5000/a@sha256:00"] {
            let file = file_of(name).unwrap();
            assert!(!file.contains('/'));
            assert_eq!(name_of(&file).as_deref(), Some(name));
        }
        for name in ["", ".a", "..", "a/../b", "a//b", "/a", "a/", "A", "a%2fb", "a b", "a\n", &"a".repeat(251)] {
            assert!(file_of(name).is_err(), "{name:?}");
        }
        assert_eq!(name_of("a.partial%"), None);
    }
}
