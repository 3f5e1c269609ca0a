//! Builds an image from a manifest folder into an OCI image layout, without Docker and without a chroot.
//!
//! An image has these layers, from the lowest: the base (Debian files named in `rootfs/BASE.toml`, and the skeleton
//! that all bases share), other recipes of `rootfs/`, Node, the CLIs of included images, and the files of its own
//! manifest folder. Each layer is cached by the hash of its inputs. So images share equal layers, and an unchanged
//! image is rebuilt in milliseconds.

mod base;
mod cause;
mod debian;
mod entrypoint;
mod error;
mod layer;
mod npm;
mod output;
mod pins;
mod recipe;
mod tree;
mod work;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use self::error::BuildError;
use self::layer::LayerCache;
pub use self::layer::LayerCompression;
pub use self::npm::Outdated;
pub use self::pins::{Moved, Stale};
use self::work::{Inputs, Work};
use super::progress::Progress;

/// Where a build reads and writes.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Folder that becomes the OCI image layout; created, or an earlier layout of ours.
    pub layout_dir: PathBuf,
    /// Folder for downloads and finished layers, shared by all images.
    pub cache_dir: PathBuf,
    /// Folder with the base recipes; `None` takes `../../rootfs` seen from the manifest folder.
    pub rootfs_dir: Option<PathBuf>,
    /// Folder with our own static programs; `None` takes `../../static` seen from the manifest folder, where the package
    /// has them, or else `../../target/static`, where they are built.
    pub programs_dir: Option<PathBuf>,
    /// Debian mirror, an address or a line as in `sources.list`; `None` leaves the choice to mmdebstrap.
    pub debian_mirror: Option<String>,
    /// Mirror that keeps old versions, for locked packages that the Debian mirror has no more: an address, lines as in
    /// `sources.list`, or `none`. `None` takes snapshot.debian.org, unless `debian_mirror` names another mirror.
    pub debian_snapshot: Option<String>,
    /// Longest time for requests to that mirror.
    pub snapshot_patience: Duration,
    /// Whether to fail if a locked package is not available, instead of taking the newest.
    pub locked: bool,
    /// npm registry, an address; `None` leaves the choice to npm's own configuration.
    pub npm_registry: Option<String>,
    /// How layers are compressed.
    pub compression: LayerCompression,
}

impl BuildOptions {
    /// Options with the default recipes and mirror.
    pub fn new(layout_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Self {
        BuildOptions {
            layout_dir: layout_dir.into(),
            cache_dir: cache_dir.into(),
            rootfs_dir: None,
            programs_dir: None,
            debian_mirror: None,
            debian_snapshot: None,
            snapshot_patience: Duration::from_secs(90),
            locked: false,
            npm_registry: None,
            compression: LayerCompression::default(),
        }
    }

    fn programs_dir(&self, manifest_dir: &Path) -> PathBuf {
        self.programs_dir.clone().unwrap_or_else(|| {
            let repository = repository(manifest_dir);
            let packaged = repository.join("static");
            if packaged.is_dir() { packaged } else { repository.join("target/static") }
        })
    }

    fn rootfs_dir(&self, manifest_dir: &Path) -> PathBuf {
        self.rootfs_dir.clone().unwrap_or_else(|| repository(manifest_dir).join("rootfs"))
    }
}

/// The folder above the one that an image's folder is in.
fn repository(manifest_dir: &Path) -> PathBuf {
    // What an image includes is named from its own folder, `images/NAME/../OTHER`: there, the parents are no plain names.
    if manifest_dir.components().any(|part| part == Component::ParentDir) {
        return manifest_dir.join("../..");
    }
    manifest_dir.parent().and_then(Path::parent).map_or_else(|| manifest_dir.join("../.."), Path::to_owned)
}

/// Result of a build.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// Name of the image.
    pub name: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// The layout it is in.
    pub layout: PathBuf,
    /// Its layers, lowest first.
    pub layers: Vec<LayerReport>,
    /// Whether the layout held exactly this image already.
    pub unchanged: bool,
    /// Notes for the operator, one sentence each, including the lines of `unlocked`.
    pub notes: Vec<String>,
    /// Packages that were not used in their locked version; empty if the image is exactly the locked one.
    pub unlocked: Vec<Moved>,
    /// Duration of the build.
    pub elapsed: Duration,
}

impl BuildReport {
    /// Size of all layers as stored, bytes.
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.compressed_bytes).sum()
    }

    /// Size of all layers as tar archives, bytes.
    pub fn unpacked_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.unpacked_bytes).sum()
    }
}

/// One layer of a built image.
#[derive(Debug, Clone)]
pub struct LayerReport {
    /// `base`, `node`, `cli`, or the name of a recipe in `rootfs/` or of an included image.
    pub role: String,
    /// Digest of the compressed blob, `sha256:…`.
    pub digest: String,
    /// Size of the compressed blob, bytes.
    pub compressed_bytes: u64,
    /// Size of the tar archive inside, bytes.
    pub unpacked_bytes: u64,
    /// Whether it came from the cache.
    pub cached: bool,
}

/// Builds the image of `manifest_dir` (a folder with `image.toml`) into `options.layout_dir`.
///
/// Blocks, for seconds to minutes if packages have to be fetched. Safe to interrupt and repeat: the layout's
/// index is replaced last. Builds that share a cache run one after the other.
pub fn build(manifest_dir: &Path, options: &BuildOptions, progress: &dyn Progress) -> Result<BuildReport, BuildError> {
    let begun = Instant::now();
    let inputs = Inputs::read(manifest_dir, options)?;
    let cache = LayerCache::open(&options.cache_dir)?;
    let _one_at_a_time = lock_cache(&options.cache_dir)?;
    let mut work = Work {
        inputs: &inputs,
        options,
        cache: &cache,
        progress,
        packages: None,
        modules: None,
        notes: Vec::new(),
        unlocked: Vec::new(),
    };

    let layers = work.layers()?;
    let (mut notes, unlocked) = (std::mem::take(&mut work.notes), std::mem::take(&mut work.unlocked));
    notes.extend(unlocked.iter().map(Moved::to_string));
    drop(work);

    let (digest, unchanged) = output::write(&inputs, &layers, &unlocked, &cache, options)?;
    let layers = layers
        .into_iter()
        .map(|(role, built)| LayerReport {
            role,
            digest: built.layer.digest,
            compressed_bytes: built.layer.size,
            unpacked_bytes: built.layer.unpacked,
            cached: built.cached,
        })
        .collect();
    Ok(BuildReport {
        name: inputs.image.name,
        digest,
        layout: options.layout_dir.clone(),
        layers,
        unchanged,
        notes,
        unlocked,
        elapsed: begun.elapsed(),
    })
}

/// Writes `package-lock.json` anew from the versions in `image.toml`, with the newest dependencies that fit, and the
/// lock of the base from what the Debian mirror has. With `newest`, `image.toml` gets the newest versions before. Returns
/// what changed, one line each.
pub fn lock(
    manifest_dir: &Path,
    newest: bool,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<String>, BuildError> {
    let mut inputs = Inputs::read(manifest_dir, options)?;
    fs::create_dir_all(&options.cache_dir).map_err(|e| BuildError::io(&options.cache_dir, e))?;
    let _one_at_a_time = lock_cache(&options.cache_dir)?;
    let mut changes = Vec::new();
    if newest {
        for part in inputs.parts() {
            changes.extend(npm::newest_in_manifest(&part.manifest_dir, &part.image, options)?);
        }
        inputs = Inputs::read(manifest_dir, options)?;
    }
    for part in inputs.parts().filter(|part| !part.image.packages().is_empty()) {
        changes.extend(npm::renew_lock(&part.manifest_dir, &part.image, options, progress)?);
    }
    for selection in inputs.selections() {
        if let Some(recipe) = &selection.recipe.debian {
            changes.extend(debian::renew_lock(recipe, &debian::lock_path(&selection.path), options, progress)?);
        }
    }
    let mut told = std::collections::BTreeSet::new();
    changes.retain(|change| told.insert(change.clone()));
    Ok(changes)
}

/// Packages in the locks of an image that are not the newest or no longer available. Changes no lock.
pub fn check(manifest_dir: &Path, options: &BuildOptions, progress: &dyn Progress) -> Result<Vec<Stale>, BuildError> {
    let inputs = Inputs::read(manifest_dir, options)?;
    fs::create_dir_all(&options.cache_dir).map_err(|e| BuildError::io(&options.cache_dir, e))?;
    let _one_at_a_time = lock_cache(&options.cache_dir)?;
    let mut stale = Vec::new();
    for part in inputs.parts().filter(|part| !part.image.packages().is_empty()) {
        stale.extend(npm::check(&part.manifest_dir, &part.image, options, progress)?);
    }
    for selection in inputs.selections() {
        if let Some(recipe) = &selection.recipe.debian {
            stale.extend(debian::check(recipe, &debian::lock_path(&selection.path), options, progress)?);
        }
    }
    Ok(stale)
}

/// The npm packages of an image of which the registry has a newer version than `image.toml` names.
pub fn outdated(manifest_dir: &Path, options: &BuildOptions) -> Result<Vec<Outdated>, BuildError> {
    let inputs = Inputs::read(manifest_dir, options)?;
    fs::create_dir_all(&options.cache_dir).map_err(|e| BuildError::io(&options.cache_dir, e))?;
    let mut found = Vec::new();
    for part in inputs.parts() {
        found.extend(npm::outdated(&part.image, options)?);
    }
    found.sort_by(|a: &Outdated, b| a.package.cmp(&b.package));
    found.dedup();
    Ok(found)
}

/// Locks the cache for one build, until the file is closed.
fn lock_cache(cache_dir: &Path) -> Result<File, BuildError> {
    let path = cache_dir.join("lock");
    let fail = |e| BuildError::io(&path, e);
    let file = File::create(&path).map_err(fail)?;
    file.lock().map_err(fail)?;
    Ok(file)
}

/// Runs a program without a shell and without input; its standard output is returned.
fn run(program: &'static str, package: &str, command: &mut Command) -> Result<Vec<u8>, BuildError> {
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BuildError::Missing { what: program.to_owned(), package: package.to_owned() });
        }
        Err(error) => return Err(BuildError::io(Path::new(program), error)),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(BuildError::program(program, output.status, &output.stderr))
}

/// Writes a file atomically: at any time, either the old or the new content is there.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let fail = |e| BuildError::io(path, e);
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let mut file = File::create(&partial).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&partial, path).map_err(fail)
}

#[cfg(test)]
mod tests;
