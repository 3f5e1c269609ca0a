//! `[image]` and `[image_run]`: what images may cost, and commands that are run in any of them.

use serde::{Deserialize, Serialize};

/// `[image]`: what one image may cost; the limits that have no key are in `docs/images.md`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Sum of the sizes of all its files, bytes.
    pub max_unpacked_bytes: u64,
    /// Entries of all its layers together.
    pub max_entries: u64,
    /// Whether an image that somebody else made has to be signed: an archive by one of `public_keys`; one of a registry,
    /// which has no such signature, is not taken at all.
    pub require_signature: bool,
    /// minisign's public keys whose signatures count.
    pub public_keys: Vec<String>,
}

impl Default for Image {
    fn default() -> Self {
        // Twenty times the largest image that thawd's forerunners had (745 MB), and ten times the files of Node's
        // largest dependency trees.
        Self { max_unpacked_bytes: 16 << 30, max_entries: 1_000_000, require_signature: false, public_keys: Vec::new() }
    }
}

/// `[image_run]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageRun {
    /// Memory limit, bytes.
    pub memory_bytes: u64,
    /// CPUs' worth of time.
    pub cpu: f64,
    /// CPUs' worth of time for a moment.
    pub cpu_burst: f64,
    /// Most processes and threads.
    pub pids_max: u32,
    /// Hosts that they may reach, as `host:port`.
    pub egress: Vec<String>,
    /// Wall-clock limit when the request names none, seconds.
    pub timeout_seconds: u64,
}

impl Default for ImageRun {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            cpu: 0.5,
            cpu_burst: 1.0,
            pids_max: 256,
            egress: Vec::new(),
            timeout_seconds: 30,
        }
    }
}
