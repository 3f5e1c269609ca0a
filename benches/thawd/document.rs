//! docs/BENCHMARKS.md as text: which of its sections stay and which are replaced.

use std::collections::BTreeMap;

/// What one measure says: the line about its machine, and its section, which begins with `## TITLE (`ID`)`.
#[derive(Debug, Clone)]
pub struct Section {
    /// Paragraph about the machine and the peers' versions.
    pub machine: String,
    /// Markdown.
    pub text: String,
}

/// What a paragraph about a machine begins with.
const MACHINE: &str = "Machine: ";

/// The document: below `introduction`, in this `order`, what the measures in `fresh` have just found. Every other section
/// stays as it is in `old`, and the machines that it may be about stay named: a measure that was not run, or gave no
/// result, takes nothing away. Where `old` has no section, the one in `spare`, an earlier run's, takes the place.
/// `appendix` follows the section of the measure that it names.
pub fn compose(
    introduction: &str,
    order: &[&str],
    old: &str,
    fresh: &BTreeMap<String, Section>,
    spare: &BTreeMap<String, Section>,
    appendix: (&str, &str),
) -> String {
    let kept = sections(old, order);
    let mut machines = Vec::new();
    let mut texts = Vec::new();
    for id in order {
        let (text, new) = match (fresh.get(*id), kept.get(id), spare.get(*id)) {
            (Some(new), ..) | (None, None, Some(new)) => (new.text.as_str(), Some(&new.machine)),
            (None, Some(kept), _) => (*kept, None),
            (None, None, None) => continue,
        };
        match new {
            Some(machine) => machines.push(machine.as_str()),
            // The document does not say which one this section is about.
            None => machines.extend(old.lines().filter(|line| line.starts_with(MACHINE))),
        }
        texts.push(text.trim());
        texts.extend((appendix.0 == *id).then(|| appendix.1.trim()));
    }
    let mut seen = Vec::new();
    machines.retain(|machine| {
        !seen.contains(machine) && {
            seen.push(*machine);
            true
        }
    });
    let parts: Vec<&str> = std::iter::once(introduction.trim()).chain(machines).chain(texts).collect();
    parts.join("\n\n") + "\n"
}

/// The sections of a document, by the id in their heading. What stands below a heading without one is not theirs.
fn sections<'a>(document: &'a str, order: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(document.match_indices("\n## ").map(|(at, _)| at + 1))
        .chain([document.len()])
        .collect();
    let texts = starts.windows(2).map(|ends| &document[ends[0]..ends[1]]);
    texts
        .filter_map(|text| {
            let heading = text.lines().next()?.strip_prefix("## ")?;
            let id = order.iter().find(|id| heading.ends_with(&format!(" (`{id}`)")))?;
            Some((*id, text))
        })
        .collect()
}
