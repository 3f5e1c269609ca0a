//! Labels and variables: what they may be.

use std::collections::BTreeMap;

/// Most labels of one thing.
pub const MAX_LABELS: usize = 32;

/// Longest name of a label, bytes.
pub const MAX_LABEL_NAME: usize = 64;

/// Longest value of a label, bytes.
pub const MAX_LABEL_VALUE: usize = 256;

/// What labels have to be, in words.
pub const LABELS_RULE: &str = "must be at most 32, with names of 1 to 64 and values of up to 256 characters, none of them \
                               control characters";

/// Whether these may be labels.
pub fn are_labels(labels: &BTreeMap<String, String>) -> bool {
    let plain = |text: &str| text.chars().all(|c| !c.is_control());
    let name = |name: &str| !name.is_empty() && name.len() <= MAX_LABEL_NAME && plain(name);
    let value = |value: &str| value.len() <= MAX_LABEL_VALUE && plain(value);
    labels.len() <= MAX_LABELS && labels.iter().all(|(k, v)| name(k) && value(v))
}

/// Whether a variable can have this name. As with Kubernetes and Docker, only an empty name, `=` and NUL are refused.
pub fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_limits() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(are_labels(&one("team", "")) && are_labels(&one(&"n".repeat(64), &"v".repeat(256))));
        for (name, value) in [("", "x"), ("a\n", "x"), ("a", "x\0"), (&"n".repeat(65), ""), ("a", &"v".repeat(257))] {
            assert!(!are_labels(&one(name, value)), "{name:?}");
        }
        let many = |count| (0..count).map(|n: usize| (n.to_string(), String::new())).collect();
        assert!(are_labels(&many(32)) && !are_labels(&many(33)));
    }
}
