//! Keys by which a client asks for the same execution or sandbox again without getting another one.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest key, characters.
const MAX_KEY: usize = 255;

/// What a client calls a request that must have effect once, and what that request asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    key: String,
    /// Of the whole request, credentials included, so that it is kept in memory only.
    digest: String,
}

/// What is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`Idempotency-Key` must have 1 to 255 printable ASCII characters")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// `key` for `request`. Requests are the same when they mean the same: the order of fields does not matter.
    ///
    /// # Errors
    /// [`InvalidKey`].
    pub fn new(key: &str, request: &impl Serialize) -> Result<Self, InvalidKey> {
        if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(InvalidKey);
        }
        let request = Zeroizing::new(serde_json::to_vec(request).map_err(|_| InvalidKey)?);
        Ok(Self { key: key.to_owned(), digest: blake3::hash(&request).to_string() })
    }

    /// The key itself.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether both are of the same request.
    pub fn is_same_request(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

#[cfg(test)]
mod tests {
    use thaw_client::types::ExecutionRequest;

    use super::*;

    #[test]
    fn keys_are_printable_and_requests_are_told_apart() {
        let request = |json: &str| serde_json::from_str::<ExecutionRequest>(json).unwrap();
        let one = request(r#"{"provider":"p","user":"u","prompt":"x","labels":{"a":"1","b":"2"}}"#);
        let same = request(r#"{ "user":"u", "labels":{"b":"2","a":"1"}, "provider":"p", "prompt":"x" }"#);
        let other = request(r#"{"provider":"p","user":"u","prompt":"y","labels":{"a":"1","b":"2"}}"#);
        let key = |request| IdempotencyKey::new("k", request).unwrap();
        assert!(key(&one).is_same_request(&key(&same)) && !key(&one).is_same_request(&key(&other)));
        let longest = "k".repeat(MAX_KEY);
        for good in ["k", "5f0c9b2e-8d1a-4c55-b0f3-6a1f0e7c2d11", "a b \"c\"", &longest] {
            assert_eq!(IdempotencyKey::new(good, &one).unwrap().key(), good);
        }
        for bad in ["", "a\tb", "ä", &"k".repeat(MAX_KEY + 1)] {
            assert_eq!(IdempotencyKey::new(bad, &one), Err(InvalidKey), "{bad:?}");
        }
    }
}
