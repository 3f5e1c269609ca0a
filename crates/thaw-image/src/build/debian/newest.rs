//! The newest packages of a suite.

use super::super::recipe::Debian;
use super::super::tree::Tree;
use super::super::{BuildError, BuildOptions};
use super::fetch::{Mirror, Wanted, fetch};
use super::keep::Kept;
use super::lock::{Package, Pool};
use crate::progress::Progress;

pub(super) fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

pub(super) fn mirror(options: &BuildOptions) -> Mirror {
    Mirror { lines: options.debian_mirror.as_deref().map(lines).unwrap_or_default(), patience: None }
}

/// The newest packages of the suite that provide a wanted file, and the time of that state.
pub(super) fn newest(
    recipe: &Debian,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<(Vec<Package>, String), BuildError> {
    let pool = Pool::of(options);
    let fetched = fetch(recipe, &Wanted::Newest(&recipe.packages), &mirror(options), &pool.0, progress)?;
    let mut packages = Vec::new();
    let mut unknown: Vec<&str> = recipe.without.iter().map(String::as_str).collect();
    for package in fetched.packages {
        let all = unknown.len();
        unknown.retain(|name| *name != package.name);
        if unknown.len() < all {
            continue;
        }
        // Most dependencies are for scripts, which are never run. Packages that provide no file are not worth pinning.
        let mut kept = Kept::new(recipe);
        kept.add(&pool.path(&package), &mut Tree::default())?;
        if kept.is_something() {
            packages.push(package);
        }
    }
    if !unknown.is_empty() {
        return Err(BuildError::Path {
            path: unknown.join(", "),
            reason: "[debian] `without` names these, and none of the packages brings them along".to_owned(),
        });
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((packages, fetched.snapshot))
}
