//! Chooses the packages of a base: the locked ones, as far as they are available.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::pins::REMEMBERED;
use super::super::recipe::Debian;
use super::super::tree::Tree;
use super::super::{BuildError, BuildOptions, write_whole};
use super::depends;
use super::fetch::{Mirror, Wanted, address, fetch};
use super::keep::Kept;
use super::lock::{Chosen, Lock, Package, Pool, read_lock};
use super::newest::{lines, mirror, newest};
use crate::digest::{InputHash, hex};
use crate::progress::Progress;

/// Brings the packages of a base into the pool: the locked ones from the pool, the mirror or a snapshot archive; in
/// place of unavailable ones, the newest of the suite.
pub(in super::super) fn choose(
    recipe: &Debian,
    lock: &Path,
    manifest_dir: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
    notes: &mut Vec<String>,
) -> Result<Chosen, BuildError> {
    let locked = read_lock(lock, recipe)?;
    let pool = Pool::of(options);
    let mut missing: Vec<&Package> = locked.packages.iter().filter(|package| !pool.has(package)).collect();
    if missing.is_empty() {
        return Ok(locked.as_chosen());
    }
    let memory = memory(&locked, recipe, options, &pool);
    if !options.locked
        && let Some(chosen) = remembered(&memory, &pool)
    {
        return Ok(chosen);
    }
    let mut unreachable = None;
    for (number, mirror) in [Some(mirror(options)), snapshot(&locked, options)].into_iter().flatten().enumerate() {
        match fetch(recipe, &Wanted::Exactly(&missing), &mirror, &pool.0, progress) {
            Ok(found) => {
                if let Some(other) = found.packages.iter().find(|one| is_changed(one, &missing)) {
                    let reason = format!("pins {} {} with another hash than the mirror's", other.name, other.version);
                    return Err(BuildError::Lock { path: lock.to_owned(), reason });
                }
                missing.retain(|package| !pool.has(package));
            }
            Err(error @ BuildError::Missing { .. }) => return Err(error),
            Err(error) if number == 0 => unreachable = Some(error),
            Err(error) => {
                let from = mirror.lines.first().map_or("the snapshot", |line| address(line));
                notes.push(format!("no locked package came from {from}: {error}"));
            }
        }
        if missing.is_empty() {
            return Ok(locked.as_chosen());
        }
    }
    if let Some(error) = unreachable {
        return Err(error);
    }
    if options.locked {
        return Err(BuildError::Withdrawn {
            path: lock.to_owned(),
            what: missing.iter().map(|one| format!("{} {}", one.name, one.version)).collect::<Vec<_>>().join(", "),
            command: format!("thawctl image lock {}", manifest_dir.display()),
        });
    }
    let (newest, _) = newest(recipe, options, progress)?;
    let chosen = depends::composed(&locked.packages, &newest, &missing, &|package| pool.path(package))?;
    remember(&memory, &chosen)?;
    Ok(chosen)
}

/// Whether a package has the name and version of a wanted one, but another content.
fn is_changed(found: &Package, wanted: &[&Package]) -> bool {
    wanted.iter().any(|one| one.name == found.name && one.version == found.version && one.sha256 != found.sha256)
}

/// The snapshot archive to ask: the configured one, or Debian's own unless another mirror is configured.
fn snapshot(lock: &Lock, options: &BuildOptions) -> Option<Mirror> {
    let lines = match (&options.debian_snapshot, &options.debian_mirror, &lock.snapshot) {
        (Some(named), _, _) if named == "none" => return None,
        (Some(named), _, _) => lines(named),
        (None, None, Some(time)) => debian_snapshot(&lock.suite, time),
        (None, ..) => return None,
    };
    Some(Mirror { lines, patience: Some(options.snapshot_patience) })
}

/// Debian's snapshot archive at a certain time. Its package lists have expired by their own date.
fn debian_snapshot(suite: &str, time: &str) -> Vec<String> {
    let line = |archive: &str, suite: String| {
        format!("deb [check-valid-until=no] http://snapshot.debian.org/archive/{archive}/{time} {suite} main")
    };
    vec![
        line("debian", suite.to_owned()),
        line("debian", format!("{suite}-updates")),
        line("debian-security", format!("{suite}-security")),
    ]
}

/// File that remembers what was used in place of this lock, with these mirrors.
fn memory(lock: &Lock, recipe: &Debian, options: &BuildOptions, pool: &Pool) -> PathBuf {
    let mut hash = InputHash::new("instead of a lock");
    lock.as_chosen().hash(&mut hash);
    hash.add(format!("{recipe:?} {:?} {:?}", options.debian_mirror, options.debian_snapshot).as_bytes());
    pool.0.join("instead").join(format!("{}.json", hex(&hash.finish())))
}

fn remembered(memory: &Path, pool: &Pool) -> Option<Chosen> {
    let age = fs::metadata(memory).ok()?.modified().ok()?.elapsed().ok()?;
    let chosen: Chosen = serde_json::from_slice(&fs::read(memory).ok()?).ok()?;
    (age < REMEMBERED && chosen.packages.iter().all(|package| pool.has(package))).then_some(chosen)
}

fn remember(memory: &Path, chosen: &Chosen) -> Result<(), BuildError> {
    let fail = |error| BuildError::io(memory, error);
    if let Some(folder) = memory.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
    }
    write_whole(memory, &serde_json::to_vec(chosen).map_err(|error| fail(error.into()))?)
}

/// Adds the files of the packages that the recipe keeps.
pub(in super::super) fn add(
    recipe: &Debian,
    chosen: &Chosen,
    mut tree: Tree,
    options: &BuildOptions,
) -> Result<Tree, BuildError> {
    let pool = Pool::of(options);
    let mut kept = Kept::new(recipe);
    for package in &chosen.packages {
        kept.add(&pool.path(package), &mut tree)?;
    }
    kept.finish(&mut tree)?;
    Ok(tree)
}
