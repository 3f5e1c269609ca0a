//! Which room imports which. ARCHITECTURE.md has the table; here the sources are read and compared with it.
//!
//! Two rules: a room imports only what its row allows, all of which stands below it; and no two files import each other,
//! directly or in a circle. A room's front page (`mod.rs`, `lib.rs`) names its files and is no part of a circle. Tests
//! beside the code may look anywhere.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Package name and folder of its sources.
const PACKAGES: [(&str, &str); 8] = [
    ("thawd", "src"),
    ("thaw-image", "crates/thaw-image/src"),
    ("thaw-os", "crates/thaw-os/src"),
    ("thaw-wire", "crates/thaw-wire/src"),
    ("thaw-init", "crates/thaw-init/src"),
    ("thaw-client", "crates/thaw-client/src"),
    ("thawctl", "crates/thawctl/src"),
    ("thaw-unified", "crates/thaw-unified/src"),
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A module path, such as `["egress", "proxy"]`; empty for the crate itself.
type Module = Vec<String>;

/// One source file, and every path in it outside of its tests.
struct Source {
    module: Module,
    is_front_page: bool,
    paths: Vec<Vec<String>>,
}

/// Collects paths, those of `use` trees included, without what is compiled for tests only.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Meta>().is_ok_and(|meta| meta.path().is_ident("test"))
    })
}

impl Paths {
    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.0.push(with(&name.ident)),
            syn::UseTree::Rename(rename) => self.0.push(with(&rename.ident)),
            syn::UseTree::Glob(_) => self.0.push(before.to_vec()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All sources of a package, without its programs and its modules of tests.
fn sources(folder: &str) -> Vec<Source> {
    let root = repository().join(folder);
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut sources = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Module = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.iter().any(|part| part == "tests") {
            continue;
        }
        let is_front_page = matches!(module.last().unwrap().as_str(), "mod" | "lib" | "main");
        if is_front_page {
            module.pop();
        }
        let mut paths = Paths::default();
        paths.visit_file(&syn::parse_file(&fs::read_to_string(&file).unwrap()).unwrap());
        // A file with a folder of the same name is that folder's front page.
        let is_front_page = is_front_page || file.with_extension("").is_dir();
        sources.push(Source { module, is_front_page, paths: paths.0 });
    }
    sources
}

/// The path as seen from the crate; nothing if it leads elsewhere.
fn absolute(source: &Source, path: &[String]) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([&source.module, rest].concat()),
        "super" => {
            let (supers, rest): (Vec<_>, Vec<_>) = path.iter().partition(|part| *part == "super");
            let above = source.module.len().checked_sub(supers.len())?;
            Some([&source.module[..above], &rest.into_iter().cloned().collect::<Vec<_>>()].concat())
        }
        _ => None,
    }
}

/// The rows of the table behind the heading, as cells without backquotes.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, after) = page.split_once(heading).unwrap_or_else(|| panic!("ARCHITECTURE.md has no heading {heading:?}"));
    let rows = after.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2)
        .map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

/// Rooms from the top to the ground, each with what it may import.
fn allowed() -> Vec<(String, BTreeSet<String>)> {
    let words = |cell: &str| {
        cell.split([',', ' ']).filter(|word| !word.is_empty() && *word != "-").map(str::to_owned).collect()
    };
    table("## Rooms").into_iter().map(|row| (row[0].clone(), words(&row[2]))).collect()
}

/// Room of a module of `thawd`: the first part of its path; of another package, the package.
fn imported_rooms(package: &str, source: &Source) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for path in &source.paths {
        if let Some(path) = absolute(source, path) {
            if package == "thawd" {
                rooms.extend(path.first().cloned());
            }
        } else if let Some(first) = path.first() {
            let name = first.replace('_', "-");
            if PACKAGES.iter().any(|(package, _)| *package == name) || (package == "thawd" && name == "thawd") {
                rooms.insert(name);
            }
        }
    }
    rooms
}

#[test]
fn every_room_imports_only_what_its_row_allows() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    let mut unused: BTreeMap<&str, BTreeSet<String>> =
        allowed.iter().map(|(room, may)| (room.as_str(), may.clone())).collect();
    for (package, folder) in PACKAGES {
        for source in sources(folder) {
            let room = match (package, source.module.first()) {
                ("thawd", None) => continue,
                ("thawd", Some(room)) if room == "bin" => continue,
                ("thawd", Some(room)) => room.as_str(),
                _ => package,
            };
            let Some((_, may)) = allowed.iter().find(|(name, _)| name == room) else {
                wrong.push(format!("`{room}` has no row"));
                continue;
            };
            let rooms: BTreeSet<String> = allowed.iter().map(|(name, _)| name.clone()).collect();
            for target in imported_rooms(package, &source) {
                if target == room || !rooms.contains(&target) {
                    continue;
                }
                if !may.contains(&target) {
                    wrong.push(format!("{folder}/{}: `{room}` may not import `{target}`", source.module.join("/")));
                }
                unused.get_mut(room).unwrap().remove(&target);
            }
        }
    }
    wrong.extend(
        unused
            .iter()
            .filter(|(_, left)| !left.is_empty())
            .map(|(room, left)| format!("`{room}` does not import {left:?} any more: take it out of its row")),
    );
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "see the table of rooms in ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_allows_nothing_upwards() {
    let allowed = allowed();
    assert!(allowed.len() > 15, "{allowed:?}");
    for (index, (room, may)) in allowed.iter().enumerate() {
        for target in may {
            let below = allowed.iter().position(|(name, _)| name == target);
            assert!(below.is_some_and(|below| below > index), "`{target}` does not stand below `{room}`");
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for (package, folder) in PACKAGES {
        let sources = sources(folder);
        let files: BTreeSet<&Module> = sources.iter().filter(|one| !one.is_front_page).map(|one| &one.module).collect();
        let mut arrows: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for source in sources.iter().filter(|source| !source.is_front_page) {
            for path in source.paths.iter().filter_map(|path| absolute(source, path)) {
                // The deepest file that the path leads to.
                let target = (1..=path.len()).rev().find_map(|length| files.get(&path[..length].to_vec()).copied());
                if let Some(target) = target.filter(|target| **target != source.module) {
                    arrows.entry(&source.module).or_default().insert(target);
                }
            }
        }
        for start in &files {
            if let Some(circle) = way_back(start, &arrows) {
                circles.push(format!(
                    "{package}: {}",
                    circle.iter().map(|file| file.join("/")).collect::<Vec<_>>().join(" -> ")
                ));
            }
        }
    }
    assert!(circles.is_empty(), "put what they share into a file of its own:\n{}", circles.join("\n"));
}

/// The shortest way from a file back to itself.
fn way_back<'a>(start: &'a Module, arrows: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> Option<Vec<&'a Module>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in arrows.get(way.last()?).into_iter().flatten() {
                if *next == start {
                    return Some([way, vec![start]].concat());
                }
                if seen.insert(*next) {
                    longer.push([way.clone(), vec![*next]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}
