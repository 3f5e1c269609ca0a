//! Builds an image from a manifest folder into an OCI image layout, without Docker and without a chroot.
//!
//! An image has up to three layers: the base (Debian files named in `rootfs/BASE.toml` plus the skeleton that all
//! bases share), Node, and the CLI with the files of its manifest folder. Each layer is cached by the hash of what
//! it is made from, so images share the lower ones and an unchanged image is rebuilt in milliseconds.

mod base;
mod entrypoint;
mod layer;
mod npm;
mod output;
mod recipe;
mod tree;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;

use self::layer::{Layer, LayerCache};
use self::recipe::{BaseRecipe, ImageRecipe, SkeletonRecipe};
use self::tree::{Node, Source, Tree};
use super::digest::InputHash;
use super::progress::Progress;

/// Part of every cache key: to be raised when the same inputs give other bytes.
const FORMAT: &str = "1";

/// Where a build reads and writes.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Folder that becomes the OCI image layout; created, or an earlier layout of ours.
    pub layout_dir: PathBuf,
    /// Folder for downloads and finished layers, shared by all images.
    pub cache_dir: PathBuf,
    /// Folder with the base recipes; `None` takes `../../rootfs` seen from the manifest folder.
    pub rootfs_dir: Option<PathBuf>,
    /// Debian mirror, for example `http://deb.debian.org/debian`; `None` leaves the choice to mmdebstrap.
    pub debian_mirror: Option<String>,
}

impl BuildOptions {
    /// Options with the default recipes and mirror.
    pub fn new(layout_dir: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Self {
        BuildOptions {
            layout_dir: layout_dir.into(),
            cache_dir: cache_dir.into(),
            rootfs_dir: None,
            debian_mirror: None,
        }
    }

    fn rootfs_dir(&self, manifest_dir: &Path) -> PathBuf {
        self.rootfs_dir.clone().unwrap_or_else(|| manifest_dir.join("../../rootfs"))
    }
}

/// What a build made.
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
    /// What the operator should know, one sentence each.
    pub notes: Vec<String>,
    /// How long it took.
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
    /// `base`, `node` or `cli`.
    pub role: &'static str,
    /// Digest of the compressed blob, `sha256:…`.
    pub digest: String,
    /// Size of the compressed blob, bytes.
    pub compressed_bytes: u64,
    /// Size of the tar archive inside, bytes.
    pub unpacked_bytes: u64,
    /// Whether it came from the cache.
    pub cached: bool,
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A manifest or recipe does not say what it must.
    #[error("{}: {reason}", path.display())]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A path cannot be in an image.
    #[error("path {path:?}: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A program or file of this machine is missing.
    #[error("{what} is not installed: run `apt-get install {package}`")]
    Missing {
        /// The program or file.
        what: String,
        /// The Debian package that has it.
        package: String,
    },
    /// A program that was run said no.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// `package-lock.json` and `image.toml` do not belong together.
    #[error("{}: {reason}; renew it with `thawctl image lock`", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The layout folder holds something that is not an image layout.
    #[error("{} is not empty and no OCI image layout: name another folder", path.display())]
    NotALayout {
        /// The folder.
        path: PathBuf,
    },
}

impl BuildError {
    fn io(path: &Path, source: io::Error) -> Self {
        BuildError::Io { path: path.to_owned(), source }
    }
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
    let mut work = Work { inputs: &inputs, options, cache: &cache, progress, modules: None, notes: Vec::new() };

    let mut layers = vec![("base", work.base()?)];
    if let Some(version) = &inputs.image.node {
        layers.push(("node", work.node(version)?));
    }
    layers.extend(work.cli()?.map(|layer| ("cli", layer)));
    let notes = std::mem::take(&mut work.notes);
    drop(work);

    let (digest, unchanged) = output::write(&inputs, &layers, &cache, &options.layout_dir)?;
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
        elapsed: begun.elapsed(),
    })
}

/// Writes `package-lock.json` anew from the versions in `image.toml`, with the newest dependencies that fit.
/// Does nothing for an image without npm packages.
pub fn lock(manifest_dir: &Path, options: &BuildOptions, progress: &dyn Progress) -> Result<(), BuildError> {
    let inputs = Inputs::read(manifest_dir, options)?;
    if inputs.image.packages().is_empty() {
        return Ok(());
    }
    npm::renew_lock(manifest_dir, &inputs.image, &options.cache_dir, progress)
}

/// Everything that an image is made from, read and checked.
struct Inputs {
    manifest_dir: PathBuf,
    image: ImageRecipe,
    image_bytes: Vec<u8>,
    base: BaseRecipe,
    base_bytes: Vec<u8>,
    base_path: PathBuf,
    skeleton: Tree,
    user: base::User,
}

impl Inputs {
    fn read(manifest_dir: &Path, options: &BuildOptions) -> Result<Self, BuildError> {
        let rootfs = options.rootfs_dir(manifest_dir);
        let image_path = manifest_dir.join("image.toml");
        let (image, image_bytes) = recipe::read::<ImageRecipe>(&image_path)?;
        let bad = |reason: String| BuildError::Recipe { path: image_path.clone(), reason };
        if !recipe::is_name(&image.name) || !recipe::is_name(&image.base) {
            return Err(bad("name and base must be lower-case letters, digits and hyphens".to_owned()));
        }
        let base_path = rootfs.join(format!("{}.toml", image.base));
        let (base, base_bytes) = recipe::read::<BaseRecipe>(&base_path)?;
        let (skeleton, _) = recipe::read::<SkeletonRecipe>(&rootfs.join("skeleton.toml"))?;
        let skeleton = base::skeleton(&skeleton, &rootfs)?;
        let user = base::user(&image.user, &rootfs)?;
        if let Some(name) = image.env.keys().find(|name| matches!(name.as_str(), "HOME" | "USER")) {
            return Err(bad(format!("env.{name} comes from the user: leave it out")));
        }
        Ok(Inputs {
            manifest_dir: manifest_dir.to_owned(),
            image,
            image_bytes,
            base,
            base_bytes,
            base_path,
            skeleton,
            user,
        })
    }

    /// The folder of static files that go into the image as they are.
    fn files(&self) -> PathBuf {
        self.manifest_dir.join("files")
    }
}

/// A layer and its key in the cache.
struct Built {
    layer: Layer,
    key: String,
    cached: bool,
    made_by: String,
}

/// One build under way.
struct Work<'a> {
    inputs: &'a Inputs,
    options: &'a BuildOptions,
    cache: &'a LayerCache,
    progress: &'a dyn Progress,
    /// `node_modules`, once it was needed.
    modules: Option<npm::Modules>,
    notes: Vec<String>,
}

impl Work<'_> {
    fn base(&mut self) -> Result<Built, BuildError> {
        let inputs = self.inputs;
        let mut hash = InputHash::new("base");
        hash.add(&inputs.base_bytes);
        let made_by = format!("rootfs/{}.toml", inputs.image.base);
        match (&inputs.base.debian, &inputs.base.host) {
            (Some(debian), None) => {
                hash_tree(&mut hash, &inputs.skeleton)?;
                self.layer("base", made_by, hash, |work| {
                    base::debian(debian, inputs.skeleton.clone(), work.options, work.progress)
                })
            }
            (None, Some(host)) => {
                // These files may change at any time and are small: they are hashed themselves.
                let tree = base::host(host, inputs.skeleton.clone())?;
                hash_tree(&mut hash, &tree)?;
                self.layer("base", made_by, hash, |_| Ok(tree))
            }
            _ => Err(BuildError::Recipe {
                path: inputs.base_path.clone(),
                reason: "needs exactly one of [debian] and [host]".to_owned(),
            }),
        }
    }

    fn node(&mut self, version: &str) -> Result<Built, BuildError> {
        let mut hash = InputHash::new("node");
        hash_tree(&mut hash, &self.inputs.skeleton)?;
        hash.add(npm::integrity(&self.inputs.manifest_dir, npm::NODE_PACKAGE)?.as_bytes());
        let strip = npm::strip_version();
        hash.add(strip.as_deref().unwrap_or("unstripped").as_bytes());
        if strip.is_none() {
            self.notes.push(
                "strip is not installed (apt-get install binutils): the Node layer is about 18 MB larger".to_owned(),
            );
        }
        let made_by = format!("npm {} {version}", npm::NODE_PACKAGE);
        self.layer("node", made_by, hash, |work| {
            let skeleton = &work.inputs.skeleton;
            npm::node_tree(work.modules()?, skeleton, strip.is_some())
        })
    }

    /// The image's own files; `None` if there are none.
    fn cli(&mut self) -> Result<Option<Built>, BuildError> {
        let inputs = self.inputs;
        let mut own = Tree::above(&inputs.skeleton);
        own.insert_folder(&inputs.files(), "/")?;
        for (path, target) in &inputs.image.links {
            own.insert(path, Node::Symlink { target: target.clone() })?;
        }
        let script = entrypoint::script(&inputs.image.entrypoint)
            .map_err(|reason| BuildError::Recipe { path: inputs.manifest_dir.join("image.toml"), reason })?;
        own.insert(entrypoint::PATH, Node::File { mode: 0o755, source: Source::Bytes(script.into_bytes()) })?;

        let mut hash = InputHash::new("cli");
        hash_tree(&mut hash, &inputs.skeleton)?;
        hash_tree(&mut hash, &own)?;
        hash.add(&inputs.image_bytes);
        if !inputs.image.copy.is_empty() {
            hash.add(&npm::lock_bytes(&inputs.manifest_dir)?);
        }
        let made_by = format!("images/{}/image.toml", inputs.image.name);
        let built = self.layer("cli", made_by, hash, |work| {
            if !inputs.image.copy.is_empty() {
                npm::copy_into(&mut own, &inputs.image.copy, work.modules()?)?;
            }
            Ok(own)
        })?;
        Ok(Some(built))
    }

    fn modules(&mut self) -> Result<&npm::Modules, BuildError> {
        if self.modules.is_none() {
            let inputs = self.inputs;
            let modules = npm::install(&inputs.manifest_dir, &inputs.image, &self.options.cache_dir, self.progress)?;
            self.modules = Some(modules);
        }
        Ok(self.modules.as_ref().expect("it was set just above"))
    }

    fn layer(
        &mut self,
        role: &'static str,
        made_by: String,
        mut hash: InputHash,
        make: impl FnOnce(&mut Self) -> Result<Tree, BuildError>,
    ) -> Result<Built, BuildError> {
        hash.add(FORMAT.as_bytes());
        let key = hash.finish();
        if let Some(layer) = self.cache.get(&key) {
            return Ok(Built { layer, key, cached: true, made_by });
        }
        let tree = make(self)?;
        self.progress.started(&format!("compressing {role}"), Some(tree.bytes()?));
        let result = self.cache.put(&key, &tree, self.progress);
        self.progress.finished(&match &result {
            Ok(layer) => format!("{} compressed", HumanBytes(layer.size)),
            Err(_) => "failed".to_owned(),
        });
        Ok(Built { layer: result?, key, cached: false, made_by })
    }
}

fn hash_tree(hash: &mut InputHash, tree: &Tree) -> Result<(), BuildError> {
    for (path, node) in tree.iter() {
        hash.add(path.as_bytes());
        match node {
            Node::Directory { mode, owner } => hash.add(format!("d {mode:o} {owner}").as_bytes()),
            Node::Symlink { target } => hash.add(format!("l {target}").as_bytes()),
            Node::File { mode, source } => {
                hash.add(format!("f {mode:o}").as_bytes());
                match source {
                    Source::Bytes(bytes) => hash.add(bytes),
                    Source::File(from) => hash.add(&fs::read(from).map_err(|e| BuildError::io(from, e))?),
                }
            }
        }
    }
    Ok(())
}

/// Holds the cache for one build, until the file is closed.
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
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let stderr = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(BuildError::Program { program, status: output.status, stderr })
}

/// Writes a file so that at any time either the old or the new one is there whole.
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
