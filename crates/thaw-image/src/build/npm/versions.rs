//! Versions of npm packages.

/// Name and version in the registry for a dependency, which may be an alias: `npm:NAME@VERSION`.
pub(super) fn registry_name<'a>(name: &'a str, wanted: &'a str) -> (&'a str, &'a str) {
    match wanted.strip_prefix("npm:").and_then(|alias| alias.rsplit_once('@')) {
        Some(found) => found,
        None => (name, wanted),
    }
}

/// The same dependency in another version.
pub(super) fn with_version(wanted: &str, version: &str) -> String {
    match wanted.strip_prefix("npm:").and_then(|alias| alias.rsplit_once('@')) {
        Some((name, _)) => format!("npm:{name}@{version}"),
        None => version.to_owned(),
    }
}

/// The three numbers of a version, without what follows a hyphen.
pub(super) fn numbers(version: &str) -> Vec<u64> {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    plain.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// The part after the hyphen; for codex, the platform.
pub(super) fn suffix(version: &str) -> &str {
    version.split_once('-').map_or("", |(_, suffix)| suffix)
}

/// The newest of `versions` that may replace `version`: of the same major version, within which makers keep the command
/// line stable, and with the same suffix. Makers of these clients count 0.N up with every release, so 0 is treated as a
/// major version like any other.
pub(super) fn newest_like<'a>(version: &str, versions: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = |other: &&str| numbers(other).first() == numbers(version).first() && suffix(other) == suffix(version);
    versions.filter(alike).max_by_key(|other| numbers(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number_and_aliases_are_looked_through() {
        assert!(numbers("0.170.0") > numbers("0.169.0-linux-x64"));
        assert!(numbers("2.1.9") < numbers("2.1.112"));
        let alias = registry_name("@openai/codex-linux-x64", "npm:@openai/codex@0.169.0-linux-x64");
        assert_eq!(alias, ("@openai/codex", "0.169.0-linux-x64"));
        assert_eq!(registry_name("a", "1.0.0"), ("a", "1.0.0"));
        assert_eq!(with_version("npm:@openai/codex@0.169.0-linux-x64", "2"), "npm:@openai/codex@2");
        assert_eq!(with_version("1.0.0", "2"), "2");
    }

    #[test]
    fn the_newest_of_the_same_major_version_and_platform_stands_for_another() {
        let newest = |version: &str, all: &[&'static str]| newest_like(version, all.iter().copied()).map(str::to_owned);
        assert_eq!(newest("22.1.0", &["22.9.0", "22.10.0", "23.0.0"]).as_deref(), Some("22.10.0"));
        let codex = ["0.170.0-linux-x64", "0.170.0-darwin-x64", "0.171.0", "0.168.0-linux-x64"];
        assert_eq!(newest("0.169.0-linux-x64", &codex).as_deref(), Some("0.170.0-linux-x64"));
        assert_eq!(newest("1.2.3", &["2.0.0", "1.3.0-beta.1", "1.2.2"]).as_deref(), Some("1.2.2"));
        assert_eq!(newest("1.2.3", &["2.0.0"]), None);
    }
}
