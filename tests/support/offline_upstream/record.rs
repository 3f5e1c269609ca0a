//! What the upstream was asked: kept in memory, and as JSON lines in a file.

use std::{
    collections::VecDeque,
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use axum::http::HeaderMap;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::images::Image;
use super::script::ToolResult;

/// How many requests are kept in memory.
const KEPT: usize = 10_000;
/// How many characters of a prompt are kept.
const PROMPT_CHARS: usize = 4096;

/// One request. Header values are never kept, since some are secrets.
#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    /// `CLOCK_MONOTONIC` when the request's head had been read, nanoseconds.
    pub monotonic_ns: u64,
    /// Wall clock at that moment, milliseconds since the epoch.
    pub unix_ms: u64,
    pub method: String,
    /// Path without its query, which can hold a key.
    pub path: String,
    pub host: String,
    /// Header names, lower case, sorted.
    pub headers: Vec<String>,
    pub credential: Option<Credential>,
    pub body_bytes: usize,
    pub model: Option<String>,
    pub prompt: Option<String>,
    /// Length of the prompt, bytes, and the SHA-256 of all of it.
    pub prompt_bytes: Option<usize>,
    pub prompt_sha256: Option<String>,
    /// Names of the tools that the CLI offered.
    pub tools: Vec<String>,
    /// What the tools of the last turn of a script gave, in the order of their calls.
    pub tool_results: Vec<ToolResult>,
    /// Images anywhere in it.
    pub images: Vec<Image>,
}

/// That a request carried a credential, and which one, without telling it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Credential {
    /// Header that carried it.
    pub header: String,
    /// First 12 hexadecimal digits of the SHA-256 of the credential, without the word `Bearer`.
    pub sha256: String,
}

/// Moment at which a request arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub monotonic_ns: u64,
    pub unix_ms: u64,
}

impl Arrival {
    /// Now.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic_ns: thaw_os::kernel::since_boot().as_nanos() as u64, unix_ms: unix.as_millis() as u64 }
    }
}

/// Finds the credential that a request carries.
pub fn credential(headers: &HeaderMap) -> Option<Credential> {
    ["authorization", "x-api-key", "x-goog-api-key"].into_iter().find_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        let secret = value.strip_prefix("Bearer ").unwrap_or(value).trim();
        if secret.is_empty() {
            return None;
        }
        let digest = Sha256::digest(secret);
        let sha256 = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Some(Credential { header: name.to_owned(), sha256 })
    })
}

/// Shortens a prompt to what is kept of it.
pub fn kept_prompt(prompt: &str) -> String {
    prompt.chars().take(PROMPT_CHARS).collect()
}

/// SHA-256 as text.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps requests.
#[derive(Debug)]
pub struct Recorder {
    kept: Mutex<VecDeque<Recorded>>,
    file: Option<Mutex<File>>,
}

impl Recorder {
    /// Appends to `path`, if one is given.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.with_context(|| format!("cannot open the record {}", path.display()))
        };
        Ok(Self { kept: Mutex::default(), file: path.map(open).transpose()?.map(Mutex::new) })
    }

    /// Keeps one request.
    pub fn add(&self, request: Recorded) {
        if let Some(file) = &self.file {
            let mut line = serde_json::to_vec(&request).unwrap_or_default();
            line.push(b'\n');
            // One write per line, so that readers never see half of one.
            if let Err(error) = lock(file).write_all(&line) {
                eprintln!("offline-upstream: cannot record a request: {error}");
            }
        }
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
    }

    /// What was kept, oldest first.
    pub fn all(&self) -> Vec<Recorded> {
        lock(&self.kept).iter().cloned().collect()
    }

    /// Forgets what was kept in memory.
    pub fn clear(&self) {
        lock(&self.kept).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_told_apart_but_not_told() {
        let mut headers = HeaderMap::new();
        assert_eq!(credential(&headers), None);
        headers.insert("x-goog-api-key", "".parse().unwrap());
        assert_eq!(credential(&headers), None, "an empty key is no credential");
        headers.insert("authorization", "Bearer abc".parse().unwrap());
        let found = credential(&headers).unwrap();
        // printf abc | sha256sum
        assert_eq!(found, Credential { header: "authorization".into(), sha256: "ba7816bf8f01".into() });
    }
}
