//! Files that go with a request and come back from an execution.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::content::Content;

/// Permissions of a file that nobody says anything of.
const FILE_MODE: u32 = 0o644;

/// A file to be put into an execution's `/workspace`.
#[derive(Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Its bytes.
    pub content: Content,
    /// Its permissions.
    pub mode: u32,
}

/// A file: a string stands for its UTF-8; anything else is an object with one of `text` and `base64`.
#[derive(ToSchema)]
#[schema(as = NewFile)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what `NewFile` reads")]
pub enum NewFileSchema {
    /// Text: its UTF-8.
    Text(String),
    /// More than text.
    File {
        /// The content, as text.
        text: Option<String>,
        /// The content in base64 (RFC 4648 section 4, with padding).
        base64: Option<String>,
        /// Permissions in octal digits, such as `755`; 644 when absent.
        mode: Option<String>,
    },
}

impl NewFile {
    /// One that everybody may read.
    pub fn new(content: impl Into<Content>) -> Self {
        Self { content: content.into(), mode: FILE_MODE }
    }
}

impl fmt::Debug for NewFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, mode {:o}", self.content, self.mode)
    }
}

impl Serialize for NewFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.mode == FILE_MODE {
            return self.content.serialize(serializer);
        }
        let mut map = serializer.serialize_map(Some(2))?;
        match std::str::from_utf8(self.content.as_bytes()) {
            Ok(text) => map.serialize_entry("text", text)?,
            Err(_) => map.serialize_entry("base64", &STANDARD.encode(self.content.as_bytes()))?,
        }
        map.serialize_entry("mode", &format!("{:o}", self.mode))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for NewFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Parts)
    }
}

struct Parts;

const KEYS: &[&str] = &["text", "base64", "mode"];

impl<'de> Visitor<'de> for Parts {
    type Value = NewFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with one of `text` and `base64`, and perhaps `mode`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<NewFile, E> {
        Ok(NewFile::new(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NewFile, A::Error> {
        let (mut content, mut mode) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let value: String = map.next_value()?;
            match key.as_str() {
                "text" | "base64" if content.is_some() => return Err(A::Error::custom("its content is given twice")),
                "text" => content = Some(value.into_bytes()),
                "base64" => content = Some(STANDARD.decode(value).map_err(|_| A::Error::custom("not base64"))?),
                "mode" if mode.is_none() => mode = Some(octal(&value).ok_or_else(|| A::Error::custom("no mode"))?),
                "mode" => return Err(A::Error::duplicate_field("mode")),
                _ => return Err(A::Error::unknown_field(&key, KEYS)),
            }
        }
        let content = content.ok_or_else(|| A::Error::custom("neither `text` nor `base64`"))?;
        Ok(NewFile { content: content.into(), mode: mode.unwrap_or(FILE_MODE) })
    }
}

fn octal(text: &str) -> Option<u32> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    digits.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|mode| *mode <= 0o777)
}

/// What was collected of an execution's files, in its `exit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collected {
    /// Files, directories and links that are there.
    pub entries: u64,
    /// Size of the archive that they come in, bytes.
    pub bytes: u64,
    /// What of that which was asked for is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<FileProblem>,
    /// Problems beyond those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_problems: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why something could not be collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileProblem {
    /// Which path, relative to `/workspace`; what is not plain text in it is escaped.
    pub path: String,
    /// What is the matter with it.
    pub problem: String,
}

/// One thing that was collected, as listed by `GET /v1/executions/{id}/files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CollectedFile {
    /// Its path, relative to `/workspace`.
    pub path: String,
    /// The bytes of that path in base64, when they are not UTF-8: then only the archive has the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// What it is.
    pub kind: FileKind,
    /// Its permissions, in octal digits.
    pub mode: String,
    /// Size of a file, bytes.
    pub bytes: u64,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a collected path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

#[cfg(test)]
mod tests {
    use super::NewFile;

    #[test]
    fn files_come_back_as_they_were() {
        for file in [
            NewFile::new("plain"),
            NewFile::new(b"a\xff".to_vec()),
            NewFile { mode: 0o755, ..NewFile::new("#!/bin/sh") },
            NewFile { mode: 0o600, ..NewFile::new(vec![0xff]) },
        ] {
            let json = serde_json::to_string(&file).unwrap();
            assert_eq!(serde_json::from_str::<NewFile>(&json).unwrap(), file, "{json}");
        }
        let json = r#"{"text": "x", "mode": "0755"}"#;
        assert_eq!(serde_json::from_str::<NewFile>(json).unwrap(), NewFile { mode: 0o755, ..NewFile::new("x") });
    }

    #[test]
    fn nothing_else_is_taken_for_a_file() {
        for bad in [
            "7",
            "null",
            "{}",
            r#"{"mode":"644"}"#,
            r#"{"text":"a","base64":"YQ=="}"#,
            r#"{"text":"a","mode":"9"}"#,
            r#"{"text":"a","mode":"4755"}"#,
            r#"{"text":"a","mode":""}"#,
            r#"{"text":"a","mode":644}"#,
            r#"{"base64":"Yf8"}"#,
            r#"{"text":"a","owner":"1"}"#,
        ] {
            assert!(serde_json::from_str::<NewFile>(bad).is_err(), "{bad}");
        }
    }
}
