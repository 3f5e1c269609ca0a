//! The names of what the keeper holds.

use std::fmt;

/// Whose descriptors they are. As text it is the name under which the keeper holds them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A container's.
    Container(String),
    /// An execution's: its log, and while it runs its pipes.
    Execution(String),
    /// The second pipe of a stream of an execution: id, and name of the stream.
    Transit(String, String),
    /// Something that this version does not know: a newer daemon's. It stays where it is.
    Unknown(String),
}

impl Key {
    /// Reads a name.
    pub fn parse(name: &str) -> Self {
        let plain =
            |id: &str| id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        match (name.split_once('-').map(|(kind, _)| kind), name.split_once('/')) {
            (Some("e"), Some((id, stream))) if plain(id) && plain(stream) => {
                Self::Transit(id.to_owned(), stream.to_owned())
            }
            (Some("e"), None) if plain(name) => Self::Execution(name.to_owned()),
            (Some("c"), None) if plain(name) => Self::Container(name.to_owned()),
            _ => Self::Unknown(name.to_owned()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(name) | Self::Execution(name) | Self::Unknown(name) => f.write_str(name),
            Self::Transit(execution, stream) => write!(f, "{execution}/{stream}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_left_alone() {
        let transit = Key::Transit("e-01".to_owned(), "stdout".to_owned());
        for (name, key) in [
            ("c-01", Key::Container("c-01".to_owned())),
            ("e-01", Key::Execution("e-01".to_owned())),
            ("e-01/stdout", transit),
            ("s-01", Key::Unknown("s-01".to_owned())),
            ("vault:e-01", Key::Unknown("vault:e-01".to_owned())),
            ("e", Key::Unknown("e".to_owned())),
            ("e-01/a/b", Key::Unknown("e-01/a/b".to_owned())),
            ("", Key::Unknown(String::new())),
        ] {
            assert_eq!(Key::parse(name), key);
            assert_eq!(key.to_string(), name);
        }
    }
}
