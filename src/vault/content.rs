//! A credential as bytes. Not as JSON, whose parser unescapes into memory of its own that nobody wipes.

use std::collections::BTreeMap;

use thaw_client::types::{Credentials, Secret};
use zeroize::Zeroizing;

/// What stands before a file, and before a variable.
const FILE: u8 = 0;
const VARIABLE: u8 = 1;

/// The content cannot be read: it was written by nothing that this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// For each file and variable: which of the two, the name and the value, these with their lengths before them.
pub fn encode(credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    let files = credentials.files.iter().map(|pair| (FILE, pair));
    let parts = files.chain(credentials.env.iter().map(|pair| (VARIABLE, pair)));
    let size = parts.clone().map(|(_, (name, value))| 1 + 8 + 8 + name.len() + value.expose().len()).sum();
    // Of the right size from the start: memory that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size));
    for (kind, (name, value)) in parts {
        bytes.push(kind);
        for text in [name.as_str(), value.expose()] {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The credential that was encoded.
pub fn decode(mut bytes: &[u8]) -> Result<Credentials, Unreadable> {
    let mut credentials = Credentials::default();
    while let Some((kind, rest)) = bytes.split_first() {
        let (name, rest) = text(rest)?;
        let (value, rest) = text(rest)?;
        let into: &mut BTreeMap<String, Secret> = match *kind {
            FILE => &mut credentials.files,
            VARIABLE => &mut credentials.env,
            _ => return Err(Unreadable),
        };
        into.insert(name.to_owned(), Secret::new(value.to_owned()));
        bytes = rest;
    }
    Ok(credentials)
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), Unreadable> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(Unreadable)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| Unreadable)?;
    let (text, rest) = rest.split_at_checked(length).ok_or(Unreadable)?;
    Ok((std::str::from_utf8(text).map_err(|_| Unreadable)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back_and_a_part_of_it_does_not() {
        let mut credentials = Credentials::default();
        credentials.files.insert("auth.json".to_owned(), Secret::new("{\"a\":\"\u{e9}\"}\n".to_owned()));
        credentials.env.insert("KEY".to_owned(), Secret::new(String::new()));
        let bytes = encode(&credentials);
        assert_eq!(bytes.capacity(), bytes.len());
        let again = decode(&bytes).unwrap();
        assert_eq!(again.files["auth.json"].expose(), "{\"a\":\"\u{e9}\"}\n");
        assert_eq!((again.files.len(), again.env.len(), again.env["KEY"].expose()), (1, 1, ""));
        let first = 1 + 8 + "auth.json".len() + 8 + credentials.files["auth.json"].expose().len();
        for end in (1..bytes.len()).filter(|end| *end != first) {
            assert_eq!(decode(&bytes[..end]).err(), Some(Unreadable), "cut at {end}");
        }
        assert_eq!(decode(&[7]).err(), Some(Unreadable));
    }
}
