//! The lowest layer: a skeleton that all bases share, and programs and libraries from Debian or this machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use tar::EntryType;

use super::recipe::{Debian, Host, SkeletonRecipe, glob, mode};
use super::tree::{Node, Source, Tree};
use super::{BuildError, BuildOptions, run};
use crate::image::digest::{InputHash, hex};
use crate::image::progress::Progress;

/// The user that commands run as.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
}

/// Looks `name` up in `rootfs/files/etc/passwd`.
pub(super) fn user(name: &str, rootfs: &Path) -> Result<User, BuildError> {
    let path = rootfs.join("files/etc/passwd");
    let text = fs::read_to_string(&path).map_err(|e| BuildError::io(&path, e))?;
    text.lines()
        .find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [found, _, uid, gid, _, home, _] = fields[..] else { return None };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            (found == name).then(|| User { name: name.to_owned(), uid, gid, home: home.to_owned() })
        })
        .ok_or_else(|| BuildError::Recipe { path, reason: format!("has no user {name:?}") })
}

/// Directories, links, busybox's applets if there is `busybox`, and the files of `rootfs/files`.
pub(super) fn skeleton(recipe: &SkeletonRecipe, busybox: bool, rootfs: &Path) -> Result<Tree, BuildError> {
    let mut tree = Tree::default();
    for directory in &recipe.directory {
        let mode = mode(&directory.mode).ok_or_else(|| BuildError::Recipe {
            path: rootfs.join("skeleton.toml"),
            reason: format!("{}: mode {:?} is not octal between 0 and 1777", directory.path, directory.mode),
        })?;
        tree.insert(&directory.path, Node::Directory { mode, owner: directory.owner })?;
    }
    for (path, target) in &recipe.links {
        tree.insert(path, Node::Symlink { target: target.clone() })?;
    }
    let (folder, program) = recipe.busybox.path.rsplit_once('/').unwrap_or(("", &recipe.busybox.path));
    for applet in recipe.busybox.applets.iter().filter(|_| busybox) {
        tree.insert(&format!("{folder}/{applet}"), Node::Symlink { target: program.to_owned() })?;
    }
    tree.insert_folder(&rootfs.join("files"), "/")?;
    Ok(tree)
}

/// Adds files of this machine.
pub(super) fn host(recipe: &Host, mut tree: Tree) -> Result<Tree, BuildError> {
    for (path, file) in &recipe.files {
        let source = fs::read(&file.from).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                BuildError::Missing { what: file.from.clone(), package: file.package.clone() }
            }
            _ => BuildError::io(Path::new(&file.from), error),
        })?;
        tree.insert(path, Node::File { mode: 0o755, source: Source::Bytes(source) })?;
    }
    Ok(tree)
}

/// Fetches the packages (once: the unpacked set is cached) and adds the files that the recipe keeps.
pub(super) fn debian(
    recipe: &Debian,
    mut tree: Tree,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Tree, BuildError> {
    let archive = fetch(recipe, options, progress)?;
    let fail = |e| BuildError::io(&archive, e);
    let mut unused: Vec<&String> = recipe.keep.iter().collect();
    let mut parts: Vec<BTreeMap<String, Vec<u8>>> = vec![BTreeMap::new(); recipe.concatenate.len()];
    let mut reader = tar::Archive::new(File::open(&archive).map_err(fail)?);
    for entry in reader.entries().map_err(fail)? {
        let mut entry = entry.map_err(fail)?;
        let name = entry.path().map_err(fail)?.to_string_lossy().into_owned();
        let path = format!("/{}", name.trim_start_matches("./").trim_end_matches('/'));
        let keep = recipe.keep.iter().find(|pattern| glob(pattern, &path));
        let part = recipe.concatenate.iter().position(|c| glob(&c.from, &path));
        if keep.is_none() && part.is_none() {
            continue;
        }
        let header = entry.header().clone();
        let link = entry.link_name().map_err(fail)?.map(|target| target.to_string_lossy().into_owned());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(fail)?;
        if let Some(part) = part {
            parts[part].insert(path.clone(), bytes.clone());
        }
        let Some(keep) = keep else { continue };
        unused.retain(|pattern| *pattern != keep);
        let node = match (header.entry_type(), link) {
            (EntryType::Regular, _) => {
                Node::File { mode: header.mode().map_err(fail)? & 0o777, source: Source::Bytes(bytes) }
            }
            (EntryType::Symlink, Some(target)) => Node::Symlink { target },
            (EntryType::Directory, _) => continue,
            _ => return Err(BuildError::Path { path, reason: "kept, but neither file nor link".to_owned() }),
        };
        tree.insert(&path, node)?;
    }
    for (wanted, found) in recipe.concatenate.iter().zip(parts) {
        if found.is_empty() {
            unused.push(&wanted.from);
        }
        let mut bytes = Vec::new();
        for part in found.into_values() {
            bytes.extend_from_slice(&part);
            if bytes.last() != Some(&b'\n') {
                bytes.push(b'\n');
            }
        }
        tree.insert(&wanted.to, Node::File { mode: 0o644, source: Source::Bytes(bytes) })?;
    }
    match unused.first() {
        None => Ok(tree),
        Some(pattern) => Err(BuildError::Path {
            path: (*pattern).clone(),
            reason: format!("no file of the Debian packages matches ({} has them all)", archive.display()),
        }),
    }
}

/// The packages' files as one tar archive, from the cache or from the Debian archive.
fn fetch(recipe: &Debian, options: &BuildOptions, progress: &dyn Progress) -> Result<std::path::PathBuf, BuildError> {
    let mut hash = InputHash::new("debian");
    hash.add(recipe.suite.as_bytes());
    recipe.packages.iter().for_each(|package| hash.add(package.as_bytes()));
    let folder = options.cache_dir.join("debian");
    fs::create_dir_all(&folder).map_err(|e| BuildError::io(&folder, e))?;
    let archive = folder.join(format!("{}-{}.tar", recipe.suite, &hex(&hash.finish())[..16]));
    if archive.exists() {
        return Ok(archive);
    }
    progress.started(&format!("fetching Debian {}", recipe.suite), None);
    let partial = archive.with_extension("partial.tar");
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=extract", "--format=tar", "--quiet"]);
    command.arg(format!("--include={}", recipe.packages.join(",")));
    command.arg(&recipe.suite).arg(&partial).args(&options.debian_mirror);
    let result = run("mmdebstrap", "mmdebstrap", &mut command)
        .and_then(|_| fs::rename(&partial, &archive).map_err(|e| BuildError::io(&archive, e)));
    progress.finished(if result.is_ok() { "fetched, signatures checked" } else { "failed" });
    result.map(|()| archive)
}
