//! Downloads one blob to disk: hashes it on the way, and resumes where an earlier try broke off.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::client::BlobResponse;
use reqwest::Method;

use super::RegistryError;
use super::session::Session;
use super::target::Target;
use crate::digest::HashingWriter;
use crate::progress::Progress;

/// Most tries of a blob in a row that bring no new byte.
const TRIES: u32 = 5;
/// Pause before the second try; doubles with each further try.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A blob that is being downloaded.
struct Growing {
    file: File,
    hash: HashingWriter<io::Sink>,
    length: u64,
    /// Whether the beginning came from an earlier request.
    resumed: bool,
}

/// Downloads the blob, unless it is there already. Returns the number of bytes received.
pub(super) async fn blob(
    session: &Session,
    target: &Target,
    digest: &str,
    size: u64,
    progress: &dyn Progress,
) -> Result<u64, RegistryError> {
    if target.has(digest, size) {
        progress.advanced(size);
        return Ok(0);
    }
    let path = target.partial(digest);
    let mut growing = Growing::open(&path, size)?;
    progress.advanced(growing.length);
    let (mut came, mut tries, mut pause, mut was_refused) = (0, 0, FIRST_PAUSE, false);
    loop {
        let before = growing.length;
        let result = request(session, digest, size, &mut growing, &path, progress).await;
        came += growing.length.saturating_sub(before);
        match result {
            Ok(()) => {
                let found = growing.hash.finish().2;
                if found == digest {
                    break;
                }
                fs::remove_file(&path).map_err(RegistryError::io(&path))?;
                if !growing.resumed {
                    return Err(RegistryError::Digest { what: format!("blob {digest}"), found });
                }
                // The bytes from the earlier request may have been wrong: start again.
                growing = Growing::open(&path, size)?;
            }
            Err(error) if error.is_passing() => {
                tries = if growing.length > before { 1 } else { tries + 1 };
                if tries >= TRIES {
                    return Err(error);
                }
                pause = if tries == 1 { FIRST_PAUSE } else { pause * 2 };
                tokio::time::sleep(pause).await;
                growing.resumed = growing.length > 0;
            }
            Err(error @ RegistryError::Refused { .. }) if !was_refused => {
                was_refused = true;
                if !session.may_try_again(Method::GET, &format!("blobs/{digest}")).await? {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    growing.file.sync_all().map_err(RegistryError::io(&path))?;
    fs::rename(&path, target.staged(digest)).map_err(RegistryError::io(&path))?;
    Ok(came)
}

/// Requests the missing part, and stores as much of it as arrives.
async fn request(
    session: &Session,
    digest: &str,
    size: u64,
    growing: &mut Growing,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    if growing.length == size {
        return Ok(());
    }
    let grant = session.grant().await?;
    let what = format!("blob {digest}");
    let failed = |error| RegistryError::from_client(session.registry(), &what, error);
    // By digest only: URLs in the manifest are never used.
    let response = if growing.length == 0 {
        BlobResponse::Full(grant.client.pull_blob_stream(&session.reference, digest).await.map_err(failed)?)
    } else {
        let partial = grant.client.pull_blob_stream_partial(&session.reference, digest, growing.length, None);
        partial.await.map_err(failed)?
    };
    let mut stream = match response {
        BlobResponse::Partial(stream) => stream,
        BlobResponse::Full(stream) => {
            growing.restart(path)?;
            stream
        }
    };
    let found = stream.content_length.map(|length| growing.length.saturating_add(length));
    if let Some(found) = found.filter(|found| *found != size) {
        return Err(RegistryError::Size { digest: digest.to_owned(), expected: size, found });
    }
    let broken = |reason: String| RegistryError::Network { registry: session.registry().to_owned(), reason };
    while growing.length < size {
        let chunk = match stream.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Err(broken(format!("the download broke off: {error}"))),
            None => return Err(broken(format!("the download ended after {} of {size} bytes", growing.length))),
        };
        let found = growing.length.saturating_add(chunk.len() as u64);
        if found > size {
            return Err(RegistryError::Size { digest: digest.to_owned(), expected: size, found });
        }
        growing.add(&chunk, path)?;
        progress.advanced(chunk.len() as u64);
    }
    Ok(())
}

impl Growing {
    /// Opens and hashes what has been downloaded so far.
    fn open(path: &Path, size: u64) -> Result<Self, RegistryError> {
        let fail = |error| RegistryError::io(path)(error);
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(fail)?;
        let mut length = file.metadata().map_err(fail)?.len();
        let mut hash = HashingWriter::new(io::sink());
        if length > size {
            file.set_len(0).map_err(fail)?;
            length = 0;
        }
        io::copy(&mut file, &mut hash).map_err(fail)?;
        Ok(Growing { file, hash, length, resumed: length > 0 })
    }

    /// Starts again, because the registry sends the whole blob.
    fn restart(&mut self, path: &Path) -> Result<(), RegistryError> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(RegistryError::io(path))?;
        (self.hash, self.length, self.resumed) = (HashingWriter::new(io::sink()), 0, false);
        Ok(())
    }

    fn add(&mut self, chunk: &[u8], path: &Path) -> Result<(), RegistryError> {
        let written = self.file.write_all(chunk).and_then(|()| self.hash.write_all(chunk));
        written.map_err(RegistryError::io(path))?;
        self.length += chunk.len() as u64;
        Ok(())
    }
}
