//! Renews npm's locks, and lists what can be renewed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::super::pins::Stale;
use super::super::recipe::{ImageRecipe, NODE_PACKAGE};
use super::super::{BuildError, BuildOptions, recipe, write_whole};
use super::choose::versions;
use super::pinned::{Pinned, is_absence, lock_path};
use super::versions::{newest_like, numbers, registry_name, suffix, with_version};
use crate::progress::Progress;

/// Asks the registry for the packages of the manifest.
fn locked_anew(image: &ImageRecipe, options: &BuildOptions, progress: &dyn Progress) -> Result<Pinned, BuildError> {
    let dependencies = image.packages();
    let mut pinned = Pinned { image: image.name.clone(), dependencies, lock: Value::Null, moved: Vec::new() };
    progress.started("locking npm packages", None);
    let result = pinned.resolve(options);
    progress.finished(if result.is_ok() { "locked" } else { "failed" });
    result.map(|()| pinned)
}

/// Asks the registry for the packages of the manifest and writes a new lock file. Returns the changes of what is
/// installed, one line each.
pub(in super::super) fn renew_lock(
    manifest_dir: &Path,
    image: &ImageRecipe,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<String>, BuildError> {
    let path = lock_path(manifest_dir);
    let before = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
    let pinned = locked_anew(image, options, progress)?;
    let text = serde_json::to_string_pretty(&pinned.lock).map_err(|error| BuildError::io(&path, error.into()))?;
    write_whole(&path, format!("{text}\n").as_bytes())?;
    Ok(changes(&Pinned { lock: before, ..pinned.clone() }, &pinned))
}

fn changes(before: &Pinned, after: &Pinned) -> Vec<String> {
    let versions = |pinned: &Pinned| -> BTreeMap<String, (String, String)> {
        pinned.entries().into_iter().map(|entry| (entry.key, (entry.name, entry.version))).collect()
    };
    let (before, after) = (versions(before), versions(after));
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |key: &String| {
        let (was, is) = (before.get(key), after.get(key));
        let version = |one: Option<&(String, String)>| one.map_or("nothing".to_owned(), |(_, version)| version.clone());
        let name = is.or(was).map(|(name, _)| name.as_str()).unwrap_or_default();
        (was.map(|one| &one.1) != is.map(|one| &one.1)).then(|| format!("{name}: {} -> {}", version(was), version(is)))
    };
    keys.into_iter().filter_map(change).collect()
}

/// A package with a newer version than the pinned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    /// Its name in the registry.
    pub package: String,
    /// The version in `image.toml`.
    pub pinned: String,
    /// Newest version; for Node, the newest of the same major version.
    pub newest: String,
}

/// Name in `node_modules`, name in the registry, requested version, newest version.
struct Asked {
    name: String,
    package: String,
    pinned: String,
    newest: Option<String>,
    is_there: bool,
}

/// Asks the registry for every package of the manifest. Of Node the newest of the same major version counts, since the
/// clients are made for that; of others the newest release for the same platform.
fn ask(image: &ImageRecipe, options: &BuildOptions) -> Result<Vec<Asked>, BuildError> {
    let mut asked = Vec::new();
    for (name, wanted) in image.packages() {
        let (package, pinned) = registry_name(&name, &wanted);
        let versions = versions(package, options)?;
        let all = || versions.iter().map(String::as_str);
        let newest = if image.held.contains(&name) {
            Some(pinned)
        } else if name == NODE_PACKAGE {
            newest_like(pinned, all())
        } else {
            all().filter(|version| suffix(version) == suffix(pinned)).max_by_key(|version| numbers(version))
        };
        asked.push(Asked {
            package: package.to_owned(),
            pinned: pinned.to_owned(),
            newest: newest.map(str::to_owned),
            is_there: all().any(|version| version == pinned),
            name,
        });
    }
    Ok(asked)
}

/// The packages of the manifest of which the registry has a newer version.
pub(in super::super) fn outdated(image: &ImageRecipe, options: &BuildOptions) -> Result<Vec<Outdated>, BuildError> {
    let newer = |one: Asked| {
        let newest = one.newest.filter(|newest| numbers(newest) > numbers(&one.pinned))?;
        Some(Outdated { package: one.package, pinned: one.pinned, newest })
    };
    Ok(ask(image, options)?.into_iter().filter_map(newer).collect())
}

/// Packages of a lock that are not the newest or no longer available.
pub(in super::super) fn check(
    manifest_dir: &Path,
    image: &ImageRecipe,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<Stale>, BuildError> {
    let locked = Pinned::read(manifest_dir, image)?;
    let mut stale = Vec::new();
    let mut all_there = true;
    for one in ask(image, options)? {
        all_there &= one.is_there;
        let newest = one.newest.filter(|newest| !one.is_there || numbers(newest) > numbers(&one.pinned));
        if newest.is_some() || !one.is_there {
            stale.push(Stale { package: one.package, locked: Some(one.pinned), newest, is_there: one.is_there });
        }
    }
    // Also the dependencies of the packages. Those of unavailable packages are unknown.
    if all_there {
        let newest = match locked_anew(image, options, progress) {
            Err(BuildError::Program { raw, .. }) if is_absence(&raw) => return Ok(stale),
            other => other?,
        };
        let (before, after) = (locked.entries(), newest.entries());
        for entry in before.iter().filter(|entry| !after.contains(entry)) {
            let newest = after.iter().find(|one| one.key == entry.key).map(|one| one.version.clone());
            let is_there = versions(&entry.name, options)?.contains(&entry.version);
            stale.push(Stale { package: entry.name.clone(), locked: Some(entry.version.clone()), newest, is_there });
        }
    }
    Ok(stale)
}

/// Writes the newest versions into `image.toml`. Returns the changes, one line each.
pub(in super::super) fn newest_in_manifest(
    manifest_dir: &Path,
    image: &ImageRecipe,
    options: &BuildOptions,
) -> Result<Vec<String>, BuildError> {
    let path = manifest_dir.join("image.toml");
    let mut text = fs::read_to_string(&path).map_err(|error| BuildError::io(&path, error))?;
    let (mut wanted, mut changes) = (image.packages(), Vec::new());
    for one in ask(image, options)? {
        let Some(newest) = one.newest.filter(|newest| *newest != one.pinned) else { continue };
        if one.is_there && numbers(&newest) <= numbers(&one.pinned) {
            continue;
        }
        let before = wanted[&one.name].clone();
        let after = with_version(&before, &newest);
        let key = if one.name == NODE_PACKAGE { "node".to_owned() } else { format!("\"{}\"", one.name) };
        let replaced = |line: &str| {
            let is_it = line.trim_start().strip_prefix(&key).is_some_and(|rest| rest.trim_start().starts_with('='));
            if is_it { line.replace(&format!("\"{before}\""), &format!("\"{after}\"")) } else { line.to_owned() }
        };
        text = text.lines().map(|line| replaced(line) + "\n").collect();
        changes.push(format!("{}: {} -> {newest}", one.package, one.pinned));
        wanted.insert(one.name, after);
    }
    if changes.is_empty() {
        return Ok(changes);
    }
    // The text is written only if it reads back as intended.
    let read: Option<ImageRecipe> = toml::from_str(&text).ok();
    if read.is_none_or(|read| read.packages() != wanted) {
        let reason = format!("has its versions in an unusual place: write them there by hand ({})", changes.join(", "));
        return Err(BuildError::Recipe { path, reason });
    }
    write_whole(&path, text.as_bytes())?;
    let _: (ImageRecipe, _) = recipe::read(&path)?;
    Ok(changes)
}
