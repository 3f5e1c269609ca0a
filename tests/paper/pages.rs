//! Tables of the pages in `docs/`, and the tests and benchmarks that they name.

use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The pages that name tests.
pub const PAGES: [&str; 3] = ["docs/SPECIFICATION.md", "docs/SECURITY.md", "docs/LIMITS.md"];

/// A file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether the repository has it.
fn exists(path: &str) -> bool {
    Path::new(ROOT).join(path).exists()
}

/// The rows of all tables with `columns` columns, without their headings.
pub fn rows(page: &str, columns: usize) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Option<Vec<String>> {
        let inner = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split(" | ").map(|cell| cell.trim().to_owned()).collect())
    };
    let lines: Vec<&str> = page.lines().collect();
    let mut rows = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(row) = cells(line) else { continue };
        let is_rule = |line: &str| line.starts_with("|-") || line.starts_with("| -");
        let is_heading = lines.get(number + 1).is_some_and(|next| is_rule(next));
        if row.len() == columns && !is_heading && !is_rule(line) {
            rows.push(row);
        }
    }
    rows
}

/// What stands in backticks.
pub fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What is wrong with a reference of the form `path/to/file.rs::name`, where `name` is a test.
fn problem(reference: &str) -> Option<String> {
    let (path, name) = reference.split_once("::")?;
    if !exists(path) {
        return Some(format!("there is no {path}"));
    }
    let text = read(path);
    let lines: Vec<&str> = text.lines().collect();
    let declared = format!("fn {name}(");
    let Some(line) = lines.iter().position(|line| line.contains(&declared)) else {
        return Some(format!("{path} has no {name}"));
    };
    let mut attributes = lines[..line].iter().rev().take_while(|line| line.trim_start().starts_with("#["));
    let is_test = |line: &&str| line.contains("#[test]") || line.contains("#[tokio::test");
    (!attributes.any(is_test)).then(|| format!("{name} in {path} is no test"))
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let mut named = 0;
    let mut problems = Vec::new();
    for page in PAGES {
        for reference in quoted(&read(page)) {
            let is_file = |prefix: &str| reference.starts_with(prefix) && !reference.contains([' ', '*', '{']);
            if reference.contains(".rs::") {
                named += 1;
                problems.extend(problem(reference).map(|problem| format!("{page}: {problem}")));
            } else if ["tests/", "docs/", "benches/", "src/", "systemd/", "fuzz/", "images/"].iter().any(|p| is_file(p))
                && !exists(reference)
            {
                problems.push(format!("{page}: there is no {reference}"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(named > 100, "{named}");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages: Vec<String> = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    for entry in Path::new(ROOT).join("docs").read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let folder = Path::new(ROOT).join(&page).parent().unwrap().to_owned();
        for target in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            let elsewhere = target.contains("://") || file.is_empty();
            assert!(elsewhere || folder.join(file).exists(), "{page}: {target} leads nowhere");
        }
    }
}
