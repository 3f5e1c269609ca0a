//! Hashes of streams and files: SHA-256 in OCI's form `sha256:…`, and BLAKE3 for files that only the store checks. With
//! AVX2, BLAKE3 takes a third of the time, and every byte of an image is hashed as part of its archive as well.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

/// A finished hash as `sha256:` and lower-case hex.
pub(super) fn named(hasher: Sha256) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hasher.finalize() {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Digest of a file of the store, `blake3:…`.
pub(super) struct FileHasher(blake3::Hasher);

impl FileHasher {
    pub(super) fn new() -> Self {
        FileHasher(blake3::Hasher::new())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> String {
        format!("blake3:{}", self.0.finalize().to_hex())
    }
}

/// Size and digest of a file; the digest is of the same kind as `like`.
pub(super) fn of_file(mut file: impl Read, like: &str) -> io::Result<(u64, String)> {
    if like.starts_with("sha256:") {
        return HashingReader::new(file, u64::MAX).finish();
    }
    let (mut hasher, mut size, mut buffer) = (FileHasher::new(), 0, vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hasher.finish())),
            count => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// Digest of bytes in memory.
pub(super) fn sha256(bytes: &[u8]) -> String {
    named(Sha256::new_with_prefix(bytes))
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits: safe to use as a file name and to compare.
pub(super) fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| HEX.contains(&b)))
}

/// The hex part of a digest that passed [`is_sha256`].
pub(super) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// Hash of a list of inputs, each framed by its length so that two lists never collide by concatenation.
#[derive(Clone)]
pub(super) struct InputHash(Sha256);

impl InputHash {
    pub(super) fn new(kind: &str) -> Self {
        let mut hash = InputHash(Sha256::new());
        hash.add(kind.as_bytes());
        hash
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> String {
        named(self.0)
    }
}

/// Reader that counts and hashes, and fails after more than `limit` bytes.
pub(super) struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    read: u64,
    limit: u64,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        HashingReader { inner, hasher: Sha256::new(), read: 0, limit }
    }

    /// Whether reading failed because of the limit.
    pub(super) fn over_limit(&self) -> bool {
        self.read > self.limit
    }

    /// Reads to the end; returns number of bytes and digest.
    pub(super) fn finish(mut self) -> io::Result<(u64, String)> {
        let mut buffer = vec![0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok((self.read, named(self.hasher)))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read += count as u64;
        if self.over_limit() {
            return Err(io::Error::other(format!("more than {} bytes", self.limit)));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Writer that counts and hashes.
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        HashingWriter { inner, hasher: Sha256::new(), written: 0 }
    }

    /// Returns the inner writer, number of bytes and digest.
    pub(super) fn finish(self) -> (W, u64, String) {
        (self.inner, self.written, named(self.hasher))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_digest_is_the_known_one() {
        let known = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), known);
        assert!(is_sha256(known));
        assert!(!is_sha256(&known.to_uppercase()));
        assert!(!is_sha256("sha256:../../../../etc/passwd"));
    }

    #[test]
    fn files_are_hashed_as_they_were_before() {
        // Test vector of the BLAKE3 specification for no input.
        let empty = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(of_file(&b""[..], "blake3:").unwrap(), (0, empty.to_owned()));
        assert_eq!(of_file(&b"x"[..], "sha256:00").unwrap(), (1, sha256(b"x")));
    }

    #[test]
    fn framing_keeps_lists_apart() {
        let of = |parts: &[&[u8]]| {
            let mut hash = InputHash::new("t");
            parts.iter().for_each(|p| hash.add(p));
            hash.finish()
        };
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
    }

    #[test]
    fn a_reader_stops_at_its_limit() {
        let mut reader = HashingReader::new(&b"12345"[..], 4);
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
        assert!(reader.over_limit());
    }
}
