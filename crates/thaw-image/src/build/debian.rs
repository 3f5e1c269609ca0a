//! Files of Debian packages, pinned by a committed lock file; no script of a package is ever run.
//!
//! A lock says what is preferred. Packages are kept in the cache by their hash, so what was built once can be built again
//! when the mirror has dropped these versions; what is nowhere any more gives way to the newest of the suite, which
//! [`Moved`] tells and the image records.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::fetch::{Mirror, Wanted, address, fetch};
use self::keep::Kept;
use super::pins::Moved;
use super::recipe::Debian;
use super::tree::Tree;
use super::{BuildError, BuildOptions, write_whole};
use crate::digest::{HashingReader, InputHash, hex};
use crate::progress::Progress;

mod depends;
mod fetch;
mod keep;

/// `rootfs/BASE.lock`: the packages that files of a base come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lock {
    suite: String,
    /// When an archive of the past has all of these packages, as snapshot.debian.org writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(rename = "package")]
    packages: Vec<Package>,
}

/// One package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    version: String,
    architecture: String,
    /// Of the `.deb` file, lower-case hex.
    sha256: String,
}

/// The packages that a base is made from, and how they differ from the lock.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chosen {
    packages: Vec<Package>,
    pub(super) moved: Vec<Moved>,
}

impl Chosen {
    /// Adds to the hash of what a layer is made from: only what is used counts, not what the lock pins.
    pub(super) fn hash(&self, hash: &mut InputHash) {
        for package in &self.packages {
            hash.add(package.name.as_bytes());
            hash.add(package.sha256.as_bytes());
        }
    }
}

const HEAD: &str =
    "# The Debian packages that files of this base come from, exactly. Written by `thawctl image lock`.\n\n";

/// For how long what a mirror no longer had is taken as gone without asking again.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Where the lock of a recipe is.
pub(super) fn lock_path(recipe: &Path) -> PathBuf {
    recipe.with_extension("lock")
}

/// The lock file of a recipe.
pub(super) fn read_lock(path: &Path, recipe: &Debian) -> Result<Lock, BuildError> {
    let lock = |reason: String| BuildError::Lock { path: path.to_owned(), reason };
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(lock("is missing".to_owned())),
        other => other.map_err(|error| BuildError::io(path, error))?,
    };
    let found: Lock = toml::from_slice(&bytes).map_err(|error| lock(error.to_string().trim_end().to_owned()))?;
    if found.suite != recipe.suite {
        return Err(lock(format!("is of {}, and the recipe wants {}", found.suite, recipe.suite)));
    }
    Ok(found)
}

impl Lock {
    /// All packages as they are locked.
    pub(super) fn as_chosen(&self) -> Chosen {
        Chosen { packages: self.packages.clone(), moved: Vec::new() }
    }
}

/// The kept packages and where they lie.
struct Pool(PathBuf);

impl Pool {
    fn of(options: &BuildOptions) -> Self {
        Pool(options.cache_dir.join("debian"))
    }

    fn path(&self, package: &Package) -> PathBuf {
        self.0.join(format!("{}.deb", package.sha256))
    }

    fn has(&self, package: &Package) -> bool {
        sha256_of(&self.path(package)).is_ok_and(|found| found == package.sha256)
    }
}

/// Brings the packages of a base into the pool: the locked ones from there, from the mirror or from an archive of the
/// past; in the place of those that nobody has, the newest of the suite.
pub(super) fn choose(
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
            manifest_dir: manifest_dir.to_owned(),
        });
    }
    let (newest, _) = newest(recipe, options, progress)?;
    let chosen = depends::composed(&locked.packages, &newest, &missing, &|package| pool.path(package))?;
    remember(&memory, &chosen)?;
    Ok(chosen)
}

/// Whether a package is one of those that were asked for, with another content.
fn is_changed(found: &Package, wanted: &[&Package]) -> bool {
    wanted.iter().any(|one| one.name == found.name && one.version == found.version && one.sha256 != found.sha256)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn mirror(options: &BuildOptions) -> Mirror {
    Mirror { lines: options.debian_mirror.as_deref().map(lines).unwrap_or_default(), patience: None }
}

/// The archive of the past to ask: the one that was named, else Debian's own unless another mirror was named.
fn snapshot(lock: &Lock, options: &BuildOptions) -> Option<Mirror> {
    let lines = match (&options.debian_snapshot, &options.debian_mirror, &lock.snapshot) {
        (Some(named), _, _) if named == "none" => return None,
        (Some(named), _, _) => lines(named),
        (None, None, Some(time)) => debian_snapshot(&lock.suite, time),
        (None, ..) => return None,
    };
    Some(Mirror { lines, patience: Some(options.snapshot_patience) })
}

/// Debian's archive of the past at a certain time. Its lists of packages are no longer valid by their own date.
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

/// Where it is noted what was used in the place of this lock, with these mirrors.
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

/// Adds the files that the recipe keeps of the packages.
pub(super) fn add(
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

/// The newest packages of the suite that give a file, and the time of that.
fn newest(
    recipe: &Debian,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<(Vec<Package>, String), BuildError> {
    let pool = Pool::of(options);
    let fetched = fetch(recipe, &Wanted::Newest(&recipe.packages), &mirror(options), &pool.0, progress)?;
    let mut packages = Vec::new();
    for package in fetched.packages {
        // Most dependencies are for scripts that are not run: those that give no file are not worth pinning.
        let mut kept = Kept::new(recipe);
        kept.add(&pool.path(&package), &mut Tree::default())?;
        if kept.is_something() {
            packages.push(package);
        }
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((packages, fetched.snapshot))
}

/// Asks the mirror for the newest packages of the suite and writes the lock anew if they are others. Returns what
/// changed, one line each.
pub(super) fn renew_lock(
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

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (_, digest) = HashingReader::new(fs::File::open(path)?, u64::MAX).finish()?;
    Ok(hex(&digest).to_owned())
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
