//! Chooses npm packages when a registry no longer has the locked ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::pins::{Moved, REMEMBERED};
use super::super::{BuildError, BuildOptions, run, write_whole};
use super::pinned::{Entry, Modules, Pinned, is_absence, lock_path, npm};
use super::versions::{newest_like, registry_name, with_version};
use crate::digest::{InputHash, hex};
use crate::progress::Progress;

const GONE: &str = "the locked one is neither in the cache nor in the registry; run `thawctl image lock --newest`";

/// Installs the locked packages; in place of those that the registry has withdrawn, the newest that fit. The result is
/// `None` if the choice was remembered and nothing was installed.
pub(in super::super) fn choose(
    locked: &Pinned,
    manifest_dir: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<(Pinned, Option<Modules>), BuildError> {
    let memory = memory(locked, options);
    if !options.locked
        && let Some(pinned) = remembered(&memory)
    {
        return Ok((pinned, None));
    }
    let mut used = locked.clone();
    let mut gone = BTreeSet::new();
    loop {
        let error = match used.install(options, progress) {
            Ok(modules) => {
                used.moved = moved(locked, &used, &gone);
                if !used.moved.is_empty() {
                    remember(&memory, &used)?;
                }
                return Ok((used, Some(modules)));
            }
            Err(error) => error,
        };
        let BuildError::Program { raw, .. } = &error else { return Err(error) };
        if let Some(entry) = used.entries().into_iter().find(|entry| is_changed(raw, entry)) {
            let reason = format!("pins {} {} with another hash than the registry's", entry.name, entry.version);
            return Err(BuildError::Lock { path: lock_path(manifest_dir), reason });
        }
        // Each round rules out one more version, and a registry has a limited number of them.
        let Some(entry) = used.entries().into_iter().find(|entry| is_absent(raw, entry)) else { return Err(error) };
        if options.locked {
            return Err(BuildError::Withdrawn {
                path: lock_path(manifest_dir),
                what: format!("{} {}", entry.name, entry.version),
                command: format!("thawctl image lock --newest {}", manifest_dir.display()),
            });
        }
        if !gone.insert((entry.name.clone(), entry.version.clone())) {
            return Err(error);
        }
        replace(&mut used, &entry, &gone, manifest_dir, options)?;
    }
}

/// Whether npm reports that the registry lacks this package or this version of it.
fn is_absent(raw: &str, entry: &Entry) -> bool {
    let Entry { name, version, .. } = entry;
    let archive = entry.archive();
    let archive = archive.rsplit_once("/-/").map_or("", |(_, file)| file);
    // The address may have any prefix of a registry; `left` must not match `@scope/left`.
    let is_package = |address: &str| {
        let before = address.strip_suffix(name.as_str()).and_then(|before| before.strip_suffix('/'));
        before.is_some_and(|before| !before.rsplit('/').next().unwrap_or_default().starts_with('@'))
    };
    let words = || raw.split_whitespace().map(|word| word.trim_matches(['\'', '.', ',']));
    let named = |word: &str| {
        let word = word.replace("%2f", "/").replace("%2F", "/");
        let (address, file) = word.split_once("/-/").unwrap_or((&word, archive));
        word == format!("{name}@{version}") || is_package(address) && file == archive
    };
    is_absence(raw) && words().any(named)
}

/// Whether npm reports that this package has another content.
fn is_changed(raw: &str, entry: &Entry) -> bool {
    raw.contains("code EINTEGRITY") && !entry.integrity.is_empty() && raw.contains(&entry.integrity)
}

/// Replaces a version of a package: for one that the image names, by the newest similar one; otherwise by what other
/// packages ask for.
fn replace(
    pinned: &mut Pinned,
    entry: &Entry,
    gone: &BTreeSet<(String, String)>,
    manifest_dir: &Path,
    options: &BuildOptions,
) -> Result<(), BuildError> {
    let named = entry.key.strip_prefix("node_modules/").filter(|name| pinned.dependencies.contains_key(*name));
    if let Some(name) = named {
        let wanted = pinned.dependencies[name].clone();
        let (package, version) = registry_name(name, &wanted);
        let versions = versions(package, options)?;
        let left = versions.iter().map(String::as_str);
        let left = left.filter(|version| !gone.contains(&(package.to_owned(), (*version).to_owned())));
        let Some(newest) = newest_like(version, left) else {
            let reason = format!(
                "pins {package} {version}, and the registry has neither it nor another one of the same major version: \
                 name one in image.toml"
            );
            return Err(BuildError::Lock { path: lock_path(manifest_dir), reason });
        };
        pinned.dependencies.insert(name.to_owned(), with_version(&wanted, newest));
        pinned.lock["packages"][""]["dependencies"] = json!(pinned.dependencies);
    }
    if let Some(packages) = pinned.lock["packages"].as_object_mut() {
        packages.retain(|key, _| *key != entry.key && !key.starts_with(&format!("{}/", entry.key)));
    }
    pinned.resolve(options)
}

/// All versions of a package in the registry.
pub(super) fn versions(package: &str, options: &BuildOptions) -> Result<Vec<String>, BuildError> {
    let mut command = npm(&options.cache_dir, options)?;
    command.args(["view", "--json", package, "versions"]);
    let answer = match run("npm", "npm", &mut command) {
        Err(BuildError::Program { raw, .. }) if is_absence(&raw) => return Ok(Vec::new()),
        other => other?,
    };
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    // npm prints a single version without a list.
    let versions = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
    Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// How the used packages differ from the locked ones.
fn moved(locked: &Pinned, used: &Pinned, gone: &BTreeSet<(String, String)>) -> Vec<Moved> {
    let why = |name: &str, version: Option<&str>| match version {
        Some(version) if gone.contains(&(name.to_owned(), version.to_owned())) => GONE.to_owned(),
        _ => "it comes with another package that moved".to_owned(),
    };
    let (before, after) = (locked.entries(), used.entries());
    let mut moved = Vec::new();
    for entry in &after {
        let was = before.iter().find(|one| one.key == entry.key);
        if was.is_none_or(|was| was.version != entry.version) {
            let was = was.map(|was| was.version.clone());
            let why = why(&entry.name, was.as_deref());
            moved.push(Moved { package: entry.name.clone(), locked: was, used: Some(entry.version.clone()), why });
        }
    }
    for was in before.iter().filter(|was| after.iter().all(|one| one.key != was.key)) {
        let why = why(&was.name, Some(&was.version));
        moved.push(Moved { package: was.name.clone(), locked: Some(was.version.clone()), used: None, why });
    }
    moved
}

/// File that remembers what was used in place of this lock, with this registry.
fn memory(locked: &Pinned, options: &BuildOptions) -> PathBuf {
    let mut hash = InputHash::new("instead of an npm lock");
    locked.hash(&mut hash);
    hash.add(format!("{:?} {:?}", locked.dependencies, options.npm_registry).as_bytes());
    options.cache_dir.join("npm-instead").join(format!("{}.json", hex(&hash.finish())))
}

fn remembered(memory: &Path) -> Option<Pinned> {
    let age = fs::metadata(memory).ok()?.modified().ok()?.elapsed().ok()?;
    let pinned: Pinned = serde_json::from_slice(&fs::read(memory).ok()?).ok()?;
    (age < REMEMBERED).then_some(pinned)
}

fn remember(memory: &Path, used: &Pinned) -> Result<(), BuildError> {
    let fail = |error| BuildError::io(memory, error);
    if let Some(folder) = memory.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    write_whole(memory, &serde_json::to_vec(used).map_err(|error| fail(error.into()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, version: &str) -> Entry {
        let integrity = "sha512-abc==".to_owned();
        Entry { key: format!("node_modules/{name}"), name: name.to_owned(), version: version.to_owned(), integrity }
    }

    #[test]
    fn npm_tells_what_is_not_there_in_several_ways() {
        let left = entry("@a/left", "1.0.0");
        for raw in [
            "npm error code ETARGET\nnpm error notarget No matching version found for @a/left@1.0.0.\n",
            "npm error code E404\nnpm error 404 Not Found - GET http://127.0.0.1:1/@a/left/-/left-1.0.0.tgz\n",
            "npm ERR! code E404\nnpm ERR! 404 Not Found - GET http://127.0.0.1:1/@a%2fleft - Not found\n",
        ] {
            assert!(is_absent(raw, &left), "{raw}");
            assert!(!is_absent(raw, &entry("left", "1.0.0")), "{raw}");
            assert!(!is_absent(&raw.replace("E404", "E500").replace("ETARGET", "E500"), &left), "{raw}");
        }
        let changed = "npm error code EINTEGRITY\nnpm error sha512-abc== integrity checksum failed\n";
        assert!(is_changed(changed, &left) && !is_absent(changed, &left));
    }
}
