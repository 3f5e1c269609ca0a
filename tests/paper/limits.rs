//! `docs/LIMITS.md`: its numbers are those of the code.

use std::collections::{BTreeMap, BTreeSet};

use thaw_client::config::Config;
use toml::Value;

use crate::pages::{quoted, read, rows};

/// Numbers of the configuration that limit nothing.
const NO_LIMITS: [&str; 1] = ["egress.port"];

/// The limits of the page: what stands under "name" and "default".
fn limits() -> Vec<(String, String)> {
    let rows = rows(&read("docs/LIMITS.md"), 5);
    assert!(rows.len() > 80, "{}", rows.len());
    rows.into_iter()
        .map(|row| (quoted(&row[1]).first().copied().unwrap_or_default().to_owned(), row[2].clone()))
        .collect()
}

/// The number that a cell begins with; of a time, in milliseconds.
fn number(cell: &str) -> f64 {
    let mut words = cell.split([' ', ',']);
    let first = words.next().unwrap();
    let value: f64 = first.parse().unwrap_or_else(|_| panic!("{cell:?} does not begin with a number"));
    value
        * match words.next() {
            Some("min") => 60_000.0,
            Some("s") => 1_000.0,
            _ => 1.0,
        }
}

/// Every number of the default configuration, by its key.
fn configured() -> BTreeMap<String, f64> {
    let Value::Table(sections) = Value::try_from(Config::default()).unwrap() else { unreachable!() };
    let mut numbers = BTreeMap::new();
    for (section, keys) in sections {
        collect(&section, &keys, &mut numbers);
    }
    numbers
}

fn collect(section: &str, keys: &Value, numbers: &mut BTreeMap<String, f64>) {
    for (key, value) in keys.as_table().unwrap() {
        let key = format!("{section}.{key}");
        if value.is_table() {
            collect(&key, value, numbers);
        }
        let value = value.as_float().or(value.as_integer().map(|number| number as f64));
        numbers.extend(value.map(|value| (key, value)));
    }
}

#[test]
fn every_number_of_the_configuration_is_on_the_page_with_its_default() {
    let page: BTreeMap<String, String> = limits().into_iter().collect();
    let configured = configured();
    assert!(configured.len() > 35, "{configured:?}");
    for (key, value) in &configured {
        if NO_LIMITS.contains(&key.as_str()) {
            continue;
        }
        let cell = page.get(key).unwrap_or_else(|| panic!("`{key}` is missing, default {value}"));
        // Keys say their unit, so that the page repeats the number as it is in the file.
        let written: f64 = cell.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("`{key}`: {cell}"));
        assert_eq!(written, *value, "`{key}`");
        let unit = if key.ends_with("_ms") {
            "ms"
        } else if key.ends_with("_seconds") {
            "s"
        } else if key.ends_with("_bytes") {
            "bytes"
        } else if key.ends_with("_percent") {
            "%"
        } else {
            ""
        };
        assert_eq!(cell.split(' ').nth(1).unwrap_or_default(), unit, "`{key}`: {cell}");
    }
    let optional = ["pool.min", "pool.max", "pool.target"];
    for key in page.keys().filter(|key| !key.contains(' ') && key.contains('.')) {
        assert!(
            configured.contains_key(key) || optional.contains(&key.as_str()),
            "`{key}` is not in the configuration"
        );
    }
}

/// The value of a constant or of a field in a `Default`, as it is written in a source file: `16 << 20`, `30 * 1024`,
/// `Duration::from_secs(15 * 60)`. Times in milliseconds.
fn constant(file: &str, name: &str) -> f64 {
    let text = read(file);
    let declared = |line: &&str| {
        let line = line.trim_start().trim_start_matches("pub(super) ").trim_start_matches("pub ");
        line.starts_with(&format!("const {name}:"))
            || line.starts_with(&format!("{name}: ")) && line.contains(|c: char| c.is_ascii_digit())
    };
    let line = text.lines().find(declared).unwrap_or_else(|| panic!("{file} has no constant {name}"));
    let expression = match line.split_once('=') {
        Some((_, expression)) => expression,
        None => line.split_once(':').unwrap().1,
    };
    let expression = expression.trim().trim_end_matches([';', ',']);
    for (function, factor) in [("Duration::from_secs(", 1_000.0), ("Duration::from_millis(", 1.0)] {
        if let Some(inner) = expression.strip_prefix(function) {
            return integer(inner.trim_end_matches(')'), file) as f64 * factor;
        }
    }
    integer(expression, file) as f64
}

fn integer(expression: &str, file: &str) -> u64 {
    if let Some((left, right)) = expression.split_once("<<") {
        return integer(left, file) << integer(right, file);
    }
    let factor = |text: &str| {
        let text = text.trim().replace('_', "");
        text.parse::<u64>().unwrap_or_else(|_| panic!("{file}: {expression} is not understood"))
    };
    expression.split('*').map(factor).product()
}

#[test]
fn every_constant_on_the_page_is_the_one_in_the_source() {
    let mut seen = BTreeSet::new();
    let configured = configured();
    for (name, cell) in limits() {
        let Some((file, constant_name)) = name.split_once(": ").filter(|(file, _)| file.ends_with(".rs")) else {
            continue;
        };
        assert_eq!(number(&cell), constant(file, constant_name), "{name}");
        seen.insert(name.clone());
    }
    assert!(seen.len() > 35, "{seen:?}");
    // The reasons at the end are for limits that the tables have.
    for row in rows(&read("docs/LIMITS.md"), 2) {
        for name in quoted(&row[0]) {
            let is_there = seen.contains(name) || configured.contains_key(name);
            assert!(is_there, "{name} is in no table");
        }
    }
}

#[test]
fn what_has_no_test_has_a_reason() {
    let page = read("docs/LIMITS.md");
    let reasons = page.split_once("## Without a test").unwrap().1;
    for row in rows(&page, 5).iter().filter(|row| row[4] == "-") {
        let name = quoted(&row[1]).first().copied().unwrap_or(&row[0]).to_owned();
        let said = reasons.contains(&name) || name.starts_with("terminals") && reasons.contains("| terminals");
        assert!(said, "{name} has neither a test nor a reason");
    }
}

#[test]
fn limits_of_manifests_are_those_of_the_manifests() {
    let page: BTreeMap<String, String> = limits().into_iter().collect();
    for provider in ["openai", "anthropic", "google"] {
        let manifest: toml::Table = read(&format!("providers/{provider}.toml")).parse().unwrap();
        for (key, cell) in page.iter().filter_map(|(key, cell)| Some((key.strip_prefix("manifest: ")?, cell))) {
            let mut value = Some(&Value::Table(manifest.clone())).cloned();
            for part in key.split('.') {
                value = value.and_then(|table| table.get(part).cloned());
            }
            // That of the credentials differs from provider to provider.
            if key == "credentials.tmpfs_mib" {
                assert_eq!(
                    provider == "openai",
                    value == Some(Value::Integer(16)) && cell.contains("16 MiB for openai")
                );
                continue;
            }
            let Some(value) = value else { continue };
            let value = value.as_float().unwrap_or_else(|| value.as_integer().unwrap() as f64);
            assert_eq!(cell.split([' ', ',']).next().unwrap().parse::<f64>().unwrap(), value, "{provider}: {key}");
        }
    }
}
