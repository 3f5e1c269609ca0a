//! Chooses Debian packages that fit together when some locked ones are unavailable.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::pins::Moved;
use super::super::{BuildError, run};
use super::lock::{Chosen, Package};

/// A versioned dependency of a package: `name (relation version)`.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    name: String,
    relation: String,
    version: String,
}

/// Takes each package in its locked version, unless that is `missing` or no longer fits the replaced ones; then takes
/// the newest. Packages that the newest set adds are added; packages that it drops are dropped.
pub(super) fn composed(
    locked: &[Package],
    newest: &[Package],
    missing: &[&Package],
    path: &dyn Fn(&Package) -> PathBuf,
) -> Result<Chosen, BuildError> {
    let of = |name: &str| locked.iter().find(|one| one.name == name);
    let kept = |one: &Package| of(&one.name).filter(|locked| !missing.contains(locked)).cloned();
    let mut packages: Vec<Package> = newest.iter().map(|one| kept(one).unwrap_or_else(|| one.clone())).collect();
    let mut forced = Vec::new();
    // Each round replaces one more package by its newest version, and none goes back.
    while let Some((at, because)) = unfit(&packages, newest, path)? {
        packages[at] = newest[at].clone();
        forced.push((packages[at].name.clone(), because));
    }
    let mut moved = Vec::new();
    for package in &packages {
        let before = of(&package.name);
        if before == Some(package) {
            continue;
        }
        let why = match (forced.iter().find(|(name, _)| *name == package.name), before) {
            (Some((_, because)), _) => format!("it has to go with {because}"),
            (None, Some(_)) => GONE.to_owned(),
            (None, None) => "files of the base are in it now".to_owned(),
        };
        let (locked, used) = (before.map(|one| one.version.clone()), Some(package.version.clone()));
        moved.push(Moved { package: package.name.clone(), locked, used, why });
    }
    for gone in locked.iter().filter(|one| newest.iter().all(|new| new.name != one.name)) {
        let (package, locked) = (gone.name.clone(), Some(gone.version.clone()));
        let why = "the suite has no package of this name with files of the base".to_owned();
        moved.push(Moved { package, locked, used: None, why });
    }
    Ok(Chosen { packages, moved })
}

const GONE: &str = "the locked one is neither in the cache nor on the mirror; renew the lock with `thawctl image lock`";

/// A package that is not the newest and does not fit another one, together with that other one. A needed package is
/// replaced before the one that needs it.
fn unfit(
    packages: &[Package],
    newest: &[Package],
    path: &dyn Fn(&Package) -> PathBuf,
) -> Result<Option<(usize, String)>, BuildError> {
    for (number, package) in packages.iter().enumerate() {
        for needs in needs(&path(package))? {
            let Some(at) = packages.iter().position(|one| one.name == needs.name) else { continue };
            if fits(&packages[at].version, &needs)? {
                continue;
            }
            let movable =
                [(at, package), (number, &packages[at])].into_iter().find(|(at, _)| packages[*at] != newest[*at]);
            if let Some((at, other)) = movable {
                return Ok(Some((at, format!("{} {}", other.name, other.version))));
            }
        }
    }
    Ok(None)
}

fn needs(package: &Path) -> Result<Vec<Needs>, BuildError> {
    let mut show = Command::new("dpkg-deb");
    show.args(["--show", "--showformat=${Pre-Depends}, ${Depends}"]).arg(package);
    let text = String::from_utf8_lossy(&run("dpkg-deb", "dpkg", &mut show)?).into_owned();
    Ok(text.split(',').filter_map(parsed).collect())
}

/// Parses one versioned dependency. Alternatives are not checked: apt has found the newest set to be complete.
fn parsed(text: &str) -> Option<Needs> {
    if text.contains('|') {
        return None;
    }
    let (name, condition) = text.trim().strip_suffix(')')?.split_once('(')?;
    let (relation, version) = condition.trim().split_once(' ')?;
    let name = name.trim().split(':').next()?.to_owned();
    Some(Needs { name, relation: relation.to_owned(), version: version.trim().to_owned() })
}

fn fits(version: &str, needs: &Needs) -> Result<bool, BuildError> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", version, &needs.relation, &needs.version])
        .stdin(Stdio::null())
        .status()
        .map_err(|error| BuildError::io(Path::new("dpkg"), error))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_with_a_version_are_read() {
        let needs = parsed(" libc6:any (>= 2.34) ").unwrap();
        assert_eq!((&*needs.name, &*needs.relation, &*needs.version), ("libc6", ">=", "2.34"));
        assert_eq!((parsed("libc6"), parsed("a (>= 1) | b"), parsed("")), (None, None, None));
        assert!(fits("2.41-12+deb13u5", &needs).unwrap() && !fits("2.3", &needs).unwrap());
        let exactly = parsed("gcc-14-base (= 14.2.0-19)").unwrap();
        assert!(fits("14.2.0-19", &exactly).unwrap() && !fits("14.2.0-20", &exactly).unwrap());
    }
}
