//! Pushes an image layout to a registry.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use hyper::body::Bytes;
use oci_client::errors::OciDistributionError;
use oci_client::{Reference, RegistryOperation};
use reqwest::Method;
use reqwest::header::HeaderValue;

use super::document::{self, Kind};
use super::session::Session;
use super::{Options, RegistryError};
use crate::LayoutError;
use crate::digest::{HashingReader, hex, sha256};
use crate::layout::Layout;
use crate::progress::Progress;

/// Size of a piece of a blob that is read at once, bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// Most tries of a blob.
const TRIES: u32 = 3;
/// Interval of progress reports during an upload.
const TICK: Duration = Duration::from_millis(100);

/// Result of a push.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// Reference of the image in the registry.
    pub reference: Reference,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Number of its layers.
    pub layers: usize,
    /// Size of all layers as stored, bytes.
    pub compressed_bytes: u64,
    /// Bytes that were sent because the registry lacked them, without the manifest.
    pub sent_bytes: u64,
}

/// Pushes the image of the layout at `folder`. Blobs that the registry has are not sent.
///
/// # Errors
/// See [`RegistryError`]. The tag is changed last, when the registry has everything.
pub async fn push(
    folder: &Path,
    reference: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<PushReport, RegistryError> {
    if reference.digest().is_some() {
        return Err(RegistryError::Reference {
            text: reference.to_string(),
            reason: "a push needs a tag, the digest follows from the image".to_owned(),
        });
    }
    let layout = Layout::open(folder, &options.limits)?;
    layout.image(&options.limits)?;
    let digest = layout.manifest_digest.clone();
    let path = folder.join("blobs/sha256").join(hex(&digest));
    let bytes = fs::read(&path).map_err(RegistryError::io(&path))?;
    document::verified("manifest", &bytes, &digest)?;
    let what = format!("manifest {digest}");
    let Kind::Manifest(manifest) = document::read(&what, &bytes, None, &options.limits)? else {
        return Err(RegistryError::Invalid { what, reason: "is an index".to_owned() });
    };
    let session = Session::new(reference, RegistryOperation::Push, options)?;
    let blobs: BTreeMap<&str, u64> = manifest.blobs().map(|blob| (blob.digest.as_str(), blob.size)).collect();
    progress.started(&format!("sending {} blobs", blobs.len()), Some(blobs.values().sum()));
    let mut sent_bytes = 0;
    let mut result = Ok(());
    let mut was_refused = false;
    for (blob, size) in &blobs {
        let mut sent = send(&session, &layout, blob, *size, progress).await;
        if let Err(RegistryError::Refused { .. }) = &sent
            && !std::mem::replace(&mut was_refused, true)
            && session.may_try_again(Method::POST, "blobs/uploads/").await?
        {
            sent = send(&session, &layout, blob, *size, progress).await;
        }
        match sent {
            Ok(sent) => sent_bytes += sent,
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    progress.finished(if result.is_ok() { "sent" } else { "failed" });
    result?;

    let grant = session.grant().await?;
    let content_type = HeaderValue::try_from(&manifest.media_type)
        .map_err(|error| RegistryError::Invalid { what: what.clone(), reason: error.to_string() })?;
    let put = grant.client.push_manifest_raw(reference, bytes, content_type).await;
    put.map_err(|error| RegistryError::from_client(session.registry(), &what, error))?;
    let tag = reference.tag().unwrap_or("latest");
    let there = session.manifest(tag, document::ACCEPT, options.limits.document_bytes).await?;
    match sha256(&there.bytes) {
        found if found == digest => {}
        found => return Err(RegistryError::Digest { what: format!("{tag}, just sent as {digest}"), found }),
    }
    Ok(PushReport {
        reference: reference.clone(),
        digest,
        layers: manifest.layers().len(),
        compressed_bytes: manifest.layers().iter().map(|layer| layer.size).sum(),
        sent_bytes,
    })
}

/// Sends one blob, unless the registry has it. Returns the number of bytes sent.
async fn send(
    session: &Session,
    layout: &Layout,
    digest: &str,
    size: u64,
    progress: &dyn Progress,
) -> Result<u64, RegistryError> {
    let what = format!("blob {digest}");
    let failed = |error| RegistryError::from_client(session.registry(), &what, error);
    let grant = session.grant().await?;
    if grant.client.blob_exists(&session.reference, digest).await.map_err(failed)? {
        progress.advanced(size);
        return Ok(0);
    }
    // The registry would detect this too, but with a less helpful message.
    let unreadable = |error| RegistryError::Io { path: hex(digest).into(), source: error };
    let (_, found) = HashingReader::new(layout.open_blob(digest, size)?, size).finish().map_err(unreadable)?;
    if found != digest {
        return Err(LayoutError::Digest { expected: digest.to_owned(), found }.into());
    }
    let mut tries = 0;
    loop {
        let grant = session.grant().await?;
        let file = layout.open_blob(digest, size)?;
        let sent = Arc::new(AtomicU64::new(0));
        let upload = grant.client.push_blob_stream(&session.reference, chunks(file, &sent), digest, Some(size));
        let mut upload = std::pin::pin!(upload);
        let mut told = 0;
        let result = loop {
            let result = tokio::time::timeout(TICK, &mut upload).await;
            let now = sent.load(Ordering::Relaxed);
            progress.advanced(now - told);
            told = now;
            if let Ok(result) = result {
                break result;
            }
        };
        match result.map_err(failed) {
            Ok(_) => return Ok(size),
            Err(error) => {
                tries += 1;
                if !error.is_passing() || tries >= TRIES {
                    return Err(error);
                }
            }
        }
    }
}

/// The file in pieces; counts what is read.
fn chunks(
    file: File,
    sent: &Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, OciDistributionError>> + Send + 'static {
    stream::try_unfold((file, Arc::clone(sent)), |(mut file, sent)| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let count = loop {
            match file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        chunk.truncate(count);
        sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok((count > 0).then(|| (Bytes::from(chunk), (file, sent))))
    })
}
