//! Bytes in a request: JSON has text only.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// Bytes: a JSON string stands for its UTF-8, `{"base64": "..."}` for anything else (RFC 4648 section 4, with padding).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(Vec<u8>);

/// Bytes: a string stands for its UTF-8, and anything else goes in base64.
#[derive(ToSchema)]
#[schema(as = Content)]
#[serde(untagged)]
pub enum ContentSchema {
    /// Text: its UTF-8.
    Text(String),
    /// Any bytes, in base64 (RFC 4648 section 4, with padding).
    Base64 {
        /// The bytes.
        base64: String,
    },
}

impl Content {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &STANDARD.encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Parts)
    }
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with the one key `base64`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
        Ok(text.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Err(A::Error::missing_field("base64")) };
        if key != "base64" {
            return Err(A::Error::unknown_field(&key, &["base64"]));
        }
        let text: String = map.next_value()?;
        let bytes = STANDARD.decode(text).map_err(|_| A::Error::custom("not base64"))?;
        match map.next_key::<String>()? {
            None => Ok(Content(bytes)),
            Some(key) if key == "base64" => Err(A::Error::duplicate_field("base64")),
            Some(key) => Err(A::Error::unknown_field(&key, &["base64"])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_come_back_as_they_were() {
        for bytes in [&b""[..], b"plain", b"a\0\xff", "\u{e4}".as_bytes()] {
            let content = Content::from(bytes.to_vec());
            let json = serde_json::to_string(&content).unwrap();
            assert_eq!(serde_json::from_str::<Content>(&json).unwrap(), content, "{json}");
        }
        assert_eq!(serde_json::to_string(&Content::from(b"a\xff".to_vec())).unwrap(), r#"{"base64":"Yf8="}"#);
    }

    #[test]
    fn nothing_else_is_taken_for_bytes() {
        for bad in [
            "7",
            "null",
            "true",
            r#"["Yf8="]"#,
            "{}",
            r#"{"base64":7}"#,
            r#"{"base64":"Yf8"}"#,
            r#"{"base64":"Y f8="}"#,
            r#"{"base64":"","base64":""}"#,
            r#"{"base64":"","text":""}"#,
            r#"{"text":"a"}"#,
        ] {
            assert!(serde_json::from_str::<Content>(bad).is_err(), "{bad}");
        }
    }
}
