//! AES-256-GCM (NIST SP 800-38D), by the crate `aes-gcm`: what is sealed says to what it belongs, and opens nowhere else.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, Generate, KeyInit, Payload, array::Array};
use zeroize::Zeroizing;

/// A key of 256 bits.
pub type Key = Zeroizing<[u8; 32]>;

/// Bytes of a nonce, which stands before what it was used for.
const NONCE: usize = 12;

/// Bytes of a tag, which stand at the end.
pub const TAG: usize = 16;

/// What was sealed does not open: it was changed, belongs elsewhere, or was sealed with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoesNotOpen;

/// To what something sealed belongs, as associated data.
#[derive(Debug)]
pub struct Context(Vec<u8>);

impl Context {
    /// `kind` of thing, and the words that say which one. Each has its length before it, so that no two lists of words
    /// are the same bytes.
    pub fn new(kind: &str, words: &[&str]) -> Self {
        let mut bytes = Vec::with_capacity(64);
        for word in ["thawd vault 1", kind].iter().chain(words) {
            bytes.extend_from_slice(&(word.len() as u64).to_le_bytes());
            bytes.extend_from_slice(word.as_bytes());
        }
        Self(bytes)
    }
}

/// A new key from the kernel's random numbers.
pub fn new_key() -> Key {
    Zeroizing::new(<[u8; 32]>::generate())
}

/// Seals with a nonce of its own: nonce, ciphertext, tag.
pub fn seal(key: &[u8; 32], context: &Context, secret: &[u8]) -> Vec<u8> {
    // 2^32 random nonces are safe for one key (SP 800-38D, 8.3); a user's key seals two things for each change.
    seal_with(key, <[u8; NONCE]>::generate(), context, secret)
}

fn seal_with(key: &[u8; 32], nonce: [u8; NONCE], context: &Context, secret: &[u8]) -> Vec<u8> {
    let payload = Payload { msg: secret, aad: &context.0 };
    let sealed = Aes256Gcm::new(key.into()).encrypt(&Array(nonce), payload);
    let sealed = sealed.expect("a secret is shorter than the 64 GiB that one nonce allows");
    [&nonce[..], &sealed].concat()
}

/// Opens what was sealed with this key for this context.
pub fn open(key: &[u8; 32], context: &Context, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(DoesNotOpen)?;
    let payload = Payload { msg: sealed, aad: &context.0 };
    let opened = Aes256Gcm::new(key.into()).decrypt(&Array(*nonce), payload);
    opened.map(Zeroizing::new).map_err(|_| DoesNotOpen)
}

/// The tag at the end of what was sealed, which no other sealed thing has.
pub fn tag(sealed: &[u8]) -> &[u8] {
    &sealed[sealed.len().saturating_sub(TAG)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Test cases 13 to 16 of "The Galois/Counter Mode of Operation (GCM)", McGrew and Viega, as NIST published it: AES-256
    /// with nonces of 96 bits. Key, nonce, plaintext, associated data, ciphertext with tag.
    const KNOWN: [[&str; 5]; 4] = [
        [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "",
            "",
            "530f8afbc74536b9a963b4f1c4cb738b",
        ],
        [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "00000000000000000000000000000000",
            "",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        ],
        [
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            "",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015adb094dac5d93471bdec1a502270e3cc6c",
        ],
        [
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
        ],
    ];

    #[test]
    fn published_vectors_are_met() {
        for [key, nonce, plain, data, sealed] in KNOWN {
            let key: [u8; 32] = hex(key).try_into().unwrap();
            let nonce: [u8; NONCE] = hex(nonce).try_into().unwrap();
            let context = Context(hex(data));
            let whole = [&nonce[..], &hex(sealed)].concat();
            assert_eq!(seal_with(&key, nonce, &context, &hex(plain)), whole);
            assert_eq!(*open(&key, &context, &whole).unwrap(), hex(plain));
        }
    }

    #[test]
    fn every_changed_byte_and_every_other_context_is_refused() {
        let (key, context) = (new_key(), Context::new("record", &["u1", "openai", "3"]));
        let sealed = seal(&key, &context, b"sk-secret");
        assert_eq!(*open(&key, &context, &sealed).unwrap(), b"sk-secret");
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(open(&key, &context, &changed).err(), Some(DoesNotOpen), "byte {at}, bit {bit}");
            }
            assert_eq!(open(&key, &context, &sealed[..at]).err(), Some(DoesNotOpen), "cut at {at}");
        }
        for other in [
            Context::new("record", &["u2", "openai", "3"]),
            Context::new("record", &["u1", "openai", "4"]),
            Context::new("entries", &["u1", "openai", "3"]),
            // The same letters, divided otherwise.
            Context::new("record", &["u1o", "penai", "3"]),
        ] {
            assert_eq!(open(&key, &other, &sealed).err(), Some(DoesNotOpen));
        }
        assert_eq!(open(&new_key(), &context, &sealed).err(), Some(DoesNotOpen));
        assert_ne!(seal(&key, &context, b"sk-secret"), sealed, "each has a nonce of its own");
    }
}
