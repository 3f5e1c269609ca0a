//! One blob, from the registry to disk: hashed as it comes, and gone on with where it broke off.

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

/// How often a blob is tried without a byte more than before.
const TRIES: u32 = 5;
/// The pause before the second try, which doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// A blob that grows.
struct Growing {
    file: File,
    hash: HashingWriter<io::Sink>,
    length: u64,
    /// Whether some of it came from an earlier request.
    resumed: bool,
}

/// Gets the blob, unless it is there. Returns how many bytes came.
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
                // What was there before may have been the wrong part.
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

/// Asks for what is missing, and takes as much of it as comes.
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
    // By its digest alone: addresses that the manifest may give beside it are never used.
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
    /// Opens what there is of it, and hashes that.
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

    /// Begins again: the registry sends all of it, whatever was asked for.
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
