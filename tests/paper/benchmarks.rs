//! `docs/BENCHMARKS.md` as `make bench` writes it: what was not measured again stays.

use std::collections::BTreeMap;

use crate::pages::read;

#[path = "../../benches/thawd/document.rs"]
mod document;

use document::{Section, compose};

const ORDER: [&str; 3] = ["claim", "cold", "many"];
const APPENDIX: (&str, &str) = ("cold", "## Beside it\n\nRead once.\n");
const INTRODUCTION: &str = "# Benchmarks\n\nWritten by `make bench`.\n";

fn section(id: &str, text: &str, machine: &str) -> (String, Section) {
    let text = format!("## About {id} (`{id}`)\n\n{text}\n");
    (id.to_owned(), Section { machine: format!("Machine: {machine}."), text })
}

fn document(old: &str, fresh: &[(&str, &str)], spare: &[(&str, &str)]) -> String {
    let sections = |of: &[(&str, &str)], machine: &str| {
        of.iter().map(|(id, text)| section(id, text, machine)).collect::<BTreeMap<_, _>>()
    };
    compose(INTRODUCTION, &ORDER, old, &sections(fresh, "new"), &sections(spare, "spare"), APPENDIX)
}

#[test]
fn a_section_stays_until_its_measure_gives_a_new_one() {
    let first = document("", &[("claim", "1 ms"), ("cold", "5 ms"), ("many", "200")], &[]);
    assert_eq!(
        first,
        "# Benchmarks\n\nWritten by `make bench`.\n\nMachine: new.\n\n## About claim (`claim`)\n\n1 ms\n\n\
         ## About cold (`cold`)\n\n5 ms\n\n## Beside it\n\nRead once.\n\n## About many (`many`)\n\n200\n"
    );
    assert_eq!(document(&first, &[], &[]), first, "nothing was measured");
    let one = document(&first, &[("claim", "2 ms")], &[]);
    assert_eq!(one, first.replace("1 ms", "2 ms"), "`many`, and what stands beside `cold`, are not lost");
    // Results of an earlier run that lie about do not replace what stands in the document.
    assert_eq!(document(&first, &[], &[("many", "1"), ("claim", "9 ms")]), first);
    let without_many = document("", &[("claim", "1 ms")], &[]);
    assert!(document(&without_many, &[], &[("many", "1")]).contains("## About many (`many`)\n\n1\n"));
}

#[test]
fn machines_are_named_as_long_as_a_section_may_be_theirs() {
    let old = document("", &[("claim", "1 ms"), ("many", "200")], &[]).replace("new", "old");
    let both = document(&old, &[("claim", "2 ms")], &[]);
    assert!(both.contains("Machine: new.\n\nMachine: old.\n"), "{both}");
    let new = document(&both, &[("claim", "3 ms"), ("many", "300")], &[]);
    assert!(new.contains("Machine: new.") && !new.contains("old"), "{new}");
}

#[test]
fn the_document_that_there_is_loses_nothing() {
    let page = read("docs/BENCHMARKS.md");
    let order: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("## ")?.strip_suffix("`)")?.rsplit('`').next()).collect();
    assert!(order.len() > 5, "{order:?}");
    let introduction = page.split("\n\nMachine: ").next().unwrap();
    let profile = read("benches/thawd/cold_profile.md");
    let again = compose(introduction, &order, &page, &BTreeMap::new(), &BTreeMap::new(), ("cold", &profile));
    let lines = |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let missing: Vec<_> = lines(&page).into_iter().filter(|line| !again.contains(line)).collect();
    assert!(missing.is_empty() && lines(&again) == lines(&page), "lost: {missing:?}");
}
