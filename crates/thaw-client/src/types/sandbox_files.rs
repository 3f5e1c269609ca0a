//! Files of sandboxes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// What something in a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxFileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A FIFO; the API never opens one.
    Fifo,
    /// A socket; the API never opens one.
    Socket,
    /// A device; the API never opens one.
    Device,
}

/// A file, a directory or something else in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxFile {
    /// Its name in its directory; what is not UTF-8 in it is shown as U+FFFD.
    pub name: String,
    /// The name in base64, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// What it is.
    pub kind: SandboxFileKind,
    /// Permissions, octal.
    pub mode: String,
    /// Owner, by the number that it has inside; 65534 where it has none.
    pub uid: u32,
    /// Group, as the owner.
    pub gid: u32,
    /// Size of a file's content, bytes.
    pub bytes: u64,
    /// When the content changed.
    pub modified_at: Timestamp,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Of a file: changes with its content; for `If-Match`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Body of `POST /v1/sandboxes/{id}/files/mkdir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDirectory {
    /// Absolute path.
    #[schema(pattern = "^/[^\\u0000]*$", min_length = 2, max_length = 4095)]
    pub path: String,
    /// Permissions, octal; 755 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^0?[0-7]{1,3}$")]
    pub mode: Option<String>,
    /// Makes what is missing above it too, and takes a directory that is there already for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parents: bool,
}

/// Body of `POST /v1/sandboxes/{id}/files/move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileMove {
    /// Absolute path of what is moved.
    #[schema(pattern = "^/[^\\u0000]*$", min_length = 2, max_length = 4095)]
    pub from: String,
    /// Absolute path that it gets, on the same file system.
    #[schema(pattern = "^/[^\\u0000]*$", min_length = 2, max_length = 4095)]
    pub to: String,
    /// What has that path makes way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite: bool,
}

/// Answer to `PUT /v1/sandboxes/{id}/archive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unpacked {
    /// Files, directories and links that the archive had.
    pub entries: u64,
}
