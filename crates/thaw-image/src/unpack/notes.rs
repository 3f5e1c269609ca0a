//! Notes about parts of a layer that were left out, for the person who imports the image.

use serde::{Deserialize, Serialize};

/// Most paths that are named; further ones are only counted.
const NAMED: usize = 5;

/// What was left out of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notes {
    /// Devices and pipes.
    #[serde(default)]
    left_out: Named,
    /// Files that lost a setuid or setgid bit.
    #[serde(default)]
    setuid: Named,
}

/// Some paths by name, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    count: u64,
    first: Vec<String>,
}

impl Named {
    fn add(&mut self, name: String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name);
        }
    }

    fn text(&self) -> String {
        let more = self.count - self.first.len() as u64;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", self.first.join(", "))
    }
}

impl Notes {
    /// Records an entry that was left out.
    pub(super) fn left_out(&mut self, path: &str, what: &str) {
        self.left_out.add(format!("{path} ({what})"));
    }

    /// Forgets a left-out entry because another one for the same path followed.
    pub(super) fn forget_left_out(&mut self, path: &str) {
        self.left_out.count = self.left_out.count.saturating_sub(1);
        self.left_out.first.retain(|name| !name.starts_with(&format!("{path} (")));
    }

    /// Records a file whose setuid or setgid bit was dropped.
    pub(super) fn setuid(&mut self, path: &str) {
        self.setuid.add(path.to_owned());
    }

    /// The notes as sentences.
    pub(crate) fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.left_out.count > 0 {
            all.push(format!(
                "left out: {}; containers have their own /dev, and images may bring neither devices nor pipes",
                self.left_out.text()
            ));
        }
        if self.setuid.count > 0 {
            all.push(format!(
                "setuid and setgid bits dropped: {}; no command in a container may gain rights",
                self.setuid.text()
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_named_and_all_are_counted() {
        let mut notes = Notes::default();
        assert!(notes.sentences().is_empty());
        (0..7).for_each(|number| notes.left_out(&format!("\"dev/{number}\""), "a character device"));
        notes.forget_left_out("\"dev/0\"");
        let said = notes.sentences().join("\n");
        assert!(said.starts_with("left out: \"dev/1\" (a character device), \"dev/2\""), "{said}");
        assert!(said.contains("\"dev/4\" (a character device) and 2 more; containers"), "{said}");
    }
}
