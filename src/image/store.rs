//! The daemon's images on disk: each is unpacked once, into a directory that is shared read-only.
//!
//! ```text
//! ROOT/                       mode 0700: nobody else can run a file of an image
//! ├── lock                    held while something is changed
//! ├── names/NAME              the digest that NAME means
//! ├── images/HEX/image.json   what is known of it
//! ├── images/HEX/rootfs/      its files
//! └── tmp/                    work under way; swept when nobody works
//! ```
//!
//! An image appears in `images/` by one rename, after everything in it has reached the disk.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::read::MultiGzDecoder;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::digest::{HashingReader, hex, is_sha256};
use super::layout::{Compression, LayerBlob, Layout, LayoutError};
use super::progress::{Progress, Quiet};
use super::unpack::{Limits, UnpackError, Unpacker};

/// An image that is ready to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name, as the layout gave it.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Its files. To be mounted read-only; nothing may ever write there.
    pub rootfs: PathBuf,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Size of its layers as stored in the layout, bytes.
    pub compressed_bytes: u64,
    /// Sum of the sizes of its files, bytes.
    pub unpacked_bytes: u64,
    /// When it was unpacked, Unix milliseconds.
    pub unpacked_at_ms: u64,
}

/// The part of an image's configuration that matters for running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Environment, in the image's order.
    pub env: Vec<(String, String)>,
    /// `uid`, `uid:gid`, or names from its `/etc/passwd`; empty means root.
    pub user: String,
    /// Directory to start in; empty means `/`.
    pub workdir: String,
    /// Program and arguments that always come first.
    pub entrypoint: Vec<String>,
    /// Arguments if the caller gives none.
    pub cmd: Vec<String>,
}

impl From<&ImageConfiguration> for ImageConfig {
    fn from(config: &ImageConfiguration) -> Self {
        let Some(run) = config.config() else { return ImageConfig::default() };
        let split = |pair: &String| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        };
        ImageConfig {
            env: run.env().iter().flatten().map(split).collect(),
            user: run.user().clone().unwrap_or_default(),
            workdir: run.working_dir().clone().unwrap_or_default(),
            entrypoint: run.entrypoint().clone().unwrap_or_default(),
            cmd: run.cmd().clone().unwrap_or_default(),
        }
    }
}

/// `image.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    config: ImageConfig,
    compressed_bytes: u64,
    unpacked_bytes: u64,
    unpacked_at_ms: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file of the store could not be read or written.
    #[error("image store: {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The layout is damaged or not understood.
    #[error("image layout: {0}")]
    Layout(#[from] LayoutError),
    /// A layer was refused or could not be unpacked.
    #[error("layer {layer}: {source}")]
    Unpack {
        /// Digest of the layer.
        layer: String,
        /// Why.
        source: UnpackError,
    },
    /// The uncompressed content of a layer is not what the configuration says.
    #[error("layer {layer}: its archive is {found}, but the configuration says {expected}")]
    DiffId {
        /// Digest of the layer.
        layer: String,
        /// The diff id in the configuration.
        expected: String,
        /// The digest of its archive.
        found: String,
    },
    /// A name cannot be used for an image.
    #[error("image name {name:?}: must be 1 to 128 of a-z 0-9 . _ - and start with a letter or digit")]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such image.
    #[error("no image {name:?} in the store: run `thawctl images` to see those that are there")]
    NotFound {
        /// The name.
        name: String,
    },
}

type Result<T> = std::result::Result<T, StoreError>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

/// The images below one directory. Cheap to clone; several processes may use one directory at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
}

impl Store {
    /// Opens the store in `root`, which is created with mode 0700, and sweeps what an interrupted run left.
    pub fn open(root: &Path) -> Result<Self> {
        Self::with_limits(root, Limits::default())
    }

    /// Like [`Store::open`], with other limits for the images that come in.
    pub fn with_limits(root: &Path, limits: Limits) -> Result<Self> {
        let root = std::path::absolute(root).map_err(at(root))?;
        for folder in [root.clone(), root.join("images"), root.join("names"), root.join("tmp")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        // It may have been there before, with another mode.
        fs::set_permissions(&root, Permissions::from_mode(0o700)).map_err(at(&root))?;
        let store = Store { root, limits };
        let lock = store.lock_file()?;
        match lock.try_lock() {
            Ok(()) => store.sweep()?,
            // Somebody is at work, so what is in `tmp` may be theirs.
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(at(&store.root.join("lock"))(error)),
        }
        Ok(store)
    }

    /// The image of an OCI image layout, unpacked if it is not yet.
    ///
    /// Every blob is checked by size and digest. Blocks, for about a second per 300 MB; calls for the same image
    /// do the work once.
    pub fn ensure(&self, layout: &Path) -> Result<Image> {
        self.ensure_with(layout, &Quiet)
    }

    /// Like [`Store::ensure`], and tells how far it is.
    pub fn ensure_with(&self, layout: &Path, progress: &dyn Progress) -> Result<Image> {
        let layout = Layout::open(layout, &self.limits)?;
        check_name(&layout.name)?;
        if let Some(image) = self.find(&layout.name)?
            && image.digest == layout.manifest_digest
        {
            return Ok(image);
        }
        let lock = self.lock_file()?;
        lock.lock().map_err(at(&self.root))?;
        if self.load(&layout.name, &layout.manifest_digest)?.is_none() {
            progress.started("unpacking", None);
            let result = self.unpack(&layout, progress);
            progress.finished(if result.is_ok() { "unpacked" } else { "failed" });
            result?;
        }
        let name = self.root.join("names").join(&layout.name);
        self.write_whole(&name, layout.manifest_digest.as_bytes())?;
        self.get(&layout.name)
    }

    /// The image called `name`.
    pub fn get(&self, name: &str) -> Result<Image> {
        check_name(name)?;
        self.find(name)?.ok_or_else(|| StoreError::NotFound { name: name.to_owned() })
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>> {
        let folder = self.root.join("names");
        let mut images = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let name = entry.map_err(at(&folder))?.file_name();
            let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else { continue };
            images.extend(self.find(name)?);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Forgets a name, and removes its files unless another name means them too. The caller makes sure that no
    /// container runs from them.
    pub fn remove(&self, name: &str) -> Result<()> {
        let lock = self.lock_file()?;
        lock.lock().map_err(at(&self.root))?;
        let image = self.get(name)?;
        let path = self.root.join("names").join(name);
        fs::remove_file(&path).map_err(at(&path))?;
        if self.list()?.iter().all(|other| other.digest != image.digest) {
            self.discard(&self.folder(&image.digest))?;
        }
        Ok(())
    }

    /// Removes the files of images that no name means any more (an image of that name came later) and whose
    /// digest is not in `in_use`; returns the digests.
    pub fn prune(&self, in_use: &BTreeSet<String>) -> Result<Vec<String>> {
        let lock = self.lock_file()?;
        lock.lock().map_err(at(&self.root))?;
        let named: BTreeSet<String> = self.list()?.into_iter().map(|image| image.digest).collect();
        let folder = self.root.join("images");
        let mut removed = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let entry = entry.map_err(at(&folder))?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            if !named.contains(&digest) && !in_use.contains(&digest) {
                self.discard(&entry.path())?;
                removed.push(digest);
            }
        }
        Ok(removed)
    }

    fn find(&self, name: &str) -> Result<Option<Image>> {
        let path = self.root.join("names").join(name);
        match fs::read_to_string(&path) {
            Ok(digest) if is_sha256(&digest) => self.load(name, &digest),
            // A name that was cut short by a crash of the machine means nothing.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn load(&self, name: &str, digest: &str) -> Result<Option<Image>> {
        let folder = self.folder(digest);
        let path = folder.join("image.json");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at(&path))?,
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| at(&path)(e.into()))?;
        Ok(Some(Image {
            name: name.to_owned(),
            digest: digest.to_owned(),
            rootfs: folder.join("rootfs"),
            config: record.config,
            compressed_bytes: record.compressed_bytes,
            unpacked_bytes: record.unpacked_bytes,
            unpacked_at_ms: record.unpacked_at_ms,
        }))
    }

    fn folder(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(hex(digest))
    }

    /// Unpacks into `tmp` and moves the whole into place. The lock is held.
    fn unpack(&self, layout: &Layout, progress: &dyn Progress) -> Result<()> {
        let image = layout.image(&self.limits)?;
        let work = self.work_path();
        let result = self.unpack_into(&work, layout, &image.config, &image.layers, progress).and_then(|()| {
            let folder = self.folder(&layout.manifest_digest);
            if folder.exists() {
                // Without a record, or it would have been found.
                self.discard(&folder)?;
            }
            fs::rename(&work, &folder).map_err(at(&folder))?;
            sync(&self.root.join("images"))
        });
        if result.is_err() {
            // What cannot be removed now is swept at the next start.
            let _ = fs::remove_dir_all(&work);
        }
        result
    }

    fn unpack_into(
        &self,
        work: &Path,
        layout: &Layout,
        config: &ImageConfiguration,
        layers: &[LayerBlob],
        progress: &dyn Progress,
    ) -> Result<()> {
        let rootfs = work.join("rootfs");
        DirBuilder::new().mode(0o700).create(work).map_err(at(work))?;
        fs::create_dir(&rootfs).map_err(at(&rootfs))?;
        // An image need not say what its root is like; everybody inside must be able to enter it.
        fs::set_permissions(&rootfs, Permissions::from_mode(0o755)).map_err(at(&rootfs))?;
        let root: OwnedFd = File::open(&rootfs).map_err(at(&rootfs))?.into();
        let mut unpacker = Unpacker::new(root, &self.limits, progress);
        let mut compressed_bytes = 0;
        let mut archive_bytes = self.limits.archive_bytes;
        for layer in layers {
            let file = layout.open_blob(&layer.digest, layer.size)?;
            archive_bytes -= apply(&mut unpacker, layer, file, archive_bytes)?;
            compressed_bytes += layer.size;
        }
        let record = Record {
            config: ImageConfig::from(config),
            compressed_bytes,
            unpacked_bytes: unpacker.bytes(),
            unpacked_at_ms: now_ms(),
        };
        let path = work.join("image.json");
        let text = serde_json::to_vec_pretty(&record).map_err(|e| at(&path)(e.into()))?;
        fs::write(&path, text).map_err(at(&path))?;
        // All files at once: one by one would take minutes for a large tree.
        rustix::fs::syncfs(File::open(work).map_err(at(work))?).map_err(|e| at(work)(e.into()))
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.root.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).map_err(at(&path))
    }

    fn work_path(&self) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}-{}", std::process::id(), now_ms()))
    }

    /// Removes a folder so that it is gone as a whole first.
    fn discard(&self, folder: &Path) -> Result<()> {
        let work = self.work_path();
        fs::rename(folder, &work).map_err(at(folder))?;
        fs::remove_dir_all(&work).map_err(at(&work))
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let work = self.work_path();
        let mut file = File::create(&work).map_err(at(&work))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&work))?;
        fs::rename(&work, path).map_err(at(path))?;
        sync(path.parent().unwrap_or(&self.root))
    }

    /// Empties `tmp`. The lock is held, so nothing in there belongs to anybody.
    fn sweep(&self) -> Result<()> {
        let folder = self.root.join("tmp");
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let entry = entry.map_err(at(&folder))?;
            let path = entry.path();
            let is_folder = entry.file_type().map_err(at(&path))?.is_dir();
            let result = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            result.map_err(at(&path))?;
        }
        Ok(())
    }
}

/// Applies one layer while its bytes are hashed on both sides of the decompression; returns the size of its
/// archive. Nothing unpacked counts before the digests are right: the caller throws it away.
fn apply(unpacker: &mut Unpacker<'_>, layer: &LayerBlob, file: File, limit: u64) -> Result<u64> {
    let mut blob = HashingReader::new(file, layer.size);
    let result = decompressed(unpacker, layer, &mut blob, limit);
    // A layer that makes no sense may just be damaged: that is the better thing to say.
    let (_, found) = blob.finish().map_err(|error| unpack_error(layer, UnpackError::Archive(error)))?;
    if found != layer.digest {
        return Err(LayoutError::Digest { expected: layer.digest.clone(), found }.into());
    }
    let (bytes, found) = result?;
    if found != layer.diff_id {
        let (layer, expected) = (layer.digest.clone(), layer.diff_id.clone());
        return Err(StoreError::DiffId { layer, expected, found });
    }
    Ok(bytes)
}

fn decompressed(unpacker: &mut Unpacker<'_>, layer: &LayerBlob, blob: impl Read, limit: u64) -> Result<(u64, String)> {
    let fail = |source| unpack_error(layer, source);
    let reader: Box<dyn Read + '_> = match layer.compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        // The window is at most 128 MiB, the library's default.
        Compression::Zstd => Box::new(zstd::Decoder::new(blob).map_err(|e| fail(UnpackError::Archive(e)))?),
    };
    let mut archive = HashingReader::new(reader, limit);
    match unpacker.layer(&mut archive) {
        Err(_) if archive.over_limit() => Err(fail(UnpackError::Limit { what: "bytes of archives", limit })),
        Err(error) => Err(fail(error)),
        Ok(()) => archive.finish().map_err(|e| fail(UnpackError::Archive(e))),
    }
}

fn unpack_error(layer: &LayerBlob, source: UnpackError) -> StoreError {
    StoreError::Unpack { layer: layer.digest.clone(), source }
}

fn check_name(name: &str) -> Result<()> {
    let good = (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if good { Ok(()) } else { Err(StoreError::Name { name: name.to_owned() }) }
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(at(folder))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
