//! Lock of a base: the packages that it pins, and the pool that holds them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::pins::Moved;
use super::super::recipe::Debian;
use super::super::{BuildError, BuildOptions};
use crate::digest::{HashingReader, InputHash, hex};

/// `rootfs/BASE.lock`: the packages that the files of a base come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Lock {
    pub(super) suite: String,
    /// Time at which a snapshot archive has all of these packages, in the form of snapshot.debian.org.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) snapshot: Option<String>,
    #[serde(rename = "package")]
    pub(super) packages: Vec<Package>,
}

/// One exact package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    /// SHA-256 of the `.deb` file, lower-case hex.
    pub(super) sha256: String,
}

/// The packages that a base is made from, and how they differ from the lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Chosen {
    pub(super) packages: Vec<Package>,
    pub(in super::super) moved: Vec<Moved>,
}

impl Chosen {
    /// Adds the packages to the hash of a layer's inputs: those used, not those locked.
    pub(in super::super) fn hash(&self, hash: &mut InputHash) {
        for package in &self.packages {
            hash.add(package.name.as_bytes());
            hash.add(package.sha256.as_bytes());
        }
    }
}

pub(super) const HEAD: &str =
    "# The Debian packages that files of this base come from, exactly. Written by `thawctl image lock`.\n\n";

/// Path of the lock of a recipe.
pub(in super::super) fn lock_path(recipe: &Path) -> PathBuf {
    recipe.with_extension("lock")
}

/// The lock file of a recipe.
pub(in super::super) fn read_lock(path: &Path, recipe: &Debian) -> Result<Lock, BuildError> {
    let lock = |reason: String| BuildError::Lock { path: path.to_owned(), reason };
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(lock("is missing".to_owned())),
        other => other.map_err(|error| BuildError::io(path, error))?,
    };
    let found: Lock = toml::from_slice(&bytes).map_err(|error| lock(error.to_string().trim_end().to_owned()))?;
    if found.suite != recipe.suite {
        return Err(lock(format!("is of {}, and the recipe wants {}", found.suite, recipe.suite)));
    }
    Ok(found)
}

impl Lock {
    /// All packages in their locked versions.
    pub(in super::super) fn as_chosen(&self) -> Chosen {
        Chosen { packages: self.packages.clone(), moved: Vec::new() }
    }
}

/// The folder of cached packages.
pub(super) struct Pool(pub(super) PathBuf);

impl Pool {
    pub(super) fn of(options: &BuildOptions) -> Self {
        Pool(options.cache_dir.join("debian"))
    }

    pub(super) fn path(&self, package: &Package) -> PathBuf {
        self.0.join(format!("{}.deb", package.sha256))
    }

    pub(super) fn has(&self, package: &Package) -> bool {
        sha256_of(&self.path(package)).is_ok_and(|found| found == package.sha256)
    }
}

pub(super) fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (_, digest) = HashingReader::new(fs::File::open(path)?, u64::MAX).finish()?;
    Ok(hex(&digest).to_owned())
}
