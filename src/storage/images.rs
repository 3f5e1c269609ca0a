//! The directory of images, and the templates that they are copied from.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::StorageError;
use crate::failpoints;
use thaw_os::disk::{self, Format};

/// Images end like this; what is about to be made ends in another way.
const ENDING: &str = "img";

/// Directory of templates, below that of images.
const TEMPLATES: &str = "templates";

/// Templates that are kept, one for each size.
const MAX_TEMPLATES: usize = 16;

/// Changes with what is in a template.
const GENERATION: u32 = 1;

fn at(step: &str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let step = format!("{step} {}", path.display());
    move |source| StorageError::Io { step, source }
}

pub(super) fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(name).with_extension(ENDING)
}

/// Sizes of the images, by name. What an earlier daemon was about to make is removed.
pub(super) fn found(directory: &Path) -> Result<BTreeMap<String, u64>, StorageError> {
    let mut images = BTreeMap::new();
    for path in entries(directory)? {
        let is_image = path.extension().is_some_and(|ending| ending == ENDING);
        match path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_image) {
            Some(name) => {
                let bytes = fs::metadata(&path).map_err(at("look at", &path))?.len();
                images.insert(name.to_owned(), bytes);
            }
            None if path.extension().is_some_and(|ending| ending == "partial") => {
                fs::remove_file(&path).map_err(at("remove", &path))?;
            }
            None => {}
        }
    }
    Ok(images)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StorageError> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            let paths: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
            paths.map_err(at("list", directory))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(at("list", directory)(error)),
    }
}

/// Makes the image `path`, if enough of the disk stays free.
pub(super) fn make(directory: &Path, path: &Path, format: &Format, reserve: u64) -> Result<(), StorageError> {
    let templates = directory.join(TEMPLATES);
    DirBuilder::new().recursive(true).mode(0o700).create(&templates).map_err(at("create", &templates))?;
    let wanted = format.image_bytes();
    let stat = rustix::fs::statvfs(directory).map_err(|errno| at("look at", directory)(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free.saturating_sub(reserve) < wanted {
        return Err(StorageError::HostFull { wanted, free, reserve });
    }
    let name = format!("{GENERATION}-{}-{}", format.usable_bytes, format.bytes_per_inode);
    let template = self::path(&templates, &name);
    if !template.exists() {
        make_room(&templates)?;
        disk::make_template(&template, format, &["upper", "work"])?;
    }
    failpoints::at("storage.making");
    Ok(disk::make(&template, path)?)
}

/// Removes the oldest templates, so that there is room for one more.
fn make_room(templates: &Path) -> Result<(), StorageError> {
    let dated = |path: PathBuf| {
        let made = fs::metadata(&path).and_then(|found| found.modified()).map_err(at("look at", &path))?;
        Ok::<_, StorageError>((made, path))
    };
    let mut known = entries(templates)?.into_iter().map(dated).collect::<Result<Vec<_>, _>>()?;
    known.sort_unstable();
    let surplus = (known.len() + 1).saturating_sub(MAX_TEMPLATES);
    for (_, path) in known.into_iter().take(surplus) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(at("remove", &path))?;
    }
    Ok(())
}

/// Removes an image; on the disk when this returns.
pub(super) fn remove(directory: &Path, path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => File::open(directory).and_then(|directory| directory.sync_all()).map_err(at("sync", directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Format = Format { usable_bytes: 32 << 20, bytes_per_inode: 16_384 };

    #[test]
    fn an_image_takes_its_space_at_once_and_templates_are_few() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        make(place, &path(place, "s-1"), &SMALL, 0).unwrap();
        let found_ = fs::metadata(path(place, "s-1")).unwrap();
        assert_eq!(found_.len(), SMALL.image_bytes());
        assert!(std::os::unix::fs::MetadataExt::blocks(&found_) * 512 >= SMALL.image_bytes(), "{found_:?}");
        for more in 1..=MAX_TEMPLATES as u64 + 2 {
            let format = Format { usable_bytes: SMALL.usable_bytes + (more << 12), ..SMALL };
            make(place, &path(place, "s-2"), &format, 0).unwrap();
            remove(place, &path(place, "s-2")).unwrap();
        }
        assert_eq!(entries(&place.join(TEMPLATES)).unwrap().len(), MAX_TEMPLATES);
        // What a killed daemon was about to make is no image.
        fs::write(place.join("s-3.partial"), "half").unwrap();
        assert_eq!(found(place).unwrap(), BTreeMap::from([("s-1".to_owned(), SMALL.image_bytes())]));
        assert!(!place.join("s-3.partial").exists());
    }

    #[test]
    fn the_disk_keeps_its_reserve() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let refused = make(place, &path(place, "s-1"), &SMALL, u64::MAX / 2).unwrap_err();
        assert!(refused.is_full(), "{refused}");
        assert!(found(place).unwrap().is_empty());
    }
}
