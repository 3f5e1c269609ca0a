//! Makes the layers of one image, each from the cache or anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;

use super::layer::{Layer, LayerCache, LayerCompression};
use super::pins::Moved;
use super::recipe::{BaseRecipe, Entrypoint, ImageRecipe, SkeletonRecipe};
use super::tree::{Node, Source, Tree};
use super::{BuildError, BuildOptions, base, debian, entrypoint, npm, recipe};
use crate::digest::InputHash;
use crate::progress::Progress;

/// Part of every cache key; raised when the same inputs give other bytes.
const FORMAT: &str = "1";

/// All inputs of an image, read and checked.
pub(super) struct Inputs {
    pub(super) manifest_dir: PathBuf,
    pub(super) image: ImageRecipe,
    pub(super) image_bytes: Vec<u8>,
    pub(super) base: Selection,
    /// Layers above the base, the lowest first.
    pub(super) layers: Vec<Selection>,
    /// Images whose own files are part of this one.
    pub(super) included: Vec<Inputs>,
    pub(super) skeleton: Tree,
    pub(super) user: base::User,
}

/// `rootfs/NAME.toml`, read.
pub(super) struct Selection {
    pub(super) name: String,
    pub(super) recipe: BaseRecipe,
    pub(super) path: PathBuf,
    bytes: Vec<u8>,
}

impl Selection {
    fn read(name: &str, rootfs: &Path) -> Result<Self, BuildError> {
        let path = rootfs.join(format!("{name}.toml"));
        let (recipe, bytes) = recipe::read::<BaseRecipe>(&path)?;
        Ok(Selection { name: name.to_owned(), recipe, path, bytes })
    }

    /// The files and links of the recipe itself, added to `tree`.
    fn own(&self, mut tree: Tree) -> Result<Tree, BuildError> {
        tree.insert_folder(&self.path.with_extension(""), "/")?;
        for (path, target) in &self.recipe.links {
            tree.insert(path, Node::Symlink { target: target.clone() })?;
        }
        Ok(tree)
    }
}

impl Inputs {
    pub(super) fn read(manifest_dir: &Path, options: &BuildOptions) -> Result<Self, BuildError> {
        Self::read_for(None, manifest_dir, options)
    }

    /// Reads the recipe of an image, or of one that `including` includes.
    fn read_for(including: Option<&str>, manifest_dir: &Path, options: &BuildOptions) -> Result<Self, BuildError> {
        let rootfs = options.rootfs_dir(manifest_dir);
        let image_path = manifest_dir.join("image.toml");
        let (image, image_bytes) = recipe::read::<ImageRecipe>(&image_path)?;
        let bad = |reason: String| BuildError::Recipe { path: image_path.clone(), reason };
        let names = [&image.name, &image.base].into_iter().chain(&image.layers).chain(&image.includes);
        if let Some(name) = names.into_iter().find(|name| !recipe::is_name(name)) {
            return Err(bad(format!("{name:?} is no name: lower-case letters, digits and hyphens")));
        }
        let base = Selection::read(&image.base, &rootfs)?;
        let layers = image.layers.iter().map(|name| Selection::read(name, &rootfs)).collect::<Result<_, _>>()?;
        let (skeleton, _) = recipe::read::<SkeletonRecipe>(&rootfs.join("skeleton.toml"))?;
        let skeleton = base::skeleton(&skeleton, &base.recipe, &rootfs)?;
        if let (Some(including), false) = (including, image.includes.is_empty()) {
            return Err(bad(format!(
                "is included by {including} and includes others itself: {including} has to name those"
            )));
        }
        let mut included = Vec::new();
        for name in &image.includes {
            let other = Inputs::read_for(Some(&image.name), &manifest_dir.join("..").join(name), options)?;
            if other.image.base != image.base {
                return Err(bad(format!("includes {name}, which has another base, {:?}", other.image.base)));
            }
            included.push(other);
        }
        let user = base::user(&image.user, &rootfs)?;
        if let Some(name) = image.held.iter().find(|name| !image.packages().contains_key(*name)) {
            return Err(bad(format!("held names {name}, which is not among the packages of [npm]")));
        }
        if let Some(name) = image.env.keys().find(|name| matches!(name.as_str(), "HOME" | "USER")) {
            return Err(bad(format!("env.{name} comes from the user: leave it out")));
        }
        Ok(Inputs { manifest_dir: manifest_dir.to_owned(), image, image_bytes, base, layers, included, skeleton, user })
    }

    /// The base and the layers above it, the lowest first.
    pub(super) fn selections(&self) -> impl Iterator<Item = &Selection> {
        std::iter::once(&self.base).chain(&self.layers)
    }

    /// This image and those that it includes; each may have npm packages of its own.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Inputs> {
        self.included.iter().chain([self])
    }

    /// Environment of every command.
    pub(super) fn env(&self) -> BTreeMap<String, String> {
        let layers = self.selections().map(|selection| &selection.recipe.env);
        let all = layers.chain(self.parts().map(|part| &part.image.env));
        all.flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Entrypoint of the image.
    pub(super) fn entrypoint(&self) -> Result<&Entrypoint, BuildError> {
        // The last one counts: the image's own, otherwise that of the last included image.
        self.parts().filter_map(|part| part.image.entrypoint.as_ref()).last().ok_or_else(|| BuildError::Recipe {
            path: self.manifest_dir.join("image.toml"),
            reason: "needs an [entrypoint], unless it includes an image that has one".to_owned(),
        })
    }

    /// Folder of static files that go into the image unchanged.
    fn files(&self) -> PathBuf {
        self.manifest_dir.join("files")
    }
}

/// A layer and its key in the cache.
pub(super) struct Built {
    pub(super) layer: Layer,
    pub(super) key: String,
    pub(super) cached: bool,
    pub(super) made_by: String,
}

/// A build in progress.
pub(super) struct Work<'a> {
    pub(super) inputs: &'a Inputs,
    pub(super) options: &'a BuildOptions,
    pub(super) cache: &'a LayerCache,
    pub(super) progress: &'a dyn Progress,
    /// The npm packages to use; `None` until they are needed.
    pub(super) packages: Option<npm::Pinned>,
    /// `node_modules`; `None` until it is needed.
    pub(super) modules: Option<npm::Modules>,
    pub(super) notes: Vec<String>,
    /// Packages that differ from the locks.
    pub(super) unlocked: Vec<Moved>,
}

impl Work<'_> {
    /// Makes all layers, the lowest first, each with its role.
    pub(super) fn layers(&mut self) -> Result<Vec<(String, Built)>, BuildError> {
        let inputs = self.inputs;
        let mut layers = vec![("base".to_owned(), self.selection(&inputs.base, inputs.skeleton.clone())?)];
        for selection in &inputs.layers {
            layers.push((selection.name.clone(), self.selection(selection, Tree::above(&inputs.skeleton))?));
        }
        let mut node: Option<String> = None;
        for part in inputs.parts() {
            let (packages, modules, notes, unlocked) = (None, None, Vec::new(), Vec::new());
            let mut work = Work { inputs: part, packages, modules, notes, unlocked, ..*self };
            if let Some(version) = &part.image.node {
                if node.as_ref().is_some_and(|other| other != version) {
                    return Err(BuildError::Recipe {
                        path: part.manifest_dir.join("image.toml"),
                        reason: format!(
                            "wants Node {version}, beside a part of {} that wants another",
                            inputs.image.name
                        ),
                    });
                }
                if node.replace(version.clone()).is_none() {
                    layers.push(("node".to_owned(), work.node(version)?));
                }
            }
            let role = if part.image.name == inputs.image.name { "cli" } else { &part.image.name };
            layers.extend(work.cli()?.map(|layer| (role.to_owned(), layer)));
            self.notes.append(&mut work.notes);
            self.unlocked.append(&mut work.unlocked);
        }
        Ok(layers)
    }

    /// Makes a base or a layer above one; `below` is what a base begins with, or an empty tree above the base.
    fn selection(&mut self, selection: &Selection, below: Tree) -> Result<Built, BuildError> {
        let mut hash = InputHash::new("base");
        hash.add(&selection.bytes);
        let made_by = format!("rootfs/{}.toml", selection.name);
        match (&selection.recipe.debian, &selection.recipe.host) {
            (Some(recipe), None) => {
                let own = selection.own(below.clone())?;
                hash_tree(&mut hash, &own)?;
                let lock = debian::lock_path(&selection.path);
                let mut chosen = debian::read_lock(&lock, recipe)?.as_chosen();
                let mut as_locked = hash.clone();
                chosen.hash(&mut as_locked);
                if !self.is_cached(as_locked) {
                    let (options, progress) = (self.options, self.progress);
                    let folder = &self.inputs.manifest_dir;
                    chosen = debian::choose(recipe, &lock, folder, options, progress, &mut self.notes)?;
                }
                self.unlocked.extend(chosen.moved.iter().cloned());
                chosen.hash(&mut hash);
                self.layer(&selection.name, made_by, hash, |work| {
                    selection.own(debian::add(recipe, &chosen, below, work.options)?)
                })
            }
            (None, Some(host)) => {
                // Files of this machine may change at any time and are small, so they are hashed themselves.
                let tree = selection.own(base::host(host, below)?)?;
                hash_tree(&mut hash, &tree)?;
                self.layer(&selection.name, made_by, hash, |_| Ok(tree))
            }
            _ => Err(BuildError::Recipe {
                path: selection.path.clone(),
                reason: "needs exactly one of [debian] and [host]".to_owned(),
            }),
        }
    }

    fn node(&mut self, version: &str) -> Result<Built, BuildError> {
        let inputs = self.inputs;
        let strip = npm::strip_version();
        if strip.is_none() {
            self.notes.push(
                "strip is not installed (apt-get install binutils): the Node layer is about 18 MB larger".to_owned(),
            );
        }
        let mut used_version = version.to_owned();
        let mut made_of = InputHash::new("node");
        hash_tree(&mut made_of, &inputs.skeleton)?;
        let of = |pinned: &npm::Pinned| {
            let mut hash = made_of.clone();
            hash.add(pinned.integrity(recipe::NODE_PACKAGE).unwrap_or_default().as_bytes());
            hash.add(strip.as_deref().unwrap_or("unstripped").as_bytes());
            hash
        };
        let mut hash = of(&npm::Pinned::read(&inputs.manifest_dir, &inputs.image)?);
        if !self.is_cached(hash.clone()) {
            let used = self.packages()?;
            hash = of(used);
            let moved: Vec<Moved> = used.moved_of(|package| package == recipe::NODE_PACKAGE);
            used_version = moved.iter().find_map(|one| one.used.clone()).unwrap_or(used_version);
            self.unlocked.extend(moved);
        }
        let made_by = format!("npm {} {used_version}", recipe::NODE_PACKAGE);
        self.layer("node", made_by, hash, |work| {
            let skeleton = &work.inputs.skeleton;
            npm::node_tree(work.modules()?, skeleton, strip.is_some())
        })
    }

    /// The npm packages to use: the locked ones, if they are available.
    fn packages(&mut self) -> Result<&npm::Pinned, BuildError> {
        let inputs = self.inputs;
        if self.packages.is_none() {
            let locked = npm::Pinned::read(&inputs.manifest_dir, &inputs.image)?;
            let (used, modules) = npm::choose(&locked, &inputs.manifest_dir, self.options, self.progress)?;
            self.modules = modules;
            self.packages = Some(used);
        }
        Ok(self.packages.as_ref().expect("it was set just above"))
    }

    /// The image's own files; `None` if there are none.
    fn cli(&mut self) -> Result<Option<Built>, BuildError> {
        let inputs = self.inputs;
        let mut own = Tree::above(&inputs.skeleton);
        own.insert_folder(&inputs.files(), "/")?;
        for (path, target) in &inputs.image.links {
            own.insert(path, Node::Symlink { target: target.clone() })?;
        }
        for (path, name) in &inputs.image.programs {
            own.insert(path, program(name, &self.options.programs_dir(&inputs.manifest_dir))?)?;
        }
        if let Some(said) = inputs.image.entrypoint.as_ref().filter(|said| entrypoint::is_needed(said)) {
            let script = entrypoint::script(said)
                .map_err(|reason| BuildError::Recipe { path: inputs.manifest_dir.join("image.toml"), reason })?;
            own.insert(entrypoint::PATH, Node::File { mode: 0o755, source: Source::Bytes(script.into_bytes()) })?;
        }
        if own.is_empty() && inputs.image.copy.is_empty() {
            return Ok(None);
        }

        let mut hash = InputHash::new("cli");
        hash_tree(&mut hash, &inputs.skeleton)?;
        hash_tree(&mut hash, &own)?;
        hash.add(&inputs.image_bytes);
        if !inputs.image.copy.is_empty() {
            let mut as_locked = hash.clone();
            npm::Pinned::read(&inputs.manifest_dir, &inputs.image)?.hash(&mut as_locked);
            if self.is_cached(as_locked.clone()) {
                hash = as_locked;
            } else {
                let used = self.packages()?;
                used.hash(&mut hash);
                let moved: Vec<Moved> = used.moved_of(|package| package != recipe::NODE_PACKAGE);
                self.unlocked.extend(moved);
            }
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
            self.packages()?;
        }
        // Choosing the packages may have installed them already.
        if self.modules.is_none() {
            let (options, progress) = (self.options, self.progress);
            self.modules = Some(self.packages()?.install(options, progress)?);
        }
        Ok(self.modules.as_ref().expect("it was set just above"))
    }

    /// Whether the layer with this input hash is in the cache.
    fn is_cached(&self, mut hash: InputHash) -> bool {
        hash.add(FORMAT.as_bytes());
        self.cache.get(&hash.finish(), LayerCompression::Zstd).is_some()
    }

    fn layer(
        &mut self,
        role: &str,
        made_by: String,
        mut hash: InputHash,
        make: impl FnOnce(&mut Self) -> Result<Tree, BuildError>,
    ) -> Result<Built, BuildError> {
        hash.add(FORMAT.as_bytes());
        let key = hash.finish();
        let compression = self.options.compression;
        if let Some(layer) = self.cache.get(&key, compression) {
            return Ok(Built { layer, key, cached: true, made_by });
        }
        if self.cache.get(&key, LayerCompression::Zstd).is_some() {
            let layer = self.compressed_again(role, &key)?;
            return Ok(Built { layer, key, cached: false, made_by });
        }
        let tree = make(self)?;
        self.progress.started(&format!("compressing {role}"), Some(tree.bytes()?));
        let result = self.cache.put(&key, &tree, self.progress);
        self.progress.finished(&match &result {
            Ok(layer) => format!("{} compressed", HumanBytes(layer.size)),
            Err(_) => "failed".to_owned(),
        });
        let mut layer = result?;
        if compression == LayerCompression::Gzip {
            layer = self.compressed_again(role, &key)?;
        }
        Ok(Built { layer, key, cached: false, made_by })
    }

    /// Makes the gzip variant of a layer that is in the cache.
    fn compressed_again(&mut self, role: &str, key: &str) -> Result<Layer, BuildError> {
        self.progress.started(&format!("gzip of {role}"), None);
        let result = self.cache.gzip(key, self.progress);
        self.progress.finished(if result.is_ok() { "compressed" } else { "failed" });
        result
    }
}

/// One of thawd's own programs.
fn program(name: &str, folder: &Path) -> Result<Node, BuildError> {
    let path = folder.join(name);
    let missing = || BuildError::Recipe {
        path: path.clone(),
        reason: "is not built yet: run `make unified`, or name the folder of the static programs".to_owned(),
    };
    if !recipe::is_name(name) || !path.is_file() {
        return Err(missing());
    }
    Ok(Node::File { mode: 0o755, source: Source::File(path) })
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
