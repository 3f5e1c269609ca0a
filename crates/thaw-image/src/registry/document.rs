//! Manifests and indexes from registries: each must have one meaning only.

use serde_json::Value;

use super::RegistryError;
use crate::Limits;
use crate::digest::{is_sha256, sha256};
use crate::document::{self, Descriptor, Index, MediaKind, media_kind};
use crate::layout::this_platform;

/// Accepted media types: OCI's, and Docker's, after which they are modelled.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Media type of a manifest without a declared type.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Most manifests of an index that are fetched to find the image among them.
const MAX_CANDIDATES: usize = 8;

/// A document that means one thing.
pub(super) enum Kind {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// A manifest of an image.
pub(super) struct Manifest {
    /// Media type, as it goes into an index.
    pub(super) media_type: String,
    inner: document::Manifest,
}

/// Reads a document that the registry declares as `content_type`. The same bytes must not be an index here and a
/// manifest elsewhere (CVE-2021-41190), so the three declarations of the type must agree.
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
    let (expected, name) = match (is_index, is_manifest) {
        (true, false) => (MediaKind::Index, "an index"),
        (false, true) => (MediaKind::Manifest, "a manifest"),
        (true, true) => return Err(invalid("is an index and a manifest at once".to_owned())),
        (false, false) => return Err(invalid("is neither an index nor a manifest".to_owned())),
    };
    let own = match &value["mediaType"] {
        Value::Null => None,
        Value::String(own) => Some(own.clone()),
        _ => return Err(invalid("has a media type that is no text".to_owned())),
    };
    let said = content_type.filter(|said| media_kind(said) != MediaKind::Other);
    if let Some(other) = own.as_deref().into_iter().chain(said).find(|kind| media_kind(kind) != expected) {
        return Err(invalid(format!("looks like {name}, but is called a {other}")));
    }
    if let (Some(own), Some(said)) = (own.as_deref(), said)
        && own != said
    {
        return Err(invalid(format!("calls itself a {own}, but the registry calls it a {said}")));
    }
    if is_index {
        return Ok(Kind::Index(from(what, value)?));
    }
    let media_type = own.as_deref().or(said).unwrap_or(OCI_MANIFEST).to_owned();
    let manifest = Manifest { media_type, inner: from(what, value)? };
    manifest.check(what, limits)?;
    Ok(Kind::Manifest(Box::new(manifest)))
}

impl Manifest {
    fn check(&self, what: &str, limits: &Limits) -> Result<(), RegistryError> {
        let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
        self.inner.check().map_err(invalid)?;
        if self.config().size > limits.document_bytes {
            return Err(invalid(format!("has a configuration of {} bytes", self.config().size)));
        }
        if self.layers().len() > limits.layers {
            return Err(invalid(format!("has {} layers (at most {})", self.layers().len(), limits.layers)));
        }
        if let Some(blob) = self.blobs().find(|blob| !is_sha256(&blob.digest)) {
            return Err(invalid(format!("names a blob by {:?}, which is no sha256 digest", blob.digest)));
        }
        let bytes = self.blobs().try_fold(0_u64, |sum, blob| sum.checked_add(blob.size));
        match bytes {
            // A compressed layer is not larger than its archive.
            Some(bytes) if bytes <= limits.archive_bytes => Ok(()),
            _ => Err(invalid(format!("says that it has more than {} bytes", limits.archive_bytes))),
        }
    }

    pub(super) fn config(&self) -> &Descriptor {
        &self.inner.config
    }

    pub(super) fn layers(&self) -> &[Descriptor] {
        &self.inner.layers
    }

    /// Configuration and layers.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(self.config()).chain(self.layers())
    }
}

/// Entries of an index that can be the image for this machine: one, or several of which only one is an image.
pub(super) fn choose(what: &str, index: Index) -> Result<Vec<Descriptor>, RegistryError> {
    let invalid = |reason: String| RegistryError::Invalid { what: what.to_owned(), reason };
    let ours = this_platform();
    let found: Vec<String> = index.manifests.iter().filter_map(Descriptor::platform).take(20).collect();
    let images = index.manifests.into_iter().filter(|entry| !entry.is_artifact());
    let (fitting, others): (Vec<_>, Vec<_>) = images.partition(|entry| entry.platform().as_ref() == Some(&ours));
    // Of several, the one that needs the fewest processor features.
    let mut chosen: Vec<Descriptor> = match fitting.into_iter().min_by(|a, b| a.variant().cmp(b.variant())) {
        Some(chosen) => vec![chosen],
        None => others.into_iter().filter(|entry| entry.platform().is_none()).collect(),
    };
    chosen.dedup_by(|a, b| a.digest == b.digest);
    if chosen.is_empty() {
        let found = if found.is_empty() { "nothing that names a machine".to_owned() } else { found.join(", ") };
        return Err(invalid(format!("has nothing for {ours}, only for {found}")));
    }
    if chosen.len() > 1 {
        chosen.retain(|entry| media_kind(&entry.media_type) != MediaKind::Other);
    }
    if chosen.is_empty() || chosen.len() > MAX_CANDIDATES {
        return Err(invalid(format!("has {} entries that name no machine", chosen.len())));
    }
    if let [only] = &chosen[..]
        && media_kind(&only.media_type) == MediaKind::Other
    {
        return Err(invalid(format!("names a {}, not an image manifest", only.media_type)));
    }
    if chosen.iter().any(|entry| !is_sha256(&entry.digest)) {
        return Err(invalid("names a manifest by something else than a sha256 digest".to_owned()));
    }
    Ok(chosen)
}

/// Checks the digest of a document.
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

fn from<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T, RegistryError> {
    document::from(value)
        .map_err(|error| RegistryError::Invalid { what: what.to_owned(), reason: super::error::shortened(&error) })
}
