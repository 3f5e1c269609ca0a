//! Who uses an image. Both signs are the kernel's, so that nothing has to be cleaned up after a crash: a process that
//! may start containers from an image holds a lock on its record, and a container that runs from the image has it
//! mounted.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::error::{Result, at};
use super::record::Image;

/// Keeps an image in the store: the image is neither removed nor pruned while this or a clone of it exists.
#[derive(Debug, Clone)]
pub struct Hold {
    #[allow(dead_code, reason = "it is the lock on it that counts")]
    lock: Arc<File>,
    digest: Arc<str>,
}

impl Hold {
    /// Digest of the image, `sha256:…`.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// An image that stays in the store while this exists.
#[derive(Debug, Clone)]
pub struct HeldImage {
    image: Image,
    hold: Hold,
}

impl HeldImage {
    pub(super) fn new(image: Image, hold: Hold) -> Self {
        HeldImage { image, hold }
    }

    /// A hold of its own for the image, for whoever uses its files.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }
}

impl Deref for HeldImage {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

/// Images that this process holds, by digest. All holds of an image share a descriptor.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(Arc<Mutex<BTreeMap<String, Weak<File>>>>);

impl Holds {
    /// Holds an image by its record; `None` if the image was removed meanwhile.
    pub(super) fn hold(&self, digest: &str, record: &Path) -> io::Result<Option<Hold>> {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = holds.get(digest).and_then(Weak::upgrade) {
            return Ok(Some(Hold { lock: file, digest: digest.into() }));
        }
        let file = match File::open(record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        // Waits for a removal in progress, which holds the lock until the record is gone.
        file.lock_shared()?;
        if !is_at(&file, record)? {
            return Ok(None);
        }
        let file = Arc::new(file);
        holds.retain(|_, held| held.strong_count() > 0);
        holds.insert(digest.to_owned(), Arc::downgrade(&file));
        Ok(Some(Hold { lock: file, digest: digest.into() }))
    }
}

/// The right to remove an image. While it exists, nobody can hold the image.
pub(super) struct Removal(#[allow(dead_code, reason = "it is the lock on it that counts")] Option<File>);

/// Takes the right to remove the image with this record; `None` if somebody holds the image.
pub(super) fn take(record: &Path) -> io::Result<Option<Removal>> {
    let file = match File::open(record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Removal(None))),
        other => other?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(Removal(Some(file)))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a file is still the one at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Image {
    /// What a container's root is to be called where it is mounted: by that name the store knows that the image is used,
    /// since nothing else tells the layers of an overlay.
    ///
    /// # Errors
    /// [`StoreError::Io`](super::StoreError) if the image is gone.
    pub fn mount_name(&self) -> Result<String> {
        mount_name(&self.rootfs).map_err(at(&self.rootfs))
    }
}

fn mount_name(rootfs: &Path) -> io::Result<String> {
    let found = fs::metadata(rootfs)?;
    Ok(format!("thawd-image-{}-{}", found.dev(), found.ino()))
}

/// A process in whose mount namespace something below `folder` is mounted, by itself or as a layer, by its number; `None` if there is none
/// among the processes that may be looked at (as root: all).
pub(super) fn mounted_by(folder: &Path) -> io::Result<Option<u32>> {
    let name = mount_name(folder)?;
    let Some((device, wanted)) = place(&fs::read_to_string("/proc/self/mountinfo")?, &folder.canonicalize()?) else {
        return Ok(None);
    };
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes end while they are examined, and kernel threads have no mounts.
        let Ok(namespace) = fs::metadata(entry.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace.ino()) {
            continue;
        }
        let Ok(mounts) = fs::read_to_string(entry.path().join("mountinfo")) else { continue };
        let found = mounts.lines().any(|line| {
            // A mount of the whole file system shows the store to many processes: only a mount of the image counts.
            let of_image = mount(line).is_some_and(|(its, root, point)| {
                its == device && root.starts_with(&wanted) && !point.as_os_str().is_empty()
            });
            of_image || overlay_name(line) == Some(&name)
        });
        if found {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Device of a path, and its path within that file system.
fn place(mounts: &str, path: &Path) -> Option<(String, PathBuf)> {
    mounts
        .lines()
        .filter_map(mount)
        .filter_map(|(device, root, point)| Some((device, root, path.strip_prefix(&point).ok()?.to_owned(), point)))
        // Of two mounts at one place, the later one is on top.
        .max_by_key(|(_, _, _, point)| point.as_os_str().len())
        .map(|(device, root, rest, _)| (device, root.join(rest)))
}

/// Device, root within its file system and mount point of a line of `mountinfo`.
fn mount(line: &str) -> Option<(String, PathBuf, PathBuf)> {
    let mut fields = line.split(' ').skip(2);
    let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
    Some((device.to_owned(), unescaped(root), unescaped(point)))
}

/// The name of an overlay, which is what it was said to be mounted from (proc_pid_mountinfo(5)).
fn overlay_name(line: &str) -> Option<&str> {
    let mut fields = line.split_once(" - ")?.1.split(' ');
    (fields.next()? == "overlay").then(|| fields.next())?
}

/// The kernel writes blanks, tabs, line ends and backslashes in octal.
fn unescaped(text: &str) -> PathBuf {
    let text = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 21 0:25 / /tmp rw - tmpfs tmpfs rw\n\
        31 21 254:0 /data/x\\040y /var/lib rw - ext4 /dev/vda rw\n";

    #[test]
    fn a_path_is_found_within_its_file_system() {
        let of = |path: &str| place(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(of("/srv/a"), ("254:0".to_owned(), PathBuf::from("/srv/a")));
        assert_eq!(of("/tmp/a"), ("0:25".to_owned(), PathBuf::from("/a")));
        assert_eq!(of("/var/lib/thawd"), ("254:0".to_owned(), PathBuf::from("/data/x y/thawd")));
    }

    #[test]
    fn an_overlay_is_known_by_its_name() {
        let line = "45 47 0:39 / / ro,nosuid,nodev - overlay thawd-image-65024-12 ro,lowerdir+=/";
        assert_eq!(overlay_name(line), Some("thawd-image-65024-12"));
        assert_eq!(MOUNTS.lines().filter_map(overlay_name).next(), None);
    }

    #[test]
    fn what_nobody_mounted_is_free() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mounted_by(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_hold_is_seen_until_its_last_clone_is_dropped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let holds = Holds::default();
        assert!(take(file.path()).unwrap().is_some());
        let first = holds.hold("a", file.path()).unwrap().unwrap();
        let second = holds.hold("a", file.path()).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first.lock, &second.lock), "one descriptor for all");
        drop((first, holds));
        assert!(take(file.path()).unwrap().is_none());
        drop(second);
        assert!(take(file.path()).unwrap().is_some());
    }

    #[test]
    fn what_was_removed_in_the_meantime_is_not_held() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("image.json");
        let holds = Holds::default();
        assert!(holds.hold("a", &record).unwrap().is_none());
        fs::write(&record, "").unwrap();
        let removal = take(&record).unwrap().unwrap();
        let (waiting, path) = (holds.clone(), record.clone());
        let holder = std::thread::spawn(move || waiting.hold("a", &path).unwrap().is_some());
        // Whether the other opens the record before or after it goes: it must not take it for held.
        fs::rename(&record, folder.path().join("gone")).unwrap();
        drop(removal);
        assert!(!holder.join().unwrap());
        // A new one of the same name is another one.
        fs::write(&record, "").unwrap();
        assert!(holds.hold("a", &record).unwrap().is_some());
    }
}
