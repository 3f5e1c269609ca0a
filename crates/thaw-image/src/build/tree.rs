//! Files of one layer before they are written: sorted, with numeric owners, without times.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::BuildError;

/// Source of a file's bytes.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Directory { mode: u32, owner: u32 },
    File { mode: u32, source: Source },
    Symlink { target: String },
}

/// Entries by path (without the leading slash); a parent sorts before its children.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    /// Entries below this layer: they give parents their mode and owner, and show where links are.
    below: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty layer above `skeleton`.
    pub(super) fn above(skeleton: &Tree) -> Self {
        Tree { nodes: BTreeMap::new(), below: skeleton.nodes.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter()
    }

    /// Adds (or replaces) the entry at the absolute path `path`, and the directories above it.
    pub(super) fn insert(&mut self, path: &str, node: Node) -> Result<(), BuildError> {
        let key = relative(path)?;
        for (end, _) in key.match_indices('/') {
            let parent = &key[..end];
            match self.nodes.get(parent).or_else(|| self.below.get(parent)) {
                Some(Node::Directory { .. }) | None => {}
                Some(Node::Symlink { target }) => {
                    return Err(BuildError::Path {
                        path: path.to_owned(),
                        reason: format!("/{parent} is a link to {target}: name the place it leads to"),
                    });
                }
                Some(Node::File { .. }) => {
                    return Err(BuildError::Path { path: path.to_owned(), reason: format!("/{parent} is a file") });
                }
            }
            let like = self.below.get(parent).cloned().unwrap_or(Node::Directory { mode: 0o755, owner: 0 });
            self.nodes.entry(parent.to_owned()).or_insert(like);
        }
        self.nodes.insert(key.to_owned(), node);
        Ok(())
    }

    /// Adds every file below `from` (a folder on this machine) under the absolute path `to`. Only the executable
    /// bit of a file's mode is kept, so that the umask of a checkout makes no difference.
    pub(super) fn insert_folder(&mut self, from: &Path, to: &str) -> Result<(), BuildError> {
        for file in files_below(from)? {
            let path = format!("{}/{}", to.trim_end_matches('/'), file.relative);
            self.insert(&path, file.node())?;
        }
        Ok(())
    }

    /// Sum of the sizes of its files, bytes.
    pub(super) fn bytes(&self) -> Result<u64, BuildError> {
        let mut total = 0;
        for node in self.nodes.values() {
            total += match node {
                Node::File { source: Source::Bytes(bytes), .. } => bytes.len() as u64,
                Node::File { source: Source::File(path), .. } => {
                    path.metadata().map_err(|e| BuildError::io(path, e))?.len()
                }
                _ => 0,
            };
        }
        Ok(total)
    }
}

/// Checks an absolute path of a manifest and returns it without the leading slash.
fn relative(path: &str) -> Result<&str, BuildError> {
    let bad = |reason: &str| BuildError::Path { path: path.to_owned(), reason: reason.to_owned() };
    let key = path.strip_prefix('/').ok_or_else(|| bad("must be absolute"))?;
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) || key.contains('\0') {
        return Err(bad("must not have empty, `.` or `..` parts"));
    }
    if key.split('/').any(|part| part.starts_with(".wh.")) {
        return Err(bad("names that start with `.wh.` mean a deletion in a layer"));
    }
    Ok(key)
}

/// A file or link found by [`files_below`].
pub(super) struct Found {
    /// Path below the folder.
    pub(super) relative: String,
    pub(super) path: PathBuf,
    pub(super) executable: bool,
    pub(super) link: Option<String>,
}

impl Found {
    pub(super) fn node(&self) -> Node {
        match &self.link {
            Some(target) => Node::Symlink { target: target.clone() },
            None => Node::File {
                mode: if self.executable { 0o755 } else { 0o644 },
                source: Source::File(self.path.clone()),
            },
        }
    }
}

/// Every file and link below `folder`, sorted by path. Empty when the folder does not exist.
pub(super) fn files_below(folder: &Path) -> Result<Vec<Found>, BuildError> {
    let mut found = Vec::new();
    if folder.is_dir() {
        walk(folder, "", &mut found)?;
    }
    found.sort_by(|a, b| a.relative.cmp(&b.relative));
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<Found>) -> Result<(), BuildError> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |e| BuildError::io(folder, e);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(BuildError::Path {
                path: path.display().to_string(),
                reason: "file names must be UTF-8".to_owned(),
            });
        };
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let metadata = entry.metadata().map_err(fail)?;
        if metadata.is_dir() {
            walk(&path, &relative, found)?;
            continue;
        }
        let link = if metadata.is_symlink() {
            Some(std::fs::read_link(&path).map_err(fail)?.to_string_lossy().into_owned())
        } else {
            None
        };
        found.push(Found { relative, executable: metadata.permissions().mode() & 0o111 != 0, link, path });
    }
    Ok(())
}
