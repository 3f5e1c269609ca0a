//! From a registry into an image layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::{Reference, RegistryOperation};

use super::document::{self, Kind, Manifest};
use super::download;
use super::session::{Document, Session};
use super::target::Target;
use super::{Options, RegistryError};
use crate::digest::{is_sha256, sha256};
use crate::layout::architecture;
use crate::progress::Progress;

/// Blobs that come at the same time: as many as docker takes.
const PARALLEL: usize = 3;

/// What a pull brought.
#[derive(Debug, Clone)]
pub struct PullReport {
    /// Name of the image in the layout.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Digest of the index that it was chosen from, if it was.
    pub index: Option<String>,
    /// The layout it is in.
    pub layout: PathBuf,
    /// Number of its layers.
    pub layers: usize,
    /// Size of all layers as stored, bytes.
    pub compressed_bytes: u64,
    /// Bytes that had to be fetched for it, documents not counted.
    pub fetched_bytes: u64,
    /// Whether the layout held exactly this image already.
    pub unchanged: bool,
}

/// Gets the image for this machine into the layout at `folder`, where it is called `name`. The folder must be absent,
/// empty or a layout; the image that a layout had is replaced at the very end.
///
/// Safe to interrupt: what has come is kept beside the layout, and the next pull goes on from there.
///
/// # Errors
/// See [`RegistryError`]; unless it is one that may pass, nothing is left of the pull.
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
        manifest.layers.iter().map(|layer| (layer.digest().as_ref(), layer.size())).collect();
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
    blobs.extend([manifest.config.digest().as_ref(), found.digest.as_str()]);
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
        layers: manifest.layers.len(),
        compressed_bytes: manifest.layers.iter().map(|layer| layer.size()).sum(),
        fetched_bytes,
        unchanged,
        digest: found.digest,
    })
}

/// Gets documents and layers into the staging folder.
async fn fetch(
    session: &Session,
    target: &Target,
    found: &Found,
    layers: &BTreeMap<&str, u64>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<u64, RegistryError> {
    let config = &found.manifest.config;
    let wanted: BTreeSet<&str> = layers.keys().map(|digest| crate::digest::hex(digest)).collect();
    target.forget_others(&wanted)?;
    let document = session.small_blob(config.digest().as_ref(), options.limits.document_bytes).await?;
    document::verified("configuration", &document.bytes, config.digest().as_ref())?;
    target.put(config.digest().as_ref(), &document.bytes)?;
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
        let index = match document::read(&what, &document.bytes, document.content_type(), limits)? {
            Kind::Manifest(manifest) => {
                return Ok(Found { manifest: *manifest, bytes: document.bytes, digest, index: None });
            }
            Kind::Index(index) => index,
        };
        let chosen = document::choose(&what, &index, architecture())?;
        let inner = chosen.digest().to_string();
        let what = format!("manifest {inner}");
        let document = session.manifest(&inner, document::ACCEPT, limits.document_bytes).await?;
        document::verified("manifest", &document.bytes, &inner)?;
        match document::read(&what, &document.bytes, document.content_type(), limits)? {
            Kind::Manifest(manifest) => {
                Ok(Found { manifest: *manifest, bytes: document.bytes, digest: inner, index: Some(digest) })
            }
            Kind::Index(_) => Err(RegistryError::Invalid {
                what,
                reason: "is an index within an index, which is not read".to_owned(),
            }),
        }
    }
}

/// The digest of a document, which must be the one that it was asked for by, and the one that the registry gives.
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
