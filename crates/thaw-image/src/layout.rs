//! Reads an OCI image layout without believing it: each document must have the size and digest that the one above
//! it gave, and must mean one thing only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::digest::{hex, is_sha256, sha256};
use super::unpack::Limits;

/// The names that Docker's own format, the model of OCI's, has for the same things.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Why a layout was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A file is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it must be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The content of a blob is not what its name says.
    #[error("blob {expected} has the content of {found}: the layout is damaged, get or build it again")]
    Digest {
        /// The digest that the manifest gives.
        expected: String,
        /// The digest of what is there.
        found: String,
    },
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A layer to apply.
pub(super) struct LayerBlob {
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) compression: Compression,
    /// Digest that the uncompressed archive must have.
    pub(super) diff_id: String,
}

/// A layout with one image for this machine.
pub(super) struct Layout {
    folder: PathBuf,
    name: Option<String>,
    pub(super) manifest_digest: String,
    manifest: Value,
    max_document: u64,
}

/// The image of a layout, its documents checked and its layers not yet.
pub(super) struct LayoutImage {
    pub(super) config: ImageConfiguration,
    pub(super) layers: Vec<LayerBlob>,
}

impl Layout {
    /// Reads the index and the manifest of the one image for this machine.
    pub(super) fn open(folder: &Path, limits: &Limits) -> Result<Self, LayoutError> {
        let invalid = |file: &str, reason: String| LayoutError::Invalid { path: folder.join(file), reason };
        let max_document = limits.document_bytes;
        let marker: Value = parse(&read(&folder.join("oci-layout"), None, max_document)?, &folder.join("oci-layout"))?;
        if marker["imageLayoutVersion"] != "1.0.0" {
            return Err(invalid("oci-layout", "is not version 1.0.0 of an OCI image layout".to_owned()));
        }
        let path = folder.join("index.json");
        let index: Value = parse(&read(&path, None, max_document)?, &path)?;
        let mut layout = Layout {
            folder: folder.to_owned(),
            name: None,
            manifest_digest: String::new(),
            manifest: Value::Null,
            max_document,
        };
        let mut chosen = choose(index, "index.json")?;
        if matches!(chosen.media_type(), MediaType::ImageIndex) || media_type(&chosen) == DOCKER_LIST {
            // An image for several platforms is an index of its own. No index has an index of indexes.
            let index: Value = layout.document(chosen.digest().as_ref(), chosen.size())?;
            let inner = choose(index, chosen.digest().as_ref())?;
            let annotations = chosen.annotations().clone();
            chosen = inner;
            chosen.set_annotations(annotations);
        }
        if *chosen.media_type() != MediaType::ImageManifest && media_type(&chosen) != DOCKER_MANIFEST {
            return Err(invalid("index.json", format!("names a {}, not an image manifest", chosen.media_type())));
        }
        layout.name = chosen.annotations().as_ref().and_then(|all| all.get(ANNOTATION_REF_NAME)).cloned();
        layout.manifest_digest = chosen.digest().to_string();
        layout.manifest = layout.document(&layout.manifest_digest, chosen.size())?;
        Ok(layout)
    }

    /// The name that the layout itself gives to its image.
    pub(super) fn name(&self) -> Result<&str, LayoutError> {
        self.name.as_deref().ok_or_else(|| LayoutError::Invalid {
            path: self.folder.join("index.json"),
            reason: format!("gives the image no name ({ANNOTATION_REF_NAME}): give one with --name"),
        })
    }

    /// Reads the rest of the documents.
    pub(super) fn image(&self, limits: &Limits) -> Result<LayoutImage, LayoutError> {
        let path = self.blob_path(&self.manifest_digest);
        let invalid = |reason: String| LayoutError::Invalid { path: path.clone(), reason };
        if self.manifest.get("manifests").is_some() {
            return Err(invalid("is a manifest and an index at once".to_owned()));
        }
        let manifest: ImageManifest =
            serde_json::from_value(self.manifest.clone()).map_err(|e| invalid(e.to_string()))?;
        if *manifest.config().media_type() != MediaType::ImageConfig && media_type(manifest.config()) != DOCKER_CONFIG {
            return Err(invalid(format!("is no image: its configuration is a {}", manifest.config().media_type())));
        }
        let config: ImageConfiguration =
            self.document(manifest.config().digest().as_ref(), manifest.config().size())?;
        if config.os().to_string() != "linux" || config.architecture().to_string() != architecture() {
            return Err(invalid(format!("is for {}/{}", config.os(), config.architecture())));
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() || diff_ids.len() > limits.layers {
            return Err(invalid(format!(
                "has {} layers and {} diff ids (they must agree, and be at most {})",
                manifest.layers().len(),
                diff_ids.len(),
                limits.layers
            )));
        }
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
            let compression = match layer.media_type() {
                MediaType::ImageLayer => Compression::None,
                MediaType::ImageLayerGzip => Compression::Gzip,
                MediaType::ImageLayerZstd => Compression::Zstd,
                MediaType::Other(other) if other == DOCKER_LAYER => Compression::None,
                MediaType::Other(other) if other == DOCKER_LAYER_GZIP => Compression::Gzip,
                MediaType::Other(other) if other == DOCKER_LAYER_ZSTD => Compression::Zstd,
                other => return Err(invalid(format!("has a layer of the unsupported type {other}"))),
            };
            if layer.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
                return Err(invalid("has a layer that is to be fetched from elsewhere".to_owned()));
            }
            if !is_sha256(diff_id) {
                return Err(invalid("has a diff id that is not sha256".to_owned()));
            }
            let digest = layer.digest().to_string();
            // Also for a layer that is in the store, whose blob is never opened.
            self.checked_path(&digest)?;
            layers.push(LayerBlob { digest, size: layer.size(), compression, diff_id: diff_id.clone() });
        }
        Ok(LayoutImage { config, layers })
    }

    /// Opens a blob of the given size. Its content is yet to be checked.
    pub(super) fn open_blob(&self, digest: &str, size: u64) -> Result<File, LayoutError> {
        open(&self.checked_path(digest)?, Some(size))
    }

    fn document<T: DeserializeOwned>(&self, digest: &str, size: u64) -> Result<T, LayoutError> {
        let path = self.checked_path(digest)?;
        let bytes = read(&path, Some(size), self.max_document)?;
        let found = sha256(&bytes);
        if found != digest {
            return Err(LayoutError::Digest { expected: digest.to_owned(), found });
        }
        parse(&bytes, &path)
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(hex(digest))
    }

    fn checked_path(&self, digest: &str) -> Result<PathBuf, LayoutError> {
        if !is_sha256(digest) {
            let reason = format!("names a blob by {digest:?}, which is no lower-case sha256 digest");
            return Err(LayoutError::Invalid { path: self.folder.clone(), reason });
        }
        Ok(self.blob_path(digest))
    }
}

/// The one manifest of an index that is for this machine.
fn choose(index: Value, name: &str) -> Result<Descriptor, LayoutError> {
    let invalid = |reason: String| LayoutError::Invalid { path: name.into(), reason };
    if index.get("layers").is_some() || index.get("config").is_some() {
        return Err(invalid("is an index and a manifest at once".to_owned()));
    }
    let index: ImageIndex = serde_json::from_value(index).map_err(|e| invalid(e.to_string()))?;
    let mut fitting = index.manifests().iter().filter(|manifest| is_for_this_machine(manifest));
    match (fitting.next(), fitting.next()) {
        (Some(chosen), None) => Ok(chosen.clone()),
        _ => Err(invalid(format!("must name exactly one manifest for linux/{}", architecture()))),
    }
}

/// The media type as it was written.
fn media_type(descriptor: &Descriptor) -> &str {
    match descriptor.media_type() {
        MediaType::Other(other) => other,
        _ => "",
    }
}

/// This machine's architecture as OCI (and Go) call it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A manifest without a platform is for any machine.
fn is_for_this_machine(manifest: &Descriptor) -> bool {
    manifest.platform().as_ref().is_none_or(|platform| {
        platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture()
    })
}

/// Opens a regular file; a link or a pipe in its place is refused.
fn open(path: &Path, size: Option<u64>) -> Result<File, LayoutError> {
    let fail = |source| LayoutError::Io { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    let invalid = |reason: String| LayoutError::Invalid { path: path.to_owned(), reason };
    if !found.is_file() {
        return Err(invalid("is not a file".to_owned()));
    }
    match size {
        Some(size) if found.len() != size => {
            Err(invalid(format!("has {} bytes, but must have {size}: the layout is damaged", found.len())))
        }
        _ => Ok(file),
    }
}

fn read(path: &Path, size: Option<u64>, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = Vec::new();
    open(path, size)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| LayoutError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(LayoutError::Invalid { path: path.to_owned(), reason: format!("has more than {limit} bytes") });
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes).map_err(|e| LayoutError::Invalid { path: path.to_owned(), reason: e.to_string() })
}
