//! Writes a tree as one compressed tar: the same tree gives the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use super::BuildError;
use super::tree::{Node, Source, Tree};
use crate::digest::{HashingWriter, hex};
use crate::progress::Progress;

/// Level 3 compresses these layers to within 20 % of level 19 in seconds instead of minutes (measured on the
/// three CLI images).
const ZSTD_LEVEL: i32 = 3;

/// How the layers of an image are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LayerCompression {
    /// Small and fast; supported by container tools since about 2021.
    #[default]
    Zstd,
    /// For tools that cannot read zstd, such as umoci.
    Gzip,
}

/// A finished layer in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    /// Digest of the compressed blob.
    pub(super) digest: String,
    /// Size of the compressed blob, bytes.
    pub(super) size: u64,
    /// Digest of the tar inside.
    pub(super) diff_id: String,
    /// Size of the tar inside, bytes.
    pub(super) unpacked: u64,
}

/// Cache of finished layers, by the hash of their inputs.
pub(super) struct LayerCache {
    folder: PathBuf,
}

impl LayerCache {
    pub(super) fn open(cache_dir: &Path) -> Result<Self, BuildError> {
        let folder = cache_dir.join("layers");
        fs::create_dir_all(&folder).map_err(|e| BuildError::io(&folder, e))?;
        Ok(LayerCache { folder })
    }

    /// Path of the blob of the layer made from `key`.
    pub(super) fn blob(&self, key: &str, compression: LayerCompression) -> PathBuf {
        let suffix = match compression {
            LayerCompression::Zstd => "zst",
            LayerCompression::Gzip => "gz",
        };
        self.folder.join(format!("{}.tar.{suffix}", hex(key)))
    }

    fn note(&self, key: &str, compression: LayerCompression) -> PathBuf {
        let suffix = match compression {
            LayerCompression::Zstd => "json",
            LayerCompression::Gzip => "gz.json",
        };
        self.folder.join(format!("{}.{suffix}", hex(key)))
    }

    /// The layer made from `key`, if the cache holds it completely.
    pub(super) fn get(&self, key: &str, compression: LayerCompression) -> Option<Layer> {
        let layer: Layer = serde_json::from_slice(&fs::read(self.note(key, compression)).ok()?).ok()?;
        (fs::metadata(self.blob(key, compression)).ok()?.len() == layer.size).then_some(layer)
    }

    /// Writes `tree` as the layer made from `key`.
    pub(super) fn put(&self, key: &str, tree: &Tree, progress: &dyn Progress) -> Result<Layer, BuildError> {
        self.add(key, LayerCompression::Zstd, |partial| write(tree, partial, progress))
    }

    /// Makes the gzip variant of a cached layer from the same archive, so no package is needed again.
    pub(super) fn gzip(&self, key: &str, progress: &dyn Progress) -> Result<Layer, BuildError> {
        let from = self.blob(key, LayerCompression::Zstd);
        self.add(key, LayerCompression::Gzip, |partial| recompress(&from, partial, progress))
    }

    fn add(
        &self,
        key: &str,
        compression: LayerCompression,
        make: impl FnOnce(&Path) -> Result<Layer, BuildError>,
    ) -> Result<Layer, BuildError> {
        let blob = self.blob(key, compression);
        let partial = blob.with_extension(format!("partial-{}", std::process::id()));
        let layer = make(&partial).inspect_err(|_| drop(fs::remove_file(&partial)))?;
        fs::rename(&partial, &blob).map_err(|e| BuildError::io(&blob, e))?;
        // Write the note last: a layer without one does not count as cached.
        let note = self.note(key, compression);
        let text = serde_json::to_vec(&layer).map_err(|e| BuildError::io(&note, e.into()))?;
        super::write_whole(&note, &text)?;
        Ok(layer)
    }
}

fn write(tree: &Tree, to: &Path, progress: &dyn Progress) -> Result<Layer, BuildError> {
    let fail = |e| BuildError::io(to, e);
    let file = File::create(to).map_err(fail)?;
    let blob = HashingWriter::new(BufWriter::with_capacity(1 << 20, file));
    let zstd = zstd::Encoder::new(blob, ZSTD_LEVEL).map_err(fail)?;
    let mut archive = tar::Builder::new(HashingWriter::new(zstd));
    for (path, node) in tree.iter() {
        append(&mut archive, path, node, progress)?;
    }
    let (zstd, unpacked, diff_id) = archive.into_inner().map_err(fail)?.finish();
    let (buffer, size, digest) = zstd.finish().map_err(fail)?.finish();
    let file = buffer.into_inner().map_err(|e| fail(e.into_error()))?;
    file.sync_all().map_err(fail)?;
    Ok(Layer { digest, size, diff_id, unpacked })
}

fn recompress(from: &Path, to: &Path, progress: &dyn Progress) -> Result<Layer, BuildError> {
    let fail = |e| BuildError::io(to, e);
    let archive = File::open(from).and_then(zstd::Decoder::new).map_err(|e| BuildError::io(from, e))?;
    let blob = HashingWriter::new(BufWriter::with_capacity(1 << 20, File::create(to).map_err(fail)?));
    // No name and no time in the header, so that the same archive gives the same bytes.
    let gzip = flate2::write::GzEncoder::new(blob, flate2::Compression::default());
    let mut gzip = HashingWriter::new(gzip);
    io::copy(&mut Counted { inner: archive, progress }, &mut gzip).map_err(fail)?;
    let (gzip, unpacked, diff_id) = gzip.finish();
    let (buffer, size, digest) = gzip.finish().map_err(fail)?.finish();
    buffer.into_inner().map_err(|e| fail(e.into_error()))?.sync_all().map_err(fail)?;
    Ok(Layer { digest, size, diff_id, unpacked })
}

/// Appends an entry. All entries have the same time (the epoch) and numeric owners, so that only content makes a
/// difference.
fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    node: &Node,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let fail = |e| BuildError::io(Path::new(path), e);
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match node {
        Node::Directory { mode, owner } => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            header.set_uid(u64::from(*owner));
            header.set_gid(u64::from(*owner));
            archive.append_data(&mut header, format!("{path}/"), io::empty()).map_err(fail)
        }
        Node::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, path, target).map_err(fail)
        }
        Node::File { mode, source } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(*mode);
            match source {
                Source::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    let counted = Counted { inner: bytes.as_slice(), progress };
                    archive.append_data(&mut header, path, counted).map_err(fail)
                }
                Source::File(from) => {
                    let file = File::open(from).map_err(|e| BuildError::io(from, e))?;
                    let size = file.metadata().map_err(|e| BuildError::io(from, e))?.len();
                    header.set_size(size);
                    let counted = Counted { inner: file.take(size), progress };
                    archive.append_data(&mut header, path, counted).map_err(|e| BuildError::io(from, e))
                }
            }
        }
    }
}

/// Reader that reports its progress.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advanced(count as u64);
        Ok(count)
    }
}
