//! From blobs to unpacked layers, and from those to a root file system.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::read::MultiGzDecoder;

use super::error::{Result, StoreError, at};
use super::record::{self, LayerRecord};
use crate::image::digest::HashingReader;
use crate::image::layout::{Compression, LayerBlob, LayoutError};
use crate::image::progress::Progress;
use crate::image::unpack::{self, Composer, Contents, Limits, UnpackError, Used};

/// The list of a layer's entries.
pub(super) const CONTENTS: &str = "contents.jsonl";
/// A layer's numbered files.
pub(super) const FILES: &str = "files";
/// What is known of a layer; without it a folder is no layer.
pub(super) const RECORD: &str = "layer.json";

/// Bytes handed from decompressing to unpacking at once.
const CHUNK: usize = 256 * 1024;
/// Chunks that may wait: a few MiB of memory.
const CHUNKS: usize = 8;

/// Unpacks one layer into the new folder `to` while its bytes are hashed on both sides of the decompression.
/// `used` is what the layers below used of the limits. Nothing unpacked counts before the digests are right: on an
/// error the caller throws it away.
pub(super) fn unpack_layer(
    layer: &LayerBlob,
    blob: File,
    to: &Path,
    used: &Used,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<LayerRecord> {
    let files = to.join(FILES);
    for folder in [to, &files] {
        DirBuilder::new().mode(0o700).create(folder).map_err(at(folder))?;
    }
    let files = File::open(&files).map_err(at(&files))?;
    let list = File::create_new(to.join(CONTENTS)).map_err(at(to))?;
    let fail = |source| StoreError::Unpack { layer: layer.digest.clone(), source };
    let limit = limits.archive_bytes - used.archive_bytes.min(limits.archive_bytes);

    // Decompressing and hashing take as long as hashing and writing the files, so each has a thread.
    let (unpacked, produced) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(CHUNKS);
        let producer = std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn_scoped(scope, move || produce(blob, layer, limit, &sender))?;
        let archive = Chunks { receiver, chunk: io::Cursor::default() };
        let unpacked = unpack::unpack(archive, files.into(), list, used, limits, progress);
        // A panic over there is a panic here.
        let produced = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((unpacked, produced))
    })
    .map_err(|error: io::Error| at(to)(error))?;

    // A layer that makes no sense may just be damaged: that is the better thing to say.
    let found = produced.blob.map_err(|error| fail(UnpackError::Archive(error)))?;
    if found != layer.digest {
        return Err(LayoutError::Digest { expected: layer.digest.clone(), found }.into());
    }
    // What the reader objected to came earlier in the archive than where the limit was reached.
    if produced.over_limit && !matches!(unpacked, Err(UnpackError::Limit { .. } | UnpackError::Entry { .. })) {
        return Err(fail(UnpackError::Limit { what: "bytes of archives", limit: limits.archive_bytes }));
    }
    let mut unpacked = unpacked.map_err(fail)?;
    let Some((bytes, found)) = produced.archive else {
        // The archive was read to its end, so this cannot be; but no layer may pass without this check.
        return Err(fail(UnpackError::Archive(io::ErrorKind::UnexpectedEof.into())));
    };
    if found != layer.diff_id {
        let (layer, expected) = (layer.digest.clone(), layer.diff_id.clone());
        return Err(StoreError::DiffId { layer, expected, found });
    }
    unpacked.used.archive_bytes = bytes;
    let record = LayerRecord { used: unpacked.used, contents: unpacked.contents };
    record::write(&to.join(RECORD), &record)?;
    Ok(record)
}

/// What came of reading a blob.
struct Produced {
    /// Its digest.
    blob: io::Result<String>,
    /// Size and digest of the archive in it, if that was read to its end.
    archive: Option<(u64, String)>,
    over_limit: bool,
}

/// Reads a blob to its end and sends what is in it.
fn produce(blob: File, layer: &LayerBlob, limit: u64, to: &SyncSender<io::Result<Vec<u8>>>) -> Produced {
    let mut blob = HashingReader::new(blob, layer.size);
    let (mut archive, mut over_limit) = (None, false);
    match decoder(&mut blob, layer.compression) {
        Ok(decoder) => {
            let mut reader = HashingReader::new(decoder, limit);
            let ended = loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let result = (&mut reader).take(CHUNK as u64).read_to_end(&mut chunk);
                let (failed, done) = (result.is_err(), chunk.is_empty());
                let message = result.map(|_| chunk);
                if failed || done || to.send(message).is_err() {
                    break done && !failed;
                }
            };
            over_limit = reader.over_limit();
            if ended {
                archive = reader.finish().ok();
            }
        }
        // Nobody reads on when this cannot be sent.
        Err(error) => drop(to.send(Err(error))),
    }
    Produced { blob: blob.finish().map(|(_, digest)| digest), archive, over_limit }
}

pub(super) fn decoder<'a>(blob: impl Read + 'a, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        // The window is at most 128 MiB, the library's default.
        Compression::Zstd => Box::new(zstd::Decoder::new(blob)?),
    })
}

/// Reads what [`produce`] sends.
struct Chunks {
    receiver: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.chunk.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.receiver.recv() {
                Ok(chunk) => self.chunk = io::Cursor::new(chunk?),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// Makes the root file system `to` from the folders of layers, lowest first; each comes with its diff id, and the
/// digest of its blob for messages. Copies no file.
pub(super) fn compose(to: &Path, layers: &[(&LayerBlob, std::path::PathBuf)], limits: &Limits) -> Result<()> {
    fs::create_dir(to).map_err(at(to))?;
    // An image need not say what its root is like; everybody inside must be able to enter it.
    fs::set_permissions(to, Permissions::from_mode(0o755)).map_err(at(to))?;
    let mut composer = Composer::new(File::open(to).map_err(at(to))?.into(), limits).map_err(at(to))?;
    for (layer, folder) in layers {
        let damaged = |reason: &str| StoreError::Damaged { layer: layer.diff_id.clone(), reason: reason.to_owned() };
        let record: LayerRecord =
            record::read(&folder.join(RECORD))?.ok_or_else(|| damaged("its record is missing"))?;
        let list = folder.join(CONTENTS);
        let mut contents = Contents::open(&list).map_err(at(&list))?;
        let files = folder.join(FILES);
        let files = File::open(&files).map_err(at(&files))?;
        composer
            .layer(|| contents.next(), files.as_fd())
            .map_err(|source| StoreError::Unpack { layer: layer.digest.clone(), source })?;
        if contents.finish().map_err(at(&list))? != record.contents {
            return Err(damaged("its list of files was changed"));
        }
    }
    Ok(())
}
