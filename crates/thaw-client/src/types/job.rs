//! Work on images that takes longer than a request should.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Image, Secret};
use crate::time::Timestamp;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Brings in an image from an archive.
    ImportImage,
    /// Brings in an image from a registry.
    PullImage,
    /// Compares every file of the store with its digest.
    VerifyImages,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It is at work; see `stage`.
    Running,
    /// It did what was asked; see `image` or `verification`.
    Succeeded,
    /// It did not; see `detail`.
    Failed,
}

/// One job, as returned by `GET /v1/jobs/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Identifier, `[a-z0-9-]`.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// State.
    pub state: JobState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What it is at, in words for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Bytes that this stage will go through, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The image that was brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// What is to be known about that image besides: names that were not taken over, files that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<ImageVerification>,
}

/// Body of `POST /v1/images/pull`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePull {
    /// The image: `REGISTRY/REPOSITORY:TAG` or `REGISTRY/REPOSITORY@DIGEST`.
    #[schema(min_length = 1, max_length = 512, example = "registry.example.com/team/tools:1")]
    pub reference: String,
    /// What the image is called in the store; the last part of its repository when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 250,
        pattern = r"^[a-z0-9][A-Za-z0-9._:@-]*(/[A-Za-z0-9][A-Za-z0-9._:@-]*)*$"
    )]
    pub name: Option<String>,
    /// Name for the registry; anonymous when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub username: Option<String>,
    /// Password or access token, needed with `username` and refused without; kept for the time of the job, in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 65536)]
    pub password: Option<Secret>,
    /// Whether to talk http instead of https. Registries on loopback are talked to in http anyway, unless `ca` is given.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificate authorities of the registry in PEM form, believed besides the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1048576)]
    pub ca: Option<String>,
}

/// What a look at every file of the store has found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ImageVerification {
    /// Images looked at.
    pub images: usize,
    /// Layers looked at.
    pub layers: usize,
    /// Files hashed.
    pub files: u64,
    /// Their size, bytes.
    pub bytes: u64,
    /// What is wrong; empty if all is well.
    pub damage: Vec<ImageDamage>,
}

/// A layer or image that is not what was unpacked.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ImageDamage {
    /// `layer sha256:…` or `image sha256:…`.
    pub what: String,
    /// What is wrong with it, one sentence each.
    pub reasons: Vec<String>,
    /// Names of the images that have it: remove these, and bring them in again.
    pub images: Vec<String>,
}

/// Answer of `POST /v1/images/prune`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ImagePrune {
    /// Digests of the images that were removed.
    pub removed: Vec<String>,
    /// Disk space that is free again, bytes.
    pub freed_bytes: u64,
}
