//! Sizes and times with their unit: `"100 MiB"` where a key counts bytes, `"10 m"` where it counts seconds or milliseconds.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value that is text and should be a number with a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongUnit {
    /// Which key.
    pub(super) key: String,
    /// What is wrong with it.
    pub(super) problem: String,
}

/// The text of a configuration with plain numbers in the place of those with units. Lines stay where they are.
///
/// # Errors
/// The first value that has no unit of its key's kind. Text that is no TOML comes back as it is: its parser says why.
pub(super) fn in_numbers(text: &str) -> Result<String, WrongUnit> {
    let Ok(table) = DeTable::parse(text) else { return Ok(text.to_owned()) };
    let mut numbers = Vec::new();
    collect("", table.get_ref(), &mut numbers)?;
    numbers.sort_by_key(|(range, _): &(std::ops::Range<usize>, u64)| std::cmp::Reverse(range.start));
    let mut text = text.to_owned();
    for (range, number) in numbers {
        text.replace_range(range, &number.to_string());
    }
    Ok(text)
}

/// The line of a key such as `pool.target`, from 1 on; that of its section, or of what that is in, when it is not there.
pub(super) fn line(text: &str, key: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut table = table.get_ref();
    let mut found = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        found = Some(name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found.map(|at| text[..at].matches('\n').count() + 1)
}

type Numbers = Vec<(std::ops::Range<usize>, u64)>;

fn collect(prefix: &str, table: &DeTable<'_>, numbers: &mut Numbers) -> Result<(), WrongUnit> {
    for (name, value) in table {
        let name = name.get_ref();
        let key = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        match value.get_ref() {
            DeValue::Table(inner) => collect(&key, inner, numbers)?,
            DeValue::String(text) => {
                if let Some(number) = number(name, text) {
                    let number = number.map_err(|problem| WrongUnit { key, problem })?;
                    numbers.push((Spanned::span(value), number));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What a text stands for where a key counts something that has units; nothing where it does not.
fn number(name: &str, text: &str) -> Option<Result<u64, String>> {
    let wrong = |what: &str| Err(format!("is {text:?}, which is no {what}"));
    if name.ends_with("_bytes") {
        let size = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
        return Some(size.or_else(|_| wrong("size such as \"100 MiB\"")));
    }
    let per_second = match name {
        _ if name.ends_with("_ms") => 1000,
        _ if name.ends_with("_seconds") => 1,
        _ => return None,
    };
    let Ok(time) = humantime::parse_duration(text) else { return Some(wrong("time such as \"10 m\" or \"1 h 30 m\"")) };
    let number = u64::try_from(time.as_millis()).unwrap_or(u64::MAX) / (1000 / per_second);
    // Half a second is not nothing.
    let is_exact = u128::from(number) * u128::from(1000 / per_second) * 1_000_000 == time.as_nanos();
    Some(if is_exact {
        Ok(number)
    } else {
        Err(format!("is {text:?}, but counts whole {}", if per_second == 1 { "seconds" } else { "milliseconds" }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_become_numbers_and_lines_stay() {
        let text = "[a]\n# of \"1 m\"\nb_bytes = \"100 MiB\"\nc_seconds = '1 h 30 m'\nd_ms = \"2 s\"\nname = \"10 m\"\ne_ms = 7\n";
        let expected =
            "[a]\n# of \"1 m\"\nb_bytes = 104857600\nc_seconds = 5400\nd_ms = 2000\nname = \"10 m\"\ne_ms = 7\n";
        assert_eq!(in_numbers(text).unwrap(), expected);
        assert_eq!(in_numbers("a.b.c_ms = \"1s\"").unwrap(), "a.b.c_ms = 1000");
        assert_eq!(in_numbers("no toml").unwrap(), "no toml");
    }

    #[test]
    fn what_has_no_unit_of_its_kind_is_named() {
        for (text, key, word) in [
            ("[a]\nb_bytes = \"much\"", "a.b_bytes", "100 MiB"),
            ("[a]\nb_ms = \"10 MiB\"", "a.b_ms", "10 m"),
            ("b_seconds = \"500 ms\"", "b_seconds", "whole seconds"),
            ("b_seconds = \"\"", "b_seconds", "10 m"),
        ] {
            let wrong = in_numbers(text).unwrap_err();
            assert!(wrong.key == key && wrong.problem.contains(word), "{wrong:?}");
        }
    }

    #[test]
    fn keys_have_lines() {
        let text = "x = 1\n\n[a]\ny = 2\n[a.b]\nz = 3\n";
        assert_eq!([line(text, "x"), line(text, "a.y"), line(text, "a.b.z")], [Some(1), Some(4), Some(6)]);
        assert_eq!([line(text, "a.missing"), line(text, "missing")], [Some(3), None]);
    }
}
