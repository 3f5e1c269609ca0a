//! The lowest layer: a skeleton that all bases share, and programs of this machine.

use std::fs;
use std::path::Path;

use super::BuildError;
use super::recipe::{BaseRecipe, Host, SkeletonRecipe, mode};
use super::tree::{Node, Source, Tree};

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

/// Directories, links, busybox's applets as far as the base has them, and the files of `rootfs/files`.
pub(super) fn skeleton(recipe: &SkeletonRecipe, base: &BaseRecipe, rootfs: &Path) -> Result<Tree, BuildError> {
    if let Some(unknown) = base.without_applets.iter().find(|applet| !recipe.busybox.applets.contains(applet)) {
        return Err(BuildError::Recipe {
            path: rootfs.join("skeleton.toml"),
            reason: format!("has no applet {unknown:?}, which a base does without"),
        });
    }
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
    let has = |applet: &&String| base.busybox && !base.without_applets.contains(applet);
    for applet in recipe.busybox.applets.iter().filter(has) {
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
