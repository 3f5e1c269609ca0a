//! Manifests and indexes as registries send them: each must mean one thing only.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::RegistryError;
use crate::Limits;
use crate::digest::{is_sha256, sha256};

/// What we can read: OCI's kinds and those of Docker, their model.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A document that means one thing.
pub(super) enum Kind {
    Index(Box<ImageIndex>),
    Manifest(Box<Manifest>),
}

/// A manifest of an image.
pub(super) struct Manifest {
    /// Its media type, as it is to be said in an index.
    pub(super) media_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// Reads a document that the registry calls a `content_type`. The same bytes must not be taken for an index here and
/// for a manifest elsewhere (CVE-2021-41190), so that the three ways to tell have to agree.
pub(super) fn read(
    what: &str,
    bytes: &[u8],
    content_type: Option<&str>,
    limits: &Limits,
) -> Result<Kind, RegistryError> {
    let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
    let value: Value = parse(what, bytes)?;
    if value["schemaVersion"] != 2 || value.get("fsLayers").is_some() {
        return Err(invalid("is of an old schema that is not read: push the image again with a newer tool".to_owned()));
    }
    let is_index = value.get("manifests").is_some();
    let is_manifest = value.get("config").is_some() || value.get("layers").is_some();
    let (kinds, name) = match (is_index, is_manifest) {
        (true, false) => (INDEXES, "an index"),
        (false, true) => (MANIFESTS, "a manifest"),
        (true, true) => return Err(invalid("is an index and a manifest at once".to_owned())),
        (false, false) => return Err(invalid("is neither an index nor a manifest".to_owned())),
    };
    let own = match &value["mediaType"] {
        Value::Null => None,
        Value::String(own) => Some(own.clone()),
        _ => return Err(invalid("has a media type that is no text".to_owned())),
    };
    let known = |kind: &str| INDEXES.contains(&kind) || MANIFESTS.contains(&kind);
    let said = content_type.filter(|said| known(said));
    if let Some(other) = own.as_deref().into_iter().chain(said).find(|kind| !kinds.contains(kind)) {
        return Err(invalid(format!("looks like {name}, but is called a {other}")));
    }
    if let (Some(own), Some(said)) = (own.as_deref(), said)
        && own != said
    {
        return Err(invalid(format!("calls itself a {own}, but the registry calls it a {said}")));
    }
    if is_index {
        return Ok(Kind::Index(Box::new(from(what, value)?)));
    }
    let media_type = own.as_deref().or(said).unwrap_or(MANIFESTS[0]).to_owned();
    let manifest: ImageManifest = from(what, value)?;
    let manifest = Manifest { media_type, config: manifest.config().clone(), layers: manifest.layers().clone() };
    manifest.check(what, limits)?;
    Ok(Kind::Manifest(Box::new(manifest)))
}

impl Manifest {
    fn check(&self, what: &str, limits: &Limits) -> Result<(), RegistryError> {
        let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
        if !CONFIGS.contains(&self.config.media_type().to_string().as_str()) {
            return Err(invalid(format!("is no image: its configuration is a {}", self.config.media_type())));
        }
        if self.config.size() > limits.document_bytes {
            return Err(invalid(format!("has a configuration of {} bytes", self.config.size())));
        }
        if self.layers.len() > limits.layers {
            return Err(invalid(format!("has {} layers (at most {})", self.layers.len(), limits.layers)));
        }
        for blob in self.blobs() {
            if blob.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
                return Err(invalid("has a layer that is to be fetched from elsewhere".to_owned()));
            }
            if !is_sha256(blob.digest().as_ref()) {
                return Err(invalid(format!(
                    "names a blob by {:?}, which is no sha256 digest",
                    blob.digest().as_ref()
                )));
            }
        }
        for layer in &self.layers {
            if !LAYERS.contains(&layer.media_type().to_string().as_str()) {
                return Err(invalid(format!("has a layer of the unsupported type {}", layer.media_type())));
            }
        }
        let bytes = self.blobs().try_fold(0_u64, |sum, blob| sum.checked_add(blob.size()));
        match bytes {
            // What is compressed is not larger than what it holds.
            Some(bytes) if bytes <= limits.archive_bytes => Ok(()),
            _ => Err(invalid(format!("says that it has more than {} bytes", limits.archive_bytes))),
        }
    }

    /// Configuration and layers.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// The manifest of an index for linux on `architecture`.
pub(super) fn choose(what: &str, index: &ImageIndex, architecture: &str) -> Result<Descriptor, RegistryError> {
    let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
    let platforms = index.manifests().iter().filter_map(|entry| Some((entry, entry.platform().as_ref()?)));
    let fitting = platforms.filter(|(_, platform)| {
        platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
    });
    // Of several, the one that asks the least of the processor: v1 of amd64, v8 of arm64.
    let chosen = fitting.min_by_key(|(_, platform)| platform.variant().clone().unwrap_or_default());
    let chosen = match (chosen, index.manifests().as_slice()) {
        (Some((chosen, _)), _) => chosen,
        (None, [only]) if only.platform().is_none() => only,
        _ => {
            let found = index.manifests().iter().filter_map(|entry| entry.platform().as_ref());
            let found: Vec<String> = found.map(|p| format!("{}/{}", p.os(), p.architecture())).take(20).collect();
            return Err(invalid(format!("has nothing for linux/{architecture}, only for {}", found.join(", "))));
        }
    };
    if !MANIFESTS.contains(&chosen.media_type().to_string().as_str()) {
        return Err(invalid(format!("names a {}, not an image manifest", chosen.media_type())));
    }
    if !is_sha256(chosen.digest().as_ref()) {
        return Err(invalid("names a manifest by something else than a sha256 digest".to_owned()));
    }
    Ok(chosen.clone())
}

/// Checks the content of a document.
pub(super) fn verified(what: &str, bytes: &[u8], digest: &str) -> Result<(), RegistryError> {
    match sha256(bytes) {
        found if found == digest => Ok(()),
        found => Err(RegistryError::Digest { what: format!("{what} {digest}"), found }),
    }
}

fn parse(what: &str, bytes: &[u8]) -> Result<Value, RegistryError> {
    serde_json::from_slice(bytes)
        .map_err(|error| RegistryError::Invalid { what: what.to_owned(), reason: format!("is no JSON: {error}") })
}

fn from<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, RegistryError> {
    serde_json::from_value(value).map_err(|error| RegistryError::Invalid {
        what: what.to_owned(),
        reason: super::error::shortened(&error.to_string()),
    })
}
