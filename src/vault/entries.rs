//! The list of what a user has, which is sealed with the user's key. A record counts only if it is the one that is
//! listed, so that a row from earlier, of another provider, or none at all is noticed although it was once genuine.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::crypto;

/// What a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Version of the last change of any credential: none is used twice, also after one was removed.
    last: u64,
    entries: BTreeMap<String, Entry>,
}

/// One credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    version: u64,
    /// Tag of the sealed secret, in base64.
    tag: String,
}

fn encoded(sealed: &[u8]) -> String {
    STANDARD.encode(crypto::tag(sealed))
}

impl Entries {
    /// The version of the next change.
    pub fn next_version(&self) -> u64 {
        self.last + 1
    }

    /// Version of the credential for a provider.
    pub fn version(&self, provider: &str) -> Option<u64> {
        self.entries.get(provider).map(|entry| entry.version)
    }

    /// Whether there is one for this provider.
    pub fn has(&self, provider: &str) -> bool {
        self.entries.contains_key(provider)
    }

    /// Whether this is the record that is listed.
    pub fn lists(&self, provider: &str, version: u64, sealed: &[u8]) -> bool {
        let listed = self.entries.get(provider);
        listed.is_some_and(|entry| entry.version == version && entry.tag == encoded(sealed))
    }

    /// Lists a record instead of the one before.
    pub fn put(&mut self, provider: &str, version: u64, sealed: &[u8]) {
        self.last = self.last.max(version);
        self.entries.insert(provider.to_owned(), Entry { version, tag: encoded(sealed) });
    }

    /// Forgets one; whether it was there.
    pub fn remove(&mut self, provider: &str) -> bool {
        self.entries.remove(provider).is_some()
    }
}
