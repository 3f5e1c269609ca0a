//! Files from npm packages, pinned by a committed `package-lock.json`; no script of a package is ever run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::recipe::{Copy, ImageRecipe, NODE_PACKAGE, glob};
use super::tree::{Node, Source, Tree, files_below};
use super::{BuildError, run, write_whole};
use crate::progress::Progress;

/// A `node_modules` folder that lasts as long as this value.
pub(super) struct Modules {
    folder: PathBuf,
}

impl Modules {
    fn path(&self, below: &str) -> PathBuf {
        self.folder.join("node_modules").join(below)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        // A leftover only takes space in the cache and is replaced by the next build.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn lock_path(manifest_dir: &Path) -> PathBuf {
    manifest_dir.join("package-lock.json")
}

/// The lock file as it is.
pub(super) fn lock_bytes(manifest_dir: &Path) -> Result<Vec<u8>, BuildError> {
    let path = lock_path(manifest_dir);
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(BuildError::Lock { path, reason: "is missing".to_owned() })
        }
        other => other.map_err(|e| BuildError::io(&path, e)),
    }
}

fn read_lock(manifest_dir: &Path) -> Result<Value, BuildError> {
    serde_json::from_slice(&lock_bytes(manifest_dir)?)
        .map_err(|e| BuildError::Lock { path: lock_path(manifest_dir), reason: e.to_string() })
}

/// The hash that the lock file pins a package of the top level to.
pub(super) fn integrity(manifest_dir: &Path, package: &str) -> Result<String, BuildError> {
    let lock = read_lock(manifest_dir)?;
    lock["packages"][format!("node_modules/{package}")]["integrity"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| BuildError::Lock { path: lock_path(manifest_dir), reason: format!("does not pin {package}") })
}

fn package_json(image: &ImageRecipe) -> Vec<u8> {
    let package = json!({
        "name": format!("thawd-image-{}", image.name),
        "private": true,
        "dependencies": image.packages(),
    });
    package.to_string().into_bytes()
}

/// npm in `folder`, with its downloads kept in the cache. It never runs scripts of packages nor asks for audits.
fn npm(folder: &Path, cache_dir: &Path) -> Result<Command, BuildError> {
    let cache = std::path::absolute(cache_dir.join("npm")).map_err(|e| BuildError::io(cache_dir, e))?;
    let mut command = Command::new("npm");
    command.current_dir(folder).arg("--cache").arg(cache);
    command.args(["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]);
    command.args(["--omit=optional", "--omit=dev", "--os=linux", "--cpu=x64"]);
    Ok(command)
}

/// An empty folder with the image's `package.json`.
fn work_folder(image: &ImageRecipe, cache_dir: &Path) -> Result<Modules, BuildError> {
    let folder = cache_dir.join(format!("npm-work-{}", image.name));
    let fail = |e| BuildError::io(&folder, e);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(fail)?;
    }
    fs::create_dir_all(&folder).map_err(fail)?;
    let modules = Modules { folder: folder.clone() };
    write_whole(&folder.join("package.json"), &package_json(image))?;
    Ok(modules)
}

/// Installs exactly what the lock file pins.
pub(super) fn install(
    manifest_dir: &Path,
    image: &ImageRecipe,
    cache_dir: &Path,
    progress: &dyn Progress,
) -> Result<Modules, BuildError> {
    let lock = read_lock(manifest_dir)?;
    if lock["packages"][""]["dependencies"] != json!(image.packages()) {
        let reason = "pins other packages than image.toml asks for".to_owned();
        return Err(BuildError::Lock { path: lock_path(manifest_dir), reason });
    }
    let modules = work_folder(image, cache_dir)?;
    write_whole(&modules.folder.join("package-lock.json"), &lock_bytes(manifest_dir)?)?;
    progress.started("fetching npm packages", None);
    let result = run("npm", "npm", npm(&modules.folder, cache_dir)?.arg("ci"));
    progress.finished(if result.is_ok() { "fetched, hashes checked" } else { "failed" });
    result.map(|_| modules)
}

/// Asks the registry for the packages of the manifest and writes the lock file anew.
pub(super) fn renew_lock(
    manifest_dir: &Path,
    image: &ImageRecipe,
    cache_dir: &Path,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let modules = work_folder(image, cache_dir)?;
    progress.started("locking npm packages", None);
    let mut command = npm(&modules.folder, cache_dir)?;
    // Without the addresses, a lock file made behind a mirror is good anywhere; the hashes stay.
    command.args(["--package-lock-only", "--omit-lockfile-registry-resolved", "install"]);
    let result = run("npm", "npm", &mut command);
    progress.finished(if result.is_ok() { "locked" } else { "failed" });
    result?;
    let made = modules.folder.join("package-lock.json");
    let mut lock: Value =
        fs::read(&made).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)).map_err(|e| BuildError::io(&made, e))?;
    lock["name"] = json!(format!("thawd-image-{}", image.name));
    let text = serde_json::to_string_pretty(&lock).map_err(|e| BuildError::io(&made, e.into()))?;
    write_whole(&lock_path(manifest_dir), format!("{text}\n").as_bytes())
}

/// A package of which there is a newer version than the pinned one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    /// Its name in the registry.
    pub package: String,
    /// The version in `image.toml`.
    pub pinned: String,
    /// The newest one; of Node, the newest of the same major version.
    pub newest: String,
}

/// Asks the registry for the newest version of every package of the manifest.
pub(super) fn outdated(image: &ImageRecipe, cache_dir: &Path) -> Result<Vec<Outdated>, BuildError> {
    let mut found = Vec::new();
    for (name, wanted) in image.packages() {
        let (package, pinned) = registry_name(&name, &wanted);
        let question = if name == NODE_PACKAGE {
            format!("{package}@{}", pinned.split('.').next().unwrap_or_default())
        } else {
            package.to_owned()
        };
        let mut command = npm(cache_dir, cache_dir)?;
        command.args(["view", "--json", &question, "version"]);
        let answer = run("npm", "npm", &mut command)?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        // One version as text, or all that fit the question.
        let versions = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
        let newest = versions.iter().filter_map(Value::as_str).max_by_key(|version| numbers(version));
        if let Some(newest) = newest
            && numbers(newest) > numbers(pinned)
        {
            found.push(Outdated { package: package.to_owned(), pinned: pinned.to_owned(), newest: newest.to_owned() });
        }
    }
    Ok(found)
}

/// Name and version in the registry of a dependency, which may be an alias: `npm:NAME@VERSION`.
fn registry_name<'a>(name: &'a str, wanted: &'a str) -> (&'a str, &'a str) {
    match wanted.strip_prefix("npm:").and_then(|alias| alias.rsplit_once('@')) {
        Some(found) => found,
        None => (name, wanted),
    }
}

/// The three numbers of a version, without what follows a hyphen.
fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    plain.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// First line of `strip --version`, or `None` if binutils is not installed.
pub(super) fn strip_version() -> Option<String> {
    let output = Command::new("strip").arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned))?
}

/// Node itself, without its symbol table if `strip` is there.
pub(super) fn node_tree(modules: &Modules, skeleton: &Tree, strip: bool) -> Result<Tree, BuildError> {
    let mut binary = modules.path(NODE_PACKAGE).join("bin/node");
    if strip {
        let stripped = modules.folder.join("node.stripped");
        run("strip", "binutils", Command::new("strip").arg("-o").arg(&stripped).arg(&binary))?;
        binary = stripped;
    }
    let mut tree = Tree::above(skeleton);
    tree.insert("/usr/local/bin/node", Node::File { mode: 0o755, source: Source::File(binary) })?;
    Ok(tree)
}

/// Takes the files that the manifest names.
pub(super) fn copy_into(tree: &mut Tree, copies: &[Copy], modules: &Modules) -> Result<(), BuildError> {
    for copy in copies {
        let bad = |reason: &str| BuildError::Path { path: copy.from.clone(), reason: reason.to_owned() };
        if Path::new(&copy.from).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(bad("must be a plain path below node_modules"));
        }
        let from = modules.path(&copy.from);
        if from.is_dir() {
            copy_folder(tree, copy, &from)?;
        } else if from.is_file() {
            let node = match &copy.shebang {
                Some(shebang) => with_shebang(&from, shebang)?,
                None => {
                    use std::os::unix::fs::PermissionsExt;
                    let mode = from.metadata().map_err(|e| BuildError::io(&from, e))?.permissions().mode();
                    let mode = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
                    Node::File { mode, source: Source::File(from) }
                }
            };
            tree.insert(&copy.to, node)?;
        } else {
            return Err(bad("the packages have no such file or folder"));
        }
    }
    Ok(())
}

fn copy_folder(tree: &mut Tree, copy: &Copy, from: &Path) -> Result<(), BuildError> {
    let reachable = copy.reachable_from.as_deref().map(|start| reachable(from, start)).transpose()?;
    let mut unused: BTreeSet<&String> = copy.only.iter().collect();
    for file in files_below(from)? {
        let top_script = file.relative.ends_with(".js") && !file.relative.contains('/');
        match &reachable {
            Some(reachable) if top_script => {
                if !reachable.contains(&file.relative) {
                    continue;
                }
            }
            _ => {
                let found = copy.only.iter().find(|pattern| glob(pattern, &file.relative));
                if let Some(pattern) = found {
                    unused.remove(pattern);
                } else if !copy.only.is_empty() {
                    continue;
                }
            }
        }
        let start = copy.reachable_from.as_deref() == Some(file.relative.as_str());
        let node = match &copy.shebang {
            Some(shebang) if start => with_shebang(&file.path, shebang)?,
            _ => file.node(),
        };
        tree.insert(&format!("{}/{}", copy.to, file.relative), node)?;
    }
    match unused.first() {
        None => Ok(()),
        Some(pattern) => Err(BuildError::Path {
            path: format!("{}/{pattern}", copy.from),
            reason: "no file of the packages matches".to_owned(),
        }),
    }
}

/// The scripts at the top of `folder` that `start` needs: those it names as `"./NAME.js"`, and what they name.
fn reachable(folder: &Path, start: &str) -> Result<BTreeSet<String>, BuildError> {
    let mut found = BTreeSet::from([start.to_owned()]);
    let mut open = vec![start.to_owned()];
    while let Some(name) = open.pop() {
        let path = folder.join(&name);
        let text = fs::read(&path).map_err(|e| BuildError::io(&path, e))?;
        for target in references(&String::from_utf8_lossy(&text)) {
            if !found.contains(target) && folder.join(target).is_file() {
                found.insert(target.to_owned());
                open.push(target.to_owned());
            }
        }
    }
    Ok(found)
}

/// Names in quoted `./NAME.js` strings, wherever they are: an import that is only made later counts too.
fn references(text: &str) -> impl Iterator<Item = &str> {
    ["\"./", "'./", "`./"].into_iter().flat_map(move |opening| {
        text.match_indices(opening).filter_map(move |(at, _)| {
            let rest = &text[at + opening.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))?;
            (rest[end..].starts_with(&opening[..1]) && rest[..end].ends_with(".js")).then_some(&rest[..end])
        })
    })
}

fn with_shebang(path: &Path, shebang: &str) -> Result<Node, BuildError> {
    let bytes = fs::read(path).map_err(|e| BuildError::io(path, e))?;
    let rest = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) if bytes.starts_with(b"#!") => &bytes[end..],
        _ => {
            return Err(BuildError::Path {
                path: path.display().to_string(),
                reason: "has no #! line to replace".to_owned(),
            });
        }
    };
    let mut text = format!("#!{shebang}").into_bytes();
    text.extend_from_slice(rest);
    Ok(Node::File { mode: 0o755, source: Source::Bytes(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number_and_aliases_are_looked_through() {
        assert!(numbers("0.170.0") > numbers("0.169.0-linux-x64"));
        assert!(numbers("2.1.9") < numbers("2.1.112"));
        let alias = registry_name("@openai/codex-linux-x64", "npm:@openai/codex@0.169.0-linux-x64");
        assert_eq!(alias, ("@openai/codex", "0.169.0-linux-x64"));
        assert_eq!(registry_name("a", "1.0.0"), ("a", "1.0.0"));
    }

    #[test]
    fn references_are_found_in_any_quotes() {
        let text = r#"import "./a.js"; import('./b-2.js'); x = `./c.js`; "./d.css"; "../e.js"; "./f.js'"#;
        let found: Vec<&str> = references(text).collect();
        assert_eq!(found, ["a.js", "b-2.js", "c.js"]);
    }
}
