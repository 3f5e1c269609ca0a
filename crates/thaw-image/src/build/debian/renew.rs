//! Renews locks, and lists what can be renewed.

use std::path::Path;

use super::super::pins::Stale;
use super::super::recipe::Debian;
use super::super::{BuildError, BuildOptions, write_whole};
use super::fetch::{Wanted, fetch};
use super::lock::{HEAD, Lock, Package, Pool, read_lock};
use super::newest::{mirror, newest};
use crate::progress::Progress;

/// Asks the mirror for the newest packages of the suite, and writes a new lock if they differ. Returns the changes, one
/// line each.
pub(in super::super) fn renew_lock(
    recipe: &Debian,
    lock: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<String>, BuildError> {
    let (packages, snapshot) = newest(recipe, options, progress)?;
    let before = read_lock(lock, recipe).ok();
    if before.as_ref().is_some_and(|before| before.packages == packages && before.snapshot.is_some()) {
        return Ok(Vec::new());
    }
    let changes = changes(before.as_ref().map_or(&[], |lock| &lock.packages), &packages);
    let text = toml::to_string(&Lock { suite: recipe.suite.clone(), snapshot: Some(snapshot), packages })
        .map_err(|error| BuildError::Lock { path: lock.to_owned(), reason: error.to_string() })?;
    write_whole(lock, format!("{HEAD}{text}").as_bytes())?;
    Ok(changes)
}

/// Packages of a lock that are not the newest or no longer available. Writes nothing but downloads to the cache.
pub(in super::super) fn check(
    recipe: &Debian,
    lock: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Vec<Stale>, BuildError> {
    let locked = read_lock(lock, recipe)?.packages;
    let (newest, _) = newest(recipe, options, progress)?;
    let version = |packages: &[Package], name: &str| {
        packages.iter().find(|package| package.name == name).map(|found| found.version.clone())
    };
    let changed: Vec<&Package> = locked.iter().filter(|package| !newest.contains(package)).collect();
    let there = match changed.is_empty() {
        true => Vec::new(),
        false => fetch(recipe, &Wanted::Exactly(&changed), &mirror(options), &Pool::of(options).0, progress)?.packages,
    };
    let mut stale = Vec::new();
    for package in changed {
        stale.push(Stale {
            package: package.name.clone(),
            locked: Some(package.version.clone()),
            newest: version(&newest, &package.name),
            is_there: there.contains(package),
        });
    }
    for package in newest.iter().filter(|package| version(&locked, &package.name).is_none()) {
        let (package, newest) = (package.name.clone(), Some(package.version.clone()));
        stale.push(Stale { package, locked: None, newest, is_there: true });
    }
    Ok(stale)
}

fn changes(before: &[Package], after: &[Package]) -> Vec<String> {
    let version = |packages: &[Package], name: &str| {
        packages.iter().find(|package| package.name == name).map_or("nothing".to_owned(), |found| found.version.clone())
    };
    let names: std::collections::BTreeSet<&str> = before.iter().chain(after).map(|one| one.name.as_str()).collect();
    let change = |name: &&str| {
        let (was, is) = (version(before, name), version(after, name));
        (was != is).then(|| format!("{name}: {was} -> {is}"))
    };
    names.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_version() {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "all".to_owned(),
            sha256: String::new(),
        };
        let (before, after) =
            ([package("a", "1"), package("b", "1")], [package("a", "1"), package("b", "2"), package("c", "3")]);
        assert_eq!(changes(&before, &after), ["b: 1 -> 2", "c: nothing -> 3"]);
    }
}
