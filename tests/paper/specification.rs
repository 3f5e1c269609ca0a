//! `docs/SPECIFICATION.md`: what it promises has been measured, and everything that was measured is promised or said not
//! to be.

use std::collections::BTreeMap;

use crate::pages::{quoted, read, rows};

/// A line of a benchmark with a goal: the goal, and whether it was met.
struct Measured {
    goal: String,
    met: bool,
}

/// By measure and name, from what `make bench` wrote.
fn measured() -> BTreeMap<(String, String), Measured> {
    let page = read("docs/BENCHMARKS.md");
    let mut all = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        // A section without a measure in its heading explains another one.
        let Some(measure) = quoted(section.lines().next().unwrap()).first().map(|name| (*name).to_owned()) else {
            continue;
        };
        for row in rows(section, 4).into_iter().filter(|row| !row[2].is_empty()) {
            let met = match row[3].trim_end_matches('|').trim() {
                "met" => true,
                "missed" => false,
                other => panic!("{measure}: {other:?} in {row:?}"),
            };
            all.insert((measure.clone(), row[0].clone()), Measured { goal: row[2].clone(), met });
        }
    }
    all
}

#[test]
fn promises_of_speed_have_been_measured_and_met() {
    let mut measured = measured();
    assert!(measured.len() > 20, "{}", measured.len());
    let page = read("docs/SPECIFICATION.md");
    let (promises, goals) = page.split_once("## Goals, not promises").unwrap();
    for row in rows(promises, 4) {
        let [promise, goal, measure, name] = &row[..] else { unreachable!() };
        let key = (quoted(measure)[0].to_owned(), name.clone());
        let found = measured.remove(&key).unwrap_or_else(|| panic!("{promise}: no row {key:?} in BENCHMARKS.md"));
        assert_eq!(goal, &found.goal, "{promise}");
        assert!(found.met, "{promise}: missed in BENCHMARKS.md, so it is a goal and no promise");
    }
    for row in rows(goals, 3) {
        let [goal, measure, name] = &row[..] else { unreachable!() };
        let key = (quoted(measure)[0].to_owned(), name.clone());
        let found = measured.remove(&key).unwrap_or_else(|| panic!("no row {key:?} in BENCHMARKS.md"));
        assert_eq!(goal, &found.goal, "{key:?}");
    }
    let left: Vec<_> = measured.keys().collect();
    assert!(left.is_empty(), "goals of BENCHMARKS.md that SPECIFICATION.md does not mention: {left:?}");
}

#[test]
fn every_promise_names_its_test() {
    let page = read("docs/SPECIFICATION.md");
    let promises = page.split_once("## Measured by").unwrap().0;
    let rows = rows(promises, 3);
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let proofs = quoted(&row[2]);
        let is_proof = |proof: &&str| proof.contains("::") || proof.starts_with("tests/systemd/scenarios/");
        assert!(!row[1].is_empty() && !proofs.is_empty() && proofs.iter().all(is_proof), "{row:?}");
    }
}

/// Numbers that the page repeats from the tests that keep them.
#[test]
fn numbers_are_those_that_the_tests_assert() {
    let page = read("docs/SPECIFICATION.md");
    for (said, file, asserted) in [
        ("< 4 MiB", "tests/container.rs", "memory_bytes < 4 * MIB"),
        ("0 µs in 10 s", "tests/container.rs", "if in_bed() { 3 } else { 10 }"),
        ("< 12 MiB", "tests/execution/raw.rs", "grown < 12 << 20"),
        ("< 24 MiB", "tests/leaks.rs", "grown < 24 << 20"),
        (
            "≤ 330, 420, 160 MB",
            "tests/image_build.rs",
            r#"[("openai-slim", 330), ("anthropic-slim", 420), ("google-slim", 160)]"#,
        ),
        ("< 5 MB", "tests/unified.rs", "report.unpacked_bytes() < 5_000_000"),
        ("7 of 7", "tests/systemd/scenarios/40-restart", "for _ in 1 2 3 4 5 6 7; do"),
    ] {
        assert!(page.contains(&format!("| {said} |")), "the page does not say {said}");
        assert!(read(file).contains(asserted), "{file} does not assert {asserted}");
    }
}
