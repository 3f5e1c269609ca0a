//! The daemon's images on disk: each layer is unpacked once, and each image is put together once from its layers.
//!
//! ```text
//! ROOT/                          mode 0700: nobody else can run a file of an image
//! ├── version                    of this arrangement
//! ├── lock                       held while something is changed
//! ├── names/NAME                 the digest that NAME means
//! ├── images/HEX/image.json      what is known of an image; locked by a process that may start containers from it
//! ├── images/HEX/rootfs/         its root file system: directories, links, and hard links to the files of its layers
//! ├── layers/HEX/layer.json      what is known of a layer; HEX is its diff id
//! ├── layers/HEX/contents.jsonl  what its archive says, one entry a line
//! ├── layers/HEX/files/NUMBER    its files
//! ├── empty/                     the second layer of each container's root, which has one too few
//! └── tmp/                       work under way; swept when nobody works
//! ```
//!
//! An image or layer appears in its folder by one rename, after everything in it has reached the disk; layers come
//! before the image that names them, and the name comes last. A layer that no image names is removed.

mod bring;
mod error;
mod import;
mod layers;
mod pipeline;
mod record;
mod usage;
mod verify;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub use self::bring::ImportNames;
use self::error::at;
pub use self::error::{Result, StoreError};
pub use self::record::{Image, ImageConfig, ImageLayer};
use self::record::{ImageRecord, LayerRecord, file_of, name_of};
pub use self::usage::{HeldImage, Hold};
use self::usage::{Holds, Removal};
pub use self::verify::{Damage, Verification};
use super::digest::{hex, is_sha256};
use super::layout::Layout;
use super::progress::{Progress, Quiet};
use super::unpack::Limits;

/// Version of the arrangement on disk. 1 had no file `version`, and one folder per image without layers. 2 had images
/// without what containers have something mounted on, and did not know which blobs had been looked into. 3 had images
/// without `/workspace`.
const VERSION: u32 = 4;
/// Directory that stays empty; see [`Image::empty`].
const EMPTY: &str = "empty";
/// Earlier ones whose images are completed.
const INCOMPLETE: [&str; 2] = ["2", "3"];
/// How often an image that is removed just then is looked for again.
const TRIES: u32 = 8;

/// The images below one directory. Cheap to clone; several processes may use one directory at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
    holds: Holds,
}

impl Store {
    /// Opens the store in `root`, which is created with mode 0700, and sweeps what an interrupted run left.
    ///
    /// # Errors
    /// [`StoreError::Version`] if another version of thawd made it; images of the first version are removed,
    /// since the layouts that they came from are still there.
    pub fn open(root: &Path) -> Result<Self> {
        Self::with_limits(root, Limits::default())
    }

    /// Like [`Store::open`], with other limits for the images that come in.
    pub fn with_limits(root: &Path, limits: Limits) -> Result<Self> {
        let root = std::path::absolute(root).map_err(at(root))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(at(&root))?;
        // It may have been there before, with another mode.
        fs::set_permissions(&root, Permissions::from_mode(0o700)).map_err(at(&root))?;
        let store = Store { root, limits, holds: Holds::default() };
        store.check_version()?;
        for folder in ["images", "layers", "names", "tmp", EMPTY].map(|name| store.root.join(name)) {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(at(&folder))?;
        }
        let lock = store.lock_file()?;
        match lock.try_lock() {
            Ok(()) => store.sweep()?,
            // Somebody is at work, so what is in `tmp` may be theirs.
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(at(&store.root.join("lock"))(error)),
        }
        Ok(store)
    }

    /// Opens a store that cannot be written now: what is unpacked in it can be used, and everything that would change it is
    /// [`StoreError::ReadOnly`]. Nothing is created or swept.
    ///
    /// # Errors
    /// [`StoreError::Version`] if it is not of this version; [`StoreError::ReadOnly`] if there is none yet.
    pub fn read_only(root: &Path, limits: Limits) -> Result<Self> {
        let root = std::path::absolute(root).map_err(at(root))?;
        let path = root.join("version");
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == VERSION.to_string() => Ok(Store { root, limits, holds: Holds::default() }),
            Ok(found) => Err(StoreError::Version { path: root, found: found.trim().to_owned(), known: VERSION }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::ReadOnly { path }),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// The image of an OCI image layout under the name that the layout gives it, unpacked if it is not yet.
    ///
    /// Every blob is checked by size and digest. Blocks, for about a second per 300 MB; calls for the same image
    /// do the work once.
    pub fn ensure(&self, layout: &Path) -> Result<HeldImage> {
        self.ensure_with(layout, &Quiet)
    }

    /// Like [`Store::ensure`], and tells how far it is.
    pub fn ensure_with(&self, layout: &Path, progress: &dyn Progress) -> Result<HeldImage> {
        let layout = Layout::open(layout, &self.limits)?;
        let name = layout.name()?.to_owned();
        for _ in 0..TRIES {
            // Whoever has this name's image already gets nothing new, so that nothing needs to be proved.
            let known = self.find(&name)?.filter(|image| image.digest == layout.manifest_digest);
            let image = match known {
                Some(image) => image,
                None => self.unpacked(&self.locked()?, &layout, &name, progress)?,
            };
            if let Some(held) = self.held(image)? {
                return Ok(held);
            }
        }
        Err(StoreError::NotFound { name })
    }

    /// The image called `name`, to be used.
    pub fn get(&self, name: &str) -> Result<HeldImage> {
        for _ in 0..TRIES {
            // One that goes between looking and holding may have a successor.
            if let Some(held) = self.held(self.look(name)?)? {
                return Ok(held);
            }
        }
        Err(StoreError::NotFound { name: name.to_owned() })
    }

    /// The image with this digest, to be used, whether it has a name or not; `None` if the store does not have it any more.
    pub fn with_digest(&self, digest: &str) -> Result<Option<HeldImage>> {
        if !is_sha256(digest) {
            return Ok(None);
        }
        self.load("", digest)?.map_or(Ok(None), |image| self.held(image))
    }

    /// The image called `name`, only to be looked at.
    pub fn look(&self, name: &str) -> Result<Image> {
        self.find(name)?.ok_or_else(|| StoreError::NotFound { name: name.to_owned() })
    }

    /// All images, by name, only to be looked at.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        for name in self.entries("names")?.iter().filter_map(|file| name_of(file)) {
            images.extend(self.find(&name)?);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Sum of the sizes of all layers' files, bytes, each layer counted once.
    pub fn unpacked_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for layer in self.entries("layers")? {
            let record: Option<LayerRecord> = record::read(&self.root.join("layers").join(layer).join(layers::RECORD))?;
            total += record.map_or(0, |record| record.used.bytes);
        }
        Ok(total)
    }

    /// Forgets a name, and removes its files and the layers that only it had, unless another name means the same
    /// image.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if the files would go and a daemon or container uses them.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _lock = self.locked()?;
        let image = self.look(name)?;
        let last = self.list()?.iter().filter(|other| other.digest == image.digest).count() == 1;
        let removal = match last {
            true => {
                Some(self.removal(&image.digest)?.map_err(|user| StoreError::InUse { name: name.to_owned(), user })?)
            }
            false => None,
        };
        let path = self.root.join("names").join(file_of(name)?);
        fs::remove_file(&path).map_err(at(&path))?;
        if let Some(removal) = removal {
            self.discard_image(&image.digest, removal)?;
            self.sweep_layers()?;
        }
        Ok(())
    }

    /// Removes the images that no name means any more (an image of that name came later) and that nothing uses,
    /// and the layers that no image has; returns the digests of the images.
    pub fn prune(&self) -> Result<Vec<String>> {
        let _lock = self.locked()?;
        let named: BTreeSet<String> = self.list()?.into_iter().map(|image| image.digest).collect();
        let mut removed = Vec::new();
        for file in self.entries("images")? {
            let digest = format!("sha256:{file}");
            if named.contains(&digest) {
                continue;
            }
            if let Ok(removal) = self.removal(&digest)? {
                self.discard_image(&digest, removal)?;
                removed.push(digest);
            }
        }
        self.sweep_layers()?;
        Ok(removed)
    }

    fn find(&self, name: &str) -> Result<Option<Image>> {
        let path = self.root.join("names").join(file_of(name)?);
        match fs::read_to_string(&path) {
            Ok(digest) if is_sha256(&digest) => self.load(name, &digest),
            // A name that was cut short by a crash of the machine means nothing.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn load(&self, name: &str, digest: &str) -> Result<Option<Image>> {
        let record: Option<ImageRecord> = record::read(&self.record(digest))?;
        Ok(record.map(|record| record.image(name, digest, &self.folder(digest), &self.root.join(EMPTY))))
    }

    fn folder(&self, digest: &str) -> PathBuf {
        self.root.join("images").join(hex(digest))
    }

    fn record(&self, digest: &str) -> PathBuf {
        self.folder(digest).join("image.json")
    }

    fn layer_folder(&self, diff_id: &str) -> PathBuf {
        self.root.join("layers").join(hex(diff_id))
    }

    fn held(&self, image: Image) -> Result<Option<HeldImage>> {
        let record = self.record(&image.digest);
        let hold = self.holds.hold(&image.digest, &record).map_err(at(&record))?;
        Ok(hold.map(|hold| HeldImage::new(image, hold)))
    }

    /// The right to remove an image, or who uses it, in words for a message. With the lock held, so that nobody else
    /// takes it.
    fn removal(&self, digest: &str) -> Result<std::result::Result<Removal, String>> {
        let (folder, record) = (self.folder(digest), self.record(digest));
        let Some(removal) = usage::take(&record).map_err(at(&record))? else {
            return Ok(Err("a daemon that starts containers from it".to_owned()));
        };
        let rootfs = folder.join("rootfs");
        if !rootfs.exists() {
            return Ok(Ok(removal));
        }
        // Who held it until now and made a container from it has it mounted.
        let process = usage::mounted_by(&rootfs).map_err(at(&rootfs))?;
        Ok(process.map_or(Ok(removal), |pid| Err(format!("the container of process {pid}"))))
    }

    /// Removes an image's folder. It is gone as a whole before anybody else can look for it.
    fn discard_image(&self, digest: &str, removal: Removal) -> Result<()> {
        let (folder, work) = (self.folder(digest), self.work_path());
        fs::rename(&folder, &work).map_err(at(&folder))?;
        drop(removal);
        fs::remove_dir_all(&work).map_err(at(&work))
    }

    /// Makes sure that the arrangement on disk is the one that this program knows.
    fn check_version(&self) -> Result<()> {
        let path = self.root.join("version");
        let read = || match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        };
        if read()?.is_none() {
            let _lock = self.locked()?;
            // Another process may have been faster.
            if read()?.is_none() {
                for folder in ["images", "names", "tmp"].map(|name| self.root.join(name)) {
                    remove_all(&folder)?;
                }
                let text = format!("{VERSION}\n");
                let partial = self.root.join("version.partial");
                fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)).map_err(at(&path))?;
            }
        }
        let is_incomplete = |found: Option<String>| found.is_some_and(|found| INCOMPLETE.contains(&found.as_str()));
        if is_incomplete(read()?) {
            let lock = self.locked()?;
            if is_incomplete(read()?) {
                self.complete_images()?;
                let partial = self.root.join("version.partial");
                fs::write(&partial, format!("{VERSION}\n"))
                    .and_then(|()| fs::rename(&partial, &path))
                    .map_err(at(&path))?;
            }
            drop(lock);
        }
        match read()? {
            Some(found) if found != VERSION.to_string() => {
                Err(StoreError::Version { path: self.root.clone(), found, known: VERSION })
            }
            _ => Ok(()),
        }
    }

    /// Gives the images of an earlier store what containers have something mounted on. The lock is held.
    fn complete_images(&self) -> Result<()> {
        let folder = self.root.join("images");
        let names = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(at(&folder))?,
        };
        for entry in names {
            let path = entry.map_err(at(&folder))?.path();
            // What has no record is no image, and is swept.
            if let Ok(Some(record)) = record::read::<ImageRecord>(&path.join("image.json")) {
                layers::complete_stored(&path.join("rootfs"), &record.config, &self.limits)?;
            }
        }
        Ok(())
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.root.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).map_err(at(&path))
    }

    /// Waits until nobody else changes the store; lasts until the file is closed.
    fn locked(&self) -> Result<File> {
        let file = self.lock_file()?;
        file.lock().map_err(at(&self.root))?;
        Ok(file)
    }

    fn work_path(&self) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}-{}", std::process::id(), now_ms()))
    }

    /// Names of the files in a folder of the store.
    fn entries(&self, folder: &str) -> Result<Vec<String>> {
        let folder = self.root.join(folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            // A name that is no text is none of ours.
            names.extend(entry.map_err(at(&folder))?.file_name().into_string());
        }
        Ok(names)
    }

    /// Removes a folder so that it is gone as a whole first.
    fn discard(&self, folder: &Path) -> Result<()> {
        let work = self.work_path();
        fs::rename(folder, &work).map_err(at(folder))?;
        fs::remove_dir_all(&work).map_err(at(&work))
    }

    fn write_record(&self, path: &Path, record: &LayerRecord) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).map_err(|error| at(path)(error.into()))?;
        self.write_whole(path, &text)
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let work = self.work_path();
        let mut file = File::create(&work).map_err(at(&work))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&work))?;
        fs::rename(&work, path).map_err(at(path))?;
        sync(path.parent().unwrap_or(&self.root))
    }

    /// Removes what an interrupted run left. The lock is held, so nothing in `tmp` belongs to anybody.
    fn sweep(&self) -> Result<()> {
        for file in self.entries("tmp")? {
            remove_all(&self.root.join("tmp").join(file))?;
        }
        self.sweep_layers()
    }

    /// Removes the layers that no image has. Which image has which is only ever asked of the images themselves. The
    /// lock is held.
    fn sweep_layers(&self) -> Result<()> {
        let mut needed = BTreeSet::new();
        for file in self.entries("images")? {
            let path = self.root.join("images").join(file).join("image.json");
            match record::read::<ImageRecord>(&path) {
                Ok(record) => needed.extend(record.into_iter().flat_map(|r| r.layers).map(|layer| layer.diff_id)),
                // One record that cannot be read could need any layer: then all stay.
                Err(_) => return Ok(()),
            }
        }
        for file in self.entries("layers")? {
            if !needed.contains(&format!("sha256:{file}")) {
                self.discard(&self.root.join("layers").join(file))?;
            }
        }
        Ok(())
    }
}

/// Removes a file or folder that may be there.
fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at(path)),
    }
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(at(folder))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
