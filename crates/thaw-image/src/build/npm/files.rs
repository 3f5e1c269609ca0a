//! Selects the files of npm packages that go into an image.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::recipe::{Copy, NODE_PACKAGE, glob};
use super::super::tree::{Node, Source, Tree, files_below};
use super::super::{BuildError, run};
use super::pinned::Modules;

/// First line of `strip --version`, or `None` if binutils is not installed.
pub(in super::super) fn strip_version() -> Option<String> {
    let output = Command::new("strip").arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned))?
}

/// Node itself, without its symbol table if `strip` is there.
pub(in super::super) fn node_tree(modules: &Modules, skeleton: &Tree, strip: bool) -> Result<Tree, BuildError> {
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

/// Copies the files that the manifest names.
pub(in super::super) fn copy_into(tree: &mut Tree, copies: &[Copy], modules: &Modules) -> Result<(), BuildError> {
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
    fn references_are_found_in_any_quotes() {
        let text = r#"import "./a.js"; import('./b-2.js'); x = `./c.js`; "./d.css"; "../e.js"; "./f.js'"#;
        let found: Vec<&str> = references(text).collect();
        assert_eq!(found, ["a.js", "b-2.js", "c.js"]);
    }
}
