//! Locked packages that are no longer available, and what replaced them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Label of an image that differs from its locks; the value lists what was used instead.
pub(super) const LABEL: &str = "org.thawd.image.unlocked";

/// Time for which an unavailable package is remembered before it is requested again.
pub(super) const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// A locked package that is not the newest, or no longer available.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stale {
    /// Its name in its registry.
    pub package: String,
    /// The version that the lock pins; `None` if the lock does not have the package.
    pub locked: Option<String>,
    /// The version that a new lock would pin; `None` if it would not have the package.
    pub newest: Option<String>,
    /// Whether the mirror or registry still has the locked version.
    pub is_there: bool,
}

/// One line for the operator.
impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stale { package, locked, newest, is_there } = self;
        match locked {
            Some(locked) => write!(f, "{package}: locked {locked}")?,
            None => write!(f, "{package}: not locked")?,
        }
        match newest {
            Some(newest) => write!(f, ", newest {newest}")?,
            None => write!(f, ", not needed or not there any more")?,
        }
        if locked.is_some() && !is_there { write!(f, "; the locked one is no longer to be had") } else { Ok(()) }
    }
}

/// A package that was not used in its locked version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// Its name in its registry.
    pub package: String,
    /// The version that the lock pins; `None` if the lock does not have the package.
    pub locked: Option<String>,
    /// The version that was used; `None` if none was.
    pub used: Option<String>,
    /// Why the locked version was not used; ends a sentence.
    pub why: String,
}

/// One line for the operator.
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moved { package, locked, used, why } = self;
        match (locked, used) {
            (Some(locked), Some(used)) => write!(f, "{package}: locked {locked}, built with {used}: {why}"),
            (Some(locked), None) => write!(f, "{package}: locked {locked}, built without it: {why}"),
            (None, Some(used)) => write!(f, "{package}: not in the lock, built with {used}: {why}"),
            (None, None) => write!(f, "{package}: {why}"),
        }
    }
}

/// Value of the label: `libc6 1 -> 2, zlib1g 1 -> none`.
pub(super) fn label(moved: &[Moved]) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    let one = |one: &Moved| format!("{} {} -> {}", one.package, version(&one.locked), version(&one.used));
    moved.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_told_in_one_line_and_recorded() {
        let moved = |package: &str, locked: Option<&str>, used: Option<&str>| Moved {
            package: package.to_owned(),
            locked: locked.map(str::to_owned),
            used: used.map(str::to_owned),
            why: "the mirror has another".to_owned(),
        };
        let all = [moved("a", Some("1"), Some("2")), moved("b", Some("1"), None), moved("c", None, Some("3"))];
        assert_eq!(label(&all), "a 1 -> 2, b 1 -> none, c none -> 3");
        assert_eq!(all[0].to_string(), "a: locked 1, built with 2: the mirror has another");
        assert_eq!(all[1].to_string(), "b: locked 1, built without it: the mirror has another");
        let mut stale = Stale {
            package: "a".to_owned(),
            locked: Some("1".to_owned()),
            newest: Some("2".to_owned()),
            is_there: true,
        };
        assert_eq!(stale.to_string(), "a: locked 1, newest 2");
        stale.is_there = false;
        assert_eq!(stale.to_string(), "a: locked 1, newest 2; the locked one is no longer to be had");
        assert_eq!(all[2].to_string(), "c: not in the lock, built with 3: the mirror has another");
    }
}
