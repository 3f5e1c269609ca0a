//! What is allowed in a configuration and will hardly do what it is meant to: told by `thawd --check-config`, refused by
//! nothing.

use std::collections::BTreeMap;

use super::images::image_store;
use crate::provider::Provider;
use thaw_client::config::Config;

/// Host ids that one container takes.
const IDS_EACH: u64 = 65_536;

/// One sentence for each thing, with the key to change.
pub(super) fn warnings(config: &Config, providers: &BTreeMap<String, Provider>) -> Vec<String> {
    let mut warnings = Vec::new();
    let images = stored(config);
    let mut wanted = 0;
    for (name, provider) in providers {
        let layout = config.paths.layouts().join(&provider.image);
        if !layout.join("index.json").is_file() && !images.contains(&provider.image) {
            warnings.push(format!(
                "provider `{name}` has no image: neither {} nor the store has {:?}; build, pull or import it",
                layout.display(),
                provider.image
            ));
        }
        let takes_none = provider.credentials.files.is_empty() && provider.credentials.env.is_empty();
        if provider.credentials.required && takes_none {
            warnings.push(format!(
                "provider `{name}` requires a credential and takes none: see [credentials] of its manifest"
            ));
        }
        let (target, ..) = config.pool_bounds(name, provider.pool_target);
        let prestarted =
            config.provider.get(name).map_or(0, |own| own.prestarted + own.prestarted_models.values().sum::<usize>());
        wanted += target + prestarted;
    }
    let max = config.container.max;
    if wanted > max {
        warnings.push(format!(
            "the pools want {wanted} warm containers together, but `container.max` is {max}: some of them stay smaller"
        ));
    }
    let first = u64::from(config.container.id_start);
    let end = first + config.container.max as u64 * IDS_EACH;
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        for owner in overlapping(&text, first, end) {
            warnings.push(format!(
                "{file} gives ids of `container.id_start` ({first} to {}) to {owner}: choose another range",
                end - 1
            ));
        }
    }
    warnings
}

/// Names of the images in the store; none where there is no store yet, or none of ours to read.
fn stored(config: &Config) -> Vec<String> {
    // Only looked at: a check changes nothing.
    let images = image_store(config, true).and_then(|store| store.list()).unwrap_or_default();
    images.into_iter().map(|image| image.name).collect()
}

/// Who has ids of this range, by subuid(5): `name:start:count`.
fn overlapping(text: &str, first: u64, end: u64) -> Vec<&str> {
    let owner = |line: &'_ str| -> Option<usize> {
        let mut fields = line.splitn(3, ':').skip(1);
        let start: u64 = fields.next()?.trim().parse().ok()?;
        let count: u64 = fields.next()?.trim().parse().ok()?;
        (start < end && start.saturating_add(count) > first).then(|| line.find(':')).flatten()
    };
    text.lines().filter_map(|line| owner(line).map(|at| &line[..at])).collect()
}

#[cfg(test)]
mod tests {
    use super::overlapping;

    #[test]
    fn ranges_overlap_by_a_single_id() {
        let text = "# none\na:100:50\nb:150:1\nc:149:1\nbroken\nd:0:100\ne:0:101\n";
        assert_eq!(overlapping(text, 100, 150), ["a", "c", "e"]);
        assert!(overlapping(text, 151, 160).is_empty());
    }
}
