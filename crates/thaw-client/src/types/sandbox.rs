//! Sandboxes: containers of a user that live on between commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// Body of `POST /v1/sandboxes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxRequest {
    /// Name, by which its user finds it again: 1 to 63 characters of a-z, 0-9 and `-`, beginning with a letter or a
    /// digit. A user has one sandbox of a name at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9][a-z0-9-]*$", min_length = 1, max_length = 63)]
    pub name: Option<String>,
    /// Whose sandbox this is: 1 to 128 characters, as identity systems name their users.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")]
    pub user: String,
    /// Name of a provider, as listed by `GET /v1/providers`: the sandbox is one of its containers.
    #[schema(pattern = "^[a-z0-9-]+$", max_length = 32)]
    pub template: String,
    /// Environment variables of every command in it. They are not written to a disk, and only their names are shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it is frozen and when it is destroyed.
    #[serde(default, skip_serializing_if = "SandboxLifecycle::is_default")]
    pub lifecycle: SandboxLifecycle,
    /// A root file system of its own to write to, which outlives its processes; without it only a few directories can be
    /// written, which are in memory. `{}` for one of the usual size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<SandboxStorage>,
}

/// Body of `PUT /v1/users/{user}/sandboxes/{name}`: the same without what stands in the path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSandboxRequest {
    /// Name of a provider, as listed by `GET /v1/providers`: the sandbox is one of its containers.
    #[schema(pattern = "^[a-z0-9-]+$", max_length = 32)]
    pub template: String,
    /// Environment variables of every command in it. They are not written to a disk, and only their names are shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it is frozen and when it is destroyed.
    #[serde(default, skip_serializing_if = "SandboxLifecycle::is_default")]
    pub lifecycle: SandboxLifecycle,
    /// A root file system of its own to write to, which outlives its processes; without it only a few directories can be
    /// written, which are in memory. `{}` for one of the usual size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<SandboxStorage>,
}

impl NamedSandboxRequest {
    /// As a request that says whose it is, and its name.
    pub fn of(self, user: String, name: String) -> SandboxRequest {
        let Self { template, env, labels, lifecycle, storage } = self;
        SandboxRequest { name: Some(name), user, template, env, labels, lifecycle, storage }
    }
}

/// A root file system to write to: the image below, and above it a file system of the sandbox's own, of a limited size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxStorage {
    /// Bytes that its files may have together; `storage.default_bytes` of the configuration when absent. All of it is taken
    /// from the disk when the sandbox is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 33_554_432, maximum = 17_592_186_044_416_u64)]
    pub size_bytes: Option<u64>,
}

/// What becomes of a sandbox that is idle: no command runs in it, but such as were started with `background`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxLifecycle {
    /// Seconds of idleness after which it is frozen; `sandbox.freeze_after_seconds` of the configuration when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub freeze_after_s: Option<u64>,
    /// Seconds of idleness, frozen or not, after which its processes are ended and its files kept;
    /// `sandbox.stop_after_seconds` of the configuration when absent. Only with `storage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub stop_after_s: Option<u64>,
    /// Seconds of idleness, frozen and stopped or not, after which it is destroyed; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub destroy_after_s: Option<u64>,
    /// Idleness neither freezes nor stops it. Not together with `freeze_after_s` and `stop_after_s`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_active: bool,
}

impl SandboxLifecycle {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Body of `PATCH /v1/sandboxes/{id}`. What is given replaces what was there as a whole; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxChange {
    /// All labels from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// The lifecycle from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<SandboxLifecycle>,
    /// Its environment variables, where their values were lost with the host or the process that keeps them: commands are
    /// refused until they are given. Whoever has them cannot change them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// It gets its container.
    Creating,
    /// Its processes run.
    Active,
    /// Its processes are frozen, with all that they have in memory. A command wakes it.
    Frozen,
    /// It has no processes; its files lie in its storage. A command starts it again.
    Stopped,
    /// Its storage cannot be used, for the reason in `detail`. Nothing of it was made anew.
    Broken,
    /// It was ended, and its files with it. It is listed for a while, so that `reason` tells why.
    Gone,
}

impl SandboxState {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Creating, Self::Active, Self::Frozen, Self::Stopped, Self::Broken, Self::Gone];

    /// As in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Broken => "broken",
            Self::Gone => "gone",
        }
    }
}

/// Why a sandbox is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxReason {
    /// It was created.
    Created,
    /// It was idle for the time that its lifecycle says: frozen, stopped or gone.
    Idle,
    /// Somebody asked for it: frozen, active, stopped or gone.
    Requested,
    /// A command needed it: active.
    Used,
    /// Its container ended by itself, or from outside: stopped with storage, gone without.
    Ended,
    /// The daemon was told to stop, and not to keep what runs: stopped with storage, gone without.
    Stopped,
    /// Its container did not survive a restart of the daemon or of the host; see `detail`: stopped with storage, gone without.
    Lost,
    /// Its file system cannot be used; see `detail`: broken.
    Damaged,
}

impl SandboxReason {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Created, Self::Idle, Self::Requested, Self::Used, Self::Ended, Self::Stopped, Self::Lost, Self::Damaged];

    /// As in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Idle => "idle",
            Self::Requested => "requested",
            Self::Used => "used",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Damaged => "damaged",
        }
    }
}

/// One sandbox, as returned by `GET /v1/sandboxes/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Identifier, `[a-z0-9-]`.
    pub id: String,
    /// Name that its user gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whose it is.
    pub user: String,
    /// The provider whose container it is.
    pub template: String,
    /// State.
    pub state: SandboxState,
    /// Why it is in this state.
    pub reason: SandboxReason,
    /// More about that, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// When it was created.
    pub created_at: Timestamp,
    /// When a command or a call for its files last began or ended in it, or somebody woke it; idleness is counted from here.
    pub used_at: Timestamp,
    /// Its container, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Commands that run in it.
    pub commands: usize,
    /// Names of its environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Labels given by the client.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it is frozen and when it is destroyed, as it was asked for.
    pub lifecycle: SandboxLifecycle,
    /// Its root file system to write to, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<SandboxStorage>,
}

/// Which sandboxes to list: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// Whose.
    pub user: Option<String>,
    /// In which state.
    pub state: Option<SandboxState>,
    /// With these labels.
    pub labels: BTreeMap<String, String>,
    /// Most to be listed at once; all when absent.
    pub limit: Option<usize>,
    /// Where the page before this one ended.
    pub cursor: Option<String>,
}

impl SandboxFilter {
    /// As the query of a request, by name.
    pub fn query(&self) -> Vec<(String, String)> {
        let single = [
            ("user", self.user.clone()),
            ("state", self.state.map(|state| state.name().to_owned())),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("cursor", self.cursor.clone()),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        single.chain(self.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{SandboxReason, SandboxState};

    #[test]
    fn names_are_those_of_the_json() {
        for state in SandboxState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        for reason in SandboxReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }
}
