//! What the things are that the keeper holds.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Whose descriptors they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A container's, by its id.
    Container(String),
    /// An execution's, by its id: its log, and while it runs its pipes.
    Execution(String),
    /// A sandbox's, by its id: which container it has, and what is nowhere on a disk.
    Sandbox(String),
    /// The transit pipe of a stream of an execution: id, and name of the stream.
    Transit(String, String),
    /// The open standard input of an execution, by the execution's id: what was sent, and the pipe that it goes to.
    Input(String),
    /// A renewal of a login that is under way, by its id: the socket that the answer comes to.
    Refresh(String),
    /// Something that this version does not know, as JSON: a newer daemon's. It stays where it is.
    Unknown(String),
}

/// The kinds that this version knows, as they go over the socket: `{"container": "c-01"}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Known {
    Container(String),
    Execution(String),
    Sandbox(String),
    Transit(String, String),
    Input(String),
    Refresh(String),
}

impl Key {
    /// Reads a key as it goes over the socket.
    pub fn read(value: &Value) -> Self {
        match Known::deserialize(value) {
            Ok(Known::Container(id)) => Self::Container(id),
            Ok(Known::Execution(id)) => Self::Execution(id),
            Ok(Known::Sandbox(id)) => Self::Sandbox(id),
            Ok(Known::Transit(execution, stream)) => Self::Transit(execution, stream),
            Ok(Known::Input(id)) => Self::Input(id),
            Ok(Known::Refresh(id)) => Self::Refresh(id),
            Err(_) => Self::Unknown(value.to_string()),
        }
    }

    /// As it goes over the socket.
    pub fn write(&self) -> Value {
        let known = match self.clone() {
            Self::Container(id) => Known::Container(id),
            Self::Execution(id) => Known::Execution(id),
            Self::Sandbox(id) => Known::Sandbox(id),
            Self::Transit(execution, stream) => Known::Transit(execution, stream),
            Self::Input(id) => Known::Input(id),
            Self::Refresh(id) => Known::Refresh(id),
            Self::Unknown(json) => return serde_json::from_str(&json).unwrap_or(Value::String(json)),
        };
        serde_json::to_value(known).unwrap_or_default()
    }

    /// Reads a key of a keeper that an earlier version started, which had names: a prefix told the kind.
    pub fn read_name(name: &str) -> Self {
        let plain =
            |id: &str| id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        match (name.split_once('-').map(|(kind, _)| kind), name.split_once('/')) {
            (Some("e"), Some((id, stream))) if plain(id) && plain(stream) => {
                Self::Transit(id.to_owned(), stream.to_owned())
            }
            (Some("e"), None) if plain(name) => Self::Execution(name.to_owned()),
            (Some("refresh/r"), Some((_, id))) if plain(id) => Self::Refresh(id.to_owned()),
            (Some("s"), None) if plain(name) => Self::Sandbox(name.to_owned()),
            (Some("c"), None) if plain(name) => Self::Container(name.to_owned()),
            _ => Self::Unknown(Value::String(name.to_owned()).to_string()),
        }
    }

    /// As such a name.
    pub fn write_name(&self) -> String {
        match self {
            Self::Container(id) | Self::Execution(id) | Self::Sandbox(id) => id.clone(),
            Self::Transit(execution, stream) => format!("{execution}/{stream}"),
            // An earlier version's keeper does not care what it means, and neither does that version's daemon.
            Self::Refresh(id) => format!("refresh/{id}"),
            Self::Input(id) => format!("input/{id}"),
            Self::Unknown(json) => serde_json::from_str(json).unwrap_or_else(|_| json.clone()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.write_name())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_and_others_are_left_alone() {
        let unknown = |value: &Value| Key::Unknown(value.to_string());
        for (value, key) in [
            (json!({"container": "c-01"}), Key::Container("c-01".to_owned())),
            (json!({"execution": "e-01"}), Key::Execution("e-01".to_owned())),
            (json!({"transit": ["e-01", "stdout"]}), Key::Transit("e-01".to_owned(), "stdout".to_owned())),
            (json!({"input": "e-01"}), Key::Input("e-01".to_owned())),
            (json!({"refresh": "r-01"}), Key::Refresh("r-01".to_owned())),
            (json!({"sandbox": "s-01"}), Key::Sandbox("s-01".to_owned())),
            (json!({"volume": "v-01"}), unknown(&json!({"volume": "v-01"}))),
            (
                json!({"container": {"id": "c-01", "half": 2}}),
                unknown(&json!({"container": {"id": "c-01", "half": 2}})),
            ),
            (json!({"transit": ["e-01"]}), unknown(&json!({"transit": ["e-01"]}))),
            (json!("c-01"), unknown(&json!("c-01"))),
            (json!(null), unknown(&json!(null))),
        ] {
            assert_eq!(Key::read(&value), key);
            assert_eq!(key.write(), value);
        }
    }

    #[test]
    fn names_of_an_earlier_version_are_read_as_they_are_written() {
        let unknown = |name: &str| Key::Unknown(json!(name).to_string());
        for (name, key) in [
            ("c-01", Key::Container("c-01".to_owned())),
            ("e-01", Key::Execution("e-01".to_owned())),
            ("e-01/stdout", Key::Transit("e-01".to_owned(), "stdout".to_owned())),
            ("refresh/r-01", Key::Refresh("r-01".to_owned())),
            ("s-01", Key::Sandbox("s-01".to_owned())),
            ("v-01", unknown("v-01")),
            ("e", unknown("e")),
            ("e-01/a/b", unknown("e-01/a/b")),
            ("", unknown("")),
        ] {
            assert_eq!(Key::read_name(name), key);
            assert_eq!(key.write_name(), name);
        }
    }
}
