//! Pulls an image from a registry into an image layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::{Reference, RegistryOperation};

use super::document::{self, Kind, Manifest};
use super::download;
use super::session::{Document, Session};
use super::target::Target;
use super::{Options, RegistryError};
use crate::Limits;
use crate::digest::{is_sha256, sha256};
use crate::document::Index;
use crate::progress::Progress;

/// Blobs downloaded at the same time: as many as docker's default.
const PARALLEL: usize = 3;

/// Most levels of nested indexes.
const MAX_NESTED: usize = 4;

/// Result of a pull.
#[derive(Debug, Clone)]
pub struct PullReport {
    /// Name of the image in the layout.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of the index that the image was chosen from, if there is one.
    pub index: Option<String>,
    /// Folder of the layout.
    pub layout: PathBuf,
    /// Number of its layers.
    pub layers: usize,
    /// Size of all layers as stored, bytes.
    pub compressed_bytes: u64,
    /// Bytes downloaded, without documents.
    pub fetched_bytes: u64,
    /// Whether the layout held exactly this image already.
    pub unchanged: bool,
}

/// Pulls the image for this machine into the layout at `folder`, under the name `name`. The folder must be absent,
/// empty or a layout; the image of an existing layout is replaced at the very end.
///
/// Safe to interrupt: downloads are kept beside the layout, and the next pull resumes.
///
/// # Errors
/// See [`RegistryError`]. Unless the error may pass, nothing of the pull is left.
pub async fn pull(
    reference: &Reference,
    options: &Options,
    folder: &Path,
    name: &str,
    progress: &dyn Progress,
) -> Result<PullReport, RegistryError> {
    let session = Session::new(reference, RegistryOperation::Pull, options)?;
    let found = Found::get(&session, options).await?;
    let target = Target::open(folder).await?;
    let manifest = &found.manifest;
    let layers: BTreeMap<&str, u64> =
        manifest.layers().iter().map(|layer| (layer.digest.as_str(), layer.size)).collect();
    progress.started(&format!("fetching {} layers", layers.len()), Some(layers.values().sum()));
    let result = fetch(&session, &target, &found, &layers, options, progress).await;
    progress.finished(match &result {
        Ok(_) => "fetched, digests checked",
        Err(error) if error.is_passing() => "interrupted",
        Err(_) => "failed",
    });
    let fetched_bytes = match result {
        Ok(bytes) => bytes,
        Err(error) => {
            if !error.is_passing() {
                target.abandon();
            }
            return Err(error);
        }
    };
    let mut blobs: BTreeSet<&str> = layers.keys().copied().collect();
    blobs.extend([manifest.config().digest.as_str(), found.digest.as_str()]);
    let descriptor = (manifest.media_type.as_str(), found.digest.as_str(), found.bytes.len());
    let unchanged = match target.commit(descriptor, name, &blobs, &options.limits) {
        Ok(unchanged) => unchanged,
        Err(error) => {
            target.abandon();
            return Err(error);
        }
    };
    Ok(PullReport {
        name: name.to_owned(),
        index: found.index,
        layout: folder.to_owned(),
        layers: manifest.layers().len(),
        compressed_bytes: manifest.layers().iter().map(|layer| layer.size).sum(),
        fetched_bytes,
        unchanged,
        digest: found.digest,
    })
}

/// Downloads documents and layers into the staging folder.
async fn fetch(
    session: &Session,
    target: &Target,
    found: &Found,
    layers: &BTreeMap<&str, u64>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<u64, RegistryError> {
    let config = &found.manifest.config().digest;
    let wanted: BTreeSet<&str> = layers.keys().map(|digest| crate::digest::hex(digest)).collect();
    target.forget_others(&wanted)?;
    let document = session.small_blob(config, options.limits.document_bytes).await?;
    document::verified("configuration", &document.bytes, config)?;
    target.put(config, &document.bytes)?;
    target.put(&found.digest, &found.bytes)?;
    let blobs = layers.iter().map(|(digest, size)| download::blob(session, target, digest, *size, progress));
    stream::iter(blobs).buffer_unordered(PARALLEL).try_fold(0, |sum, bytes| async move { Ok(sum + bytes) }).await
}

/// The manifest for this machine.
struct Found {
    manifest: Manifest,
    bytes: Vec<u8>,
    digest: String,
    index: Option<String>,
}

impl Found {
    async fn get(session: &Session, options: &Options) -> Result<Self, RegistryError> {
        let reference = &session.reference;
        let limits = &options.limits;
        let name = reference.digest().or(reference.tag()).unwrap_or("latest");
        let what = format!("manifest {name}");
        let document = session.manifest(name, document::ACCEPT, limits.document_bytes).await?;
        let digest = digest_of(&what, &document, reference.digest())?;
        match document::read(&what, &document.bytes, document.content_type(), limits)? {
            Kind::Manifest(manifest) => Ok(Found { manifest: *manifest, bytes: document.bytes, digest, index: None }),
            Kind::Index(mut index) => {
                let mut what = what;
                for _ in 0..MAX_NESTED {
                    match Self::inside(session, &what, index, &digest, limits).await? {
                        Inside::Image(found) => return Ok(*found),
                        Inside::Index(inner, next) => (index, what) = (inner, next),
                    }
                }
                Err(RegistryError::Invalid { what, reason: format!("is within more than {MAX_NESTED} indexes") })
            }
        }
    }

    /// What an index, or one nested in `outer`, has for this machine.
    async fn inside(
        session: &Session,
        what: &str,
        index: Index,
        outer: &str,
        limits: &Limits,
    ) -> Result<Inside, RegistryError> {
        let candidates = document::choose(what, index)?;
        let is_only = candidates.len() == 1;
        let mut found = None;
        for candidate in candidates {
            let digest = candidate.digest;
            let inner = format!("manifest {digest}");
            let document = session.manifest(&digest, document::ACCEPT, limits.document_bytes).await?;
            document::verified("manifest", &document.bytes, &digest)?;
            let inside = match document::read(&inner, &document.bytes, document.content_type(), limits) {
                Ok(Kind::Manifest(manifest)) => {
                    let index = Some(outer.to_owned());
                    Inside::Image(Box::new(Found { manifest: *manifest, bytes: document.bytes, digest, index }))
                }
                Ok(Kind::Index(index)) => Inside::Index(index, inner),
                Err(error) if is_only => return Err(error),
                // A signature, or something else that is not an image.
                Err(_) => continue,
            };
            if found.replace(inside).is_some() {
                let reason = "has several images that no machine is named for".to_owned();
                return Err(RegistryError::Invalid { what: what.to_owned(), reason });
            }
        }
        found.ok_or_else(|| RegistryError::Invalid { what: what.to_owned(), reason: "has no image".to_owned() })
    }
}

/// Target of an index entry.
enum Inside {
    Image(Box<Found>),
    /// Another index, with a name for messages.
    Index(Index, String),
}

/// Digest of a document. It must match the requested digest, if any, and the one that the registry declares.
fn digest_of(what: &str, document: &Document, asked: Option<&str>) -> Result<String, RegistryError> {
    if let Some(asked) = asked {
        if !is_sha256(asked) {
            let reason = "only sha256 digests in lower case can be checked".to_owned();
            return Err(RegistryError::Invalid { what: what.to_owned(), reason });
        }
        document::verified("manifest", &document.bytes, asked)?;
    }
    let given = document.headers.get("docker-content-digest").and_then(|given| given.to_str().ok());
    if let Some(given) = given.filter(|given| is_sha256(given)) {
        document::verified("manifest", &document.bytes, given)?;
    }
    Ok(sha256(&document.bytes))
}
