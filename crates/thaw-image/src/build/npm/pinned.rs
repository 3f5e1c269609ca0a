//! The packages of a `package-lock.json`, and npm itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::pins::Moved;
use super::super::recipe::ImageRecipe;
use super::super::{BuildError, BuildOptions, run, write_whole};
use crate::digest::InputHash;
use crate::progress::Progress;

/// A `node_modules` folder, removed when this is dropped.
pub(in super::super) struct Modules {
    pub(super) folder: PathBuf,
}

impl Modules {
    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.folder.join("node_modules").join(below)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        // A leftover only takes space in the cache, and the next build replaces it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The packages that an image is made from, and how they differ from the lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Pinned {
    /// Name of the image.
    pub(super) image: String,
    /// Packages that the image names: name to version or alias.
    pub(super) dependencies: BTreeMap<String, String>,
    /// The matching `package-lock.json`.
    pub(super) lock: Value,
    pub(super) moved: Vec<Moved>,
}

/// One installed package of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Path of the package: `node_modules/NAME`.
    pub(super) key: String,
    /// Name in the registry; an alias has another name in the key.
    pub(super) name: String,
    pub(super) version: String,
    pub(super) integrity: String,
}

impl Entry {
    /// URL of its archive, by the scheme of registries.
    pub(super) fn archive(&self) -> String {
        let base = self.name.rsplit('/').next().unwrap_or_default();
        format!("https://registry.npmjs.org/{}/-/{base}-{}.tgz", self.name, self.version)
    }
}

pub(super) fn lock_path(manifest_dir: &Path) -> PathBuf {
    manifest_dir.join("package-lock.json")
}

impl Pinned {
    /// Reads the locked packages.
    pub(in super::super) fn read(manifest_dir: &Path, image: &ImageRecipe) -> Result<Self, BuildError> {
        let path = lock_path(manifest_dir);
        let bad = |reason: String| BuildError::Lock { path: path.clone(), reason };
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(bad("is missing".to_owned())),
            other => other.map_err(|error| BuildError::io(&path, error))?,
        };
        let lock: Value = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let dependencies = image.packages();
        if lock["packages"][""]["dependencies"] != json!(dependencies) {
            return Err(bad("pins other packages than image.toml asks for".to_owned()));
        }
        let pinned = Pinned { image: image.name.clone(), dependencies, lock, moved: Vec::new() };
        match pinned.dependencies.keys().find(|name| pinned.integrity(name).is_none()) {
            Some(name) => Err(bad(format!("does not pin {name}"))),
            None => Ok(pinned),
        }
    }

    /// Hash of a package of the top level.
    pub(in super::super) fn integrity(&self, package: &str) -> Option<&str> {
        self.lock["packages"][format!("node_modules/{package}")]["integrity"].as_str()
    }

    /// Adds the packages to the hash of a layer's inputs: only those used count.
    pub(in super::super) fn hash(&self, hash: &mut InputHash) {
        for entry in self.entries() {
            hash.add(entry.key.as_bytes());
            hash.add(entry.integrity.as_bytes());
        }
    }

    /// Differences from the lock, of packages whose name is `wanted`.
    pub(in super::super) fn moved_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<Moved> {
        self.moved.iter().filter(|one| wanted(&one.package)).cloned().collect()
    }

    /// Installed packages of the lock.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let packages = self.lock["packages"].as_object();
        let packages = packages.into_iter().flatten().filter(|(key, entry)| {
            !key.is_empty() && ["optional", "dev", "devOptional"].iter().all(|kind| entry[kind] != json!(true))
        });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let entry = |(key, entry): (&String, &Value)| Entry {
            key: key.clone(),
            name: entry["name"]
                .as_str()
                .unwrap_or_else(|| key.rsplit("node_modules/").next().unwrap_or(key))
                .to_owned(),
            version: text(&entry["version"]),
            integrity: text(&entry["integrity"]),
        };
        packages.map(entry).collect()
    }

    /// Makes a folder with `package.json`, and a lock if there is one.
    fn folder(&self, options: &BuildOptions) -> Result<Modules, BuildError> {
        let folder = options.cache_dir.join(format!("npm-work-{}", self.image));
        let fail = |error| BuildError::io(&folder, error);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(fail)?;
        }
        fs::create_dir_all(&folder).map_err(fail)?;
        let modules = Modules { folder: folder.clone() };
        let name = format!("thawd-image-{}", self.image);
        let package = json!({ "name": name, "private": true, "dependencies": self.dependencies });
        write_whole(&folder.join("package.json"), package.to_string().as_bytes())?;
        if !self.lock.is_null() {
            write_whole(&folder.join("package-lock.json"), self.lock.to_string().as_bytes())?;
        }
        Ok(modules)
    }

    /// Installs exactly these packages. Those in npm's cache are found by hash, without asking the registry.
    pub(in super::super) fn install(
        &self,
        options: &BuildOptions,
        progress: &dyn Progress,
    ) -> Result<Modules, BuildError> {
        progress.started("fetching npm packages", None);
        // npm uses its cache only if the lock names the address of an archive. Committed locks name none, so that they
        // work behind any mirror. So the addresses are added here, by the scheme of nearly all registries.
        let mut with_places = self.clone();
        for entry in self.entries() {
            with_places.lock["packages"][&entry.key]["resolved"] = json!(entry.archive());
        }
        let result = with_places.ci(options).or_else(|error| match &error {
            // The archive may have another address, which the registry knows.
            BuildError::Program { raw, .. } if is_absence(raw) => self.ci(options),
            _ => Err(error),
        });
        progress.finished(if result.is_ok() { "fetched, hashes checked" } else { "failed" });
        result
    }

    fn ci(&self, options: &BuildOptions) -> Result<Modules, BuildError> {
        let modules = self.folder(options)?;
        run("npm", "npm", npm(&modules.folder, options)?.arg("ci"))?;
        Ok(modules)
    }

    /// Lets the registry complete the lock.
    pub(super) fn resolve(&mut self, options: &BuildOptions) -> Result<(), BuildError> {
        let modules = self.folder(options)?;
        let mut command = npm(&modules.folder, options)?;
        // Without addresses, a lock file made behind a mirror works anywhere; the hashes stay.
        command.args(["--package-lock-only", "--omit-lockfile-registry-resolved", "install"]);
        run("npm", "npm", &mut command)?;
        let made = modules.folder.join("package-lock.json");
        self.lock = fs::read(&made)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(|error| BuildError::io(&made, error))?;
        self.lock["name"] = json!(format!("thawd-image-{}", self.image));
        Ok(())
    }
}

/// npm in `folder`, with its downloads kept in the cache. It never runs scripts of packages nor asks for audits, and
/// gives a registry up that says nothing for 30 s, twice.
pub(super) fn npm(folder: &Path, options: &BuildOptions) -> Result<Command, BuildError> {
    let cache = &options.cache_dir;
    let cache = std::path::absolute(cache.join("npm")).map_err(|error| BuildError::io(cache, error))?;
    let mut command = Command::new("npm");
    command.current_dir(folder).arg("--cache").arg(cache);
    command.args(["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]);
    command.args(["--omit=optional", "--omit=dev", "--os=linux", "--cpu=x64"]);
    command.args(["--fetch-timeout=30000", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]);
    if let Some(registry) = &options.npm_registry {
        command.arg(format!("--registry={registry}"));
    }
    Ok(command)
}

/// Whether npm reports that a registry lacks something.
pub(super) fn is_absence(raw: &str) -> bool {
    ["code E404", "code ETARGET", "code E410", "code E451"].iter().any(|code| raw.contains(code))
}
