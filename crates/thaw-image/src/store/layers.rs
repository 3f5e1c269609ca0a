//! Unpacks blobs into layers, and composes layers into a root file system.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::error::{Result, StoreError, at};
use super::pipeline;
use super::record::{self, LayerRecord};
use crate::account::account;
use crate::digest::HashingReader;
use crate::layout::{LayerBlob, LayoutError};
use crate::progress::Progress;
use crate::unpack::{self, Composer, Contents, Limits, Owner, UnpackError, Used};

use super::record::ImageConfig;

/// Name of the list of a layer's entries.
pub(super) const CONTENTS: &str = "contents.jsonl";
/// Name of the folder of a layer's numbered files.
pub(super) const FILES: &str = "files";
/// Name of a layer's record; a folder without one is not a layer.
pub(super) const RECORD: &str = "layer.json";

/// Unpacks one layer into the new folder `to`, and hashes the bytes before and after decompression. `used` is what
/// lower layers have used of the limits. The result counts only if the digests match; after an error the caller
/// discards it.
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

    let (unpacked, produced) = pipeline::run(blob, layer, limit, |archive| {
        unpack::unpack(archive, files.into(), list, used, limits, progress)
    })
    .map_err(at(to))?;

    // An invalid layer may just be damaged; a wrong digest is the better error.
    let found = produced.blob.map_err(|error| fail(UnpackError::Archive(error)))?;
    if found != layer.digest {
        return Err(LayoutError::Digest { expected: layer.digest.clone(), found }.into());
    }
    // The reader's error came earlier in the archive than the limit.
    if produced.over_limit && !matches!(unpacked, Err(UnpackError::Limit { .. } | UnpackError::Entry { .. })) {
        return Err(fail(UnpackError::Limit { what: "bytes of archives", limit: limits.archive_bytes }));
    }
    let mut unpacked = unpacked.map_err(fail)?;
    let Some((bytes, found)) = produced.archive else {
        // Cannot happen, since the archive was read to its end; but no layer may pass without this check.
        return Err(fail(UnpackError::Archive(io::ErrorKind::UnexpectedEof.into())));
    };
    if found != layer.diff_id {
        let (layer, expected) = (layer.digest.clone(), layer.diff_id.clone());
        return Err(StoreError::DiffId { layer, expected, found });
    }
    unpacked.used.archive_bytes = bytes;
    let blobs = vec![layer.digest.clone()];
    let record = LayerRecord { used: unpacked.used, contents: unpacked.contents, blobs, notes: unpacked.notes };
    record::write(&to.join(RECORD), &record)?;
    Ok(record)
}

/// Proves without unpacking that a blob has its digest and holds the archive of its layer's diff id: whoever names a
/// stored layer must possess it. If `is_known` that this blob holds that archive, hashing the blob is enough.
pub(super) fn prove(
    layer: &LayerBlob,
    blob: File,
    is_known: bool,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<()> {
    let fail = |source| StoreError::Unpack { layer: layer.digest.clone(), source: UnpackError::Archive(source) };
    let wrong = |found| Err(LayoutError::Digest { expected: layer.digest.clone(), found }.into());
    if is_known {
        let (size, found) = HashingReader::new(blob, layer.size).finish().map_err(fail)?;
        progress.advanced(size);
        return if found == layer.digest { Ok(()) } else { wrong(found) };
    }
    let mut count = Counted { progress };
    let (read, produced) =
        pipeline::run(blob, layer, limits.archive_bytes, |mut archive| io::copy(&mut archive, &mut count))
            .map_err(fail)?;
    let found = produced.blob.map_err(fail)?;
    if found != layer.digest {
        return wrong(found);
    }
    read.map_err(fail)?;
    match produced.archive {
        Some((_, found)) if found == layer.diff_id => Ok(()),
        Some((_, found)) => {
            let (layer, expected) = (layer.digest.clone(), layer.diff_id.clone());
            Err(StoreError::DiffId { layer, expected, found })
        }
        None => Err(fail(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Writer that discards everything and counts it.
struct Counted<'a> {
    progress: &'a dyn Progress,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.advanced(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Composes the root file system `to` from the folders of layers, lowest first. Each comes with its diff id, and with
/// the digest of its blob for messages. Copies no file.
pub(super) fn compose(
    to: &Path,
    layers: &[(&LayerBlob, std::path::PathBuf)],
    config: &ImageConfig,
    limits: &Limits,
) -> Result<()> {
    fs::create_dir(to).map_err(at(to))?;
    // An image need not have an entry for its root; every user inside must be able to enter it.
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
    complete(&mut composer, to, config)
}

/// Adds to the root file system `to` what containers need and no layer has.
fn complete(composer: &mut Composer<'_>, to: &Path, config: &ImageConfig) -> Result<()> {
    // A user that cannot be resolved is reported when the image is run.
    let owner = account(to, &config.user).ok().and_then(|user| Owner::new(user.uid.into(), user.gid.into()));
    composer
        .complete(config.workdir.as_bytes(), owner.unwrap_or(Owner::ROOT))
        .map_err(|source| StoreError::Unpack { layer: "of what containers need".to_owned(), source })
}

/// As [`complete`], for an image that an earlier version composed.
pub(super) fn complete_stored(rootfs: &Path, config: &ImageConfig, limits: &Limits) -> Result<()> {
    let root = File::open(rootfs).map_err(at(rootfs))?;
    complete(&mut Composer::new(root.into(), limits).map_err(at(rootfs))?, rootfs, config)
}
