//! What goes over the socket: requests, resources, events and problems, shared by the daemon and `thawctl`.
//!
//! JSON is snake_case; unknown request fields are refused, unknown response fields must be ignored by clients.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::{Zeroize, ZeroizeOnDrop};

#[allow(unused_imports, reason = "named in the descriptions of fields")]
use crate::content::{Content, ContentSchema};
#[allow(unused_imports, reason = "named in the descriptions of fields")]
use crate::files::NewFileSchema;
pub use crate::files::{Collected, CollectedFile, FileKind, FileProblem, NewFile};
use crate::time::Timestamp;

mod about;
mod credentials;
mod egress;
mod feed;
mod job;
mod list;
mod login;
mod names;
mod sandbox;
mod sandbox_files;
mod stdin;
mod user;

pub use about::{DaemonVersion, ExecutionStats, LimitsInForce};
pub use credentials::{
    AuditAction, AuditRecord, CheckMethod, CheckOutcome, Credential, CredentialCheck, CredentialKind, CredentialState,
    UserKey, Vault,
};
pub use egress::{EgressAllocation, EgressIdentity, EgressKind, EgressRequest, EgressState};
pub use feed::{DaemonEvent, DaemonEventKind};
pub use job::{ImageDamage, ImagePrune, ImagePull, ImageVerification, Job, JobKind, JobState};
pub use list::{ExecutionFilter, Page};
pub use login::{Login, LoginAnswer, LoginMethod, LoginReason, LoginRequest, LoginState};
pub use names::{LABELS_RULE, MAX_LABEL_NAME, MAX_LABEL_VALUE, MAX_LABELS, are_labels, is_variable};
pub use sandbox::{
    NamedSandboxRequest, Sandbox, SandboxChange, SandboxFilter, SandboxLifecycle, SandboxReason, SandboxRequest,
    SandboxState, SandboxStorage,
};
pub use sandbox_files::{FileMove, NewDirectory, SandboxFile, SandboxFileKind, Unpacked};
pub use stdin::StdinTaken;
pub use user::{MAX_USER, USER_PATTERN, USER_RULE, is_user};

/// Body of `POST /v1/executions`. Exactly one of `prompt` and `command` must be given (neither is needed with `image`).
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionRequest {
    /// Name of a provider, as listed by `GET /v1/providers`. Exactly one of `provider` and `image` must be given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(pattern = "^[a-z0-9-]*$", max_length = 32)]
    pub provider: String,
    /// Name of an image of the store, to run a command in it without a provider: `command` replaces the image's own,
    /// its entrypoint, environment, user and working directory stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Id of a sandbox of this user, to run `command` in it, or with `provider` a `prompt`. It is not given together with
    /// `image`; what a container has from its claim on (`credentials`, `files`, `archive`, `collect`, limits) is not
    /// given either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[a-z0-9-]+$", min_length = 1, max_length = 64)]
    pub sandbox: Option<String>,
    /// Whose execution this is: 1 to 128 characters, as identity systems name their users (`alice@example.org`,
    /// `auth0|5f7c`). Letters, digits and `_ @ | + : / = -`, and dots between them. Letters of either case are different.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$")]
    pub user: String,
    /// What to ask the provider's CLI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A command (argv) to run in the provider's image instead of its CLI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1)]
    pub command: Option<Vec<String>>,
    /// A program with its first arguments to start instead of the image's entrypoint; the image's own command is left out
    /// too. Only with `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1)]
    pub entrypoint: Option<Vec<String>>,
    /// Model; the provider's default when absent. Only with `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Reasoning effort, one of those that the provider's manifest names. Only with `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    /// The user's credentials for this one execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Additional environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Variables that are set although a provider's CLI may break by them (`HOME`, `PATH`, the proxy's, `LD_…`), which
    /// `env` does not take beside a prompt. They win over `env`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub forced_env: BTreeMap<String, String>,
    /// What the command reads on its standard input, up to its end; nothing (`/dev/null`) when absent. Not with `prompt`,
    /// which the CLI reads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentSchema>)]
    pub stdin: Option<Content>,
    /// Standard input stays open behind `stdin`: `POST /v1/executions/{id}/stdin` sends more, and its end. Only with a command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin_open: bool,
    /// Files to put into `/workspace` before the command starts, by path below it. Directories are made as needed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, NewFileSchema>)]
    pub files: BTreeMap<String, NewFile>,
    /// The same as an archive: tar, plain or compressed with gzip. `files` go over what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentSchema>)]
    pub archive: Option<Content>,
    /// Files and directories below `/workspace` to keep when the command has ended, for as long as its output; they are
    /// read with `GET /v1/executions/{id}/files` and `GET /v1/executions/{id}/archive`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collect: Vec<String>,
    /// Absolute path of the directory to start in. When absent: `/workspace` if there are `files`, an `archive` or
    /// something to `collect`, else the image's own, or the provider's home directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^/", max_length = 4095)]
    pub workdir: Option<String>,
    /// Memory limit, bytes: from 16 MiB to that of the provider's class, which holds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16_777_216)]
    pub memory_bytes: Option<u64>,
    /// CPUs' worth of time, without any burst: from 0.01 to that of the provider's class, which holds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.01)]
    pub cpus: Option<f64>,
    /// Wall-clock limit in milliseconds; the manifest's timeout for the model and effort when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub timeout_ms: Option<u64>,
    /// How long it may wait for a container when there is none, milliseconds; 0 for not at all, the configuration's
    /// `queue.timeout_ms` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// Keep running when the client that streams the events goes away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Free-form labels, returned with the execution.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Credential files and variables. Never logged, never written to a disk; wiped from memory when dropped.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// File name (relative to the provider's credential directory) to content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[zeroize(skip)]
    pub files: BTreeMap<String, Secret>,
    /// Environment variable name to value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[zeroize(skip)]
    pub env: BTreeMap<String, Secret>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files.keys()).field("env", &self.env.keys()).finish()
    }
}

/// A string that is wiped when dropped and never printed.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The secret itself; do not print or log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where an execution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionState {
    /// Accepted; its container is being claimed.
    Pending,
    /// It waits for a container; see `queue_position`.
    Queued,
    /// The command runs.
    Running,
    /// The `exit` event was written; the container is gone or going.
    Exited,
}

/// How the container was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClaimPath {
    /// A frozen container of the pool.
    Warm,
    /// Created for this request because the pool was empty.
    Cold,
}

/// Why an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The command ended by itself; see `code` or `signal`.
    Exited,
    /// A time limit passed: the execution's, or the start timeout (see `detail`).
    Timeout,
    /// Asked for by the client, or the client went away.
    Cancelled,
    /// The memory limit was hit.
    Oom,
    /// Ended by a signal that it got from elsewhere, or by the daemon's own stop; see `signal` and `detail`.
    Killed,
    /// The container broke before or while the command ran; see `detail`.
    Lost,
    /// It never ran: it got no container within the time that it could wait, see `detail`. The same request may
    /// succeed later.
    Refused,
}

/// One execution, as returned by `GET /v1/executions/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Execution {
    /// Identifier, `[a-z0-9-]`.
    pub id: String,
    /// Provider name; of one in a sandbox, that of the sandbox's template.
    pub provider: String,
    /// The sandbox that it runs in, if it has no container of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Whose it is.
    pub user: String,
    /// Model used, when a prompt was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The command that was asked for, as one line of at most 256 bytes; absent for a prompt, which is never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// State.
    pub state: ExecutionState,
    /// While it is queued: how many requests are served before it is, itself included, if nobody else comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<usize>,
    /// Container that serves or served it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How the container was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<ClaimPath>,
    /// Creation time, Unix milliseconds.
    pub created_at_ms: u64,
    /// Creation time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When its command started to run, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How long it has waited for a container, milliseconds; 0 if there was one at once.
    #[serde(default)]
    pub queued_ms: u64,
    /// Wall-clock limit in milliseconds.
    pub timeout_ms: u64,
    /// Labels given by the client.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Id of the request that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl Event {
    /// When it happened; of one that comes from a daemon, always there.
    pub fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Queued(Queued { at, .. })
            | Self::Started(Started { at, .. })
            | Self::Stdout(Output { at, .. })
            | Self::Stderr(Output { at, .. })
            | Self::Delta(Delta { at, .. })
            | Self::Gap(Gap { at, .. })
            | Self::Exit(Exit { at, .. }) => *at,
        }
    }

    /// Says when it happened, unless that was said.
    pub fn stamp(&mut self, now: Timestamp) {
        match self {
            Self::Queued(Queued { at, .. })
            | Self::Started(Started { at, .. })
            | Self::Stdout(Output { at, .. })
            | Self::Stderr(Output { at, .. })
            | Self::Delta(Delta { at, .. })
            | Self::Gap(Gap { at, .. })
            | Self::Exit(Exit { at, .. }) => *at = at.or(Some(now)),
        }
    }
}

/// One event of `GET /v1/executions/{id}/events`; the SSE `event:` field is the tag, `id:` the sequence number.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// It waits for a container. Only when it has to: first when it begins to wait, then about once per second when
    /// its position has changed.
    Queued(Queued),
    /// The command is running. First event but for `queued`. A second one comes when the provider refused the access token
    /// that a prestarted CLI was given, and the request is made once more by a CLI that can renew it: what was on
    /// standard output before is the first one's, and no text of the answer has come.
    Started(Started),
    /// Bytes that the command wrote to its standard output.
    Stdout(Output),
    /// Bytes that the command wrote to its standard error.
    Stderr(Output),
    /// Text of the answer, decoded from the provider's stream dialect.
    Delta(Delta),
    /// Events were dropped because the log's limit was passed before they were read.
    Gap(Gap),
    /// Last event, exactly once.
    Exit(Exit),
}

/// Payload of `queued`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Queued {
    /// How many requests are served before it is, itself included, if nobody else comes.
    pub position: usize,
    /// Id of the request that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Payload of `started`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Started {
    /// Execution id.
    pub execution: String,
    /// Container id.
    pub container: String,
    /// Warm or cold.
    pub path: ClaimPath,
    /// Whether the provider's CLI had been started in it ahead of time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prestarted: bool,
    /// Microseconds from the request being parsed to the command being spawned (or thawed, when prestarted).
    pub claim_us: u64,
    /// Id of the request that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Payload of `stdout` and `stderr`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Output {
    /// The bytes: UTF-8 text, or base64 when `encoding` says so.
    pub data: String,
    /// `base64` when the bytes are not UTF-8; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Encoding of `Output::data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// RFC 4648 section 4.
    Base64,
}

/// Payload of `delta`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// A piece of the answer.
    pub text: String,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Payload of `gap`: sequence numbers `from..=to` are gone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// First missing sequence number.
    pub from: u64,
    /// Last missing sequence number.
    pub to: u64,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Payload of `exit`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// Exit code of the command, when it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal that ended it, when one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it ended.
    pub reason: ExitReason,
    /// Whether it did its job: for prompts read from the CLI's own JSON, since its exit code can lie.
    pub success: bool,
    /// What went wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Wall-clock time from spawn to exit, milliseconds.
    pub duration_ms: u64,
    /// CPU time used by this execution, milliseconds.
    pub cpu_ms: u64,
    /// Peak memory of the container's cgroup, bytes.
    pub memory_peak_bytes: u64,
    /// What was collected of its files, if the request named some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected: Option<Collected>,
    /// Id of the request that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// How far the containers of a pool are taken before they are frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing but `thaw-init` runs in it.
    #[default]
    Created,
    /// The provider's CLI has been started and waits for its prompt.
    Prestarted,
}

/// One pool, as listed by `GET /v1/pools`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Provider whose containers these are.
    pub provider: String,
    /// How far its containers are taken.
    #[serde(default)]
    pub stage: Stage,
    /// The one model that its containers serve, if it is but one: that of a prestarted CLI which cannot change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How many warm containers are wanted.
    pub target: usize,
    /// Fewest that may be wanted.
    #[serde(default)]
    pub min: usize,
    /// Most that may be wanted.
    #[serde(default)]
    pub max: usize,
    /// Whether the target follows demand.
    #[serde(default)]
    pub scaling: bool,
    /// Why the target is what it is, once it has been changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Warm: frozen, confirmed, claimable.
    pub warm: usize,
    /// Being created.
    pub creating: usize,
    /// Claimed and not yet destroyed.
    pub claimed: usize,
    /// Requests that wait for a container of this provider.
    #[serde(default)]
    pub queued: usize,
    /// Claims served from the pool since the daemon started.
    pub hits: u64,
    /// Claims that found it empty since the daemon started.
    pub misses: u64,
    /// Why nothing is created now although containers are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// Why the last creation failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What its warm containers hold; not older than a second.
    #[serde(default)]
    pub memory: PoolMemory,
}

/// What is charged to the control groups of a pool's warm containers, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolMemory {
    /// All of it, of all together.
    pub bytes: u64,
    /// Of one of them, on average.
    pub bytes_per_container: u64,
    /// Of processes, of all together.
    pub anonymous_bytes: u64,
    /// Pages of files, of all together. Those of an image are shared by all of its containers and charged to whichever
    /// touched them first.
    pub file_bytes: u64,
    /// The kernel's own (stacks, page tables, caches of names), of all together.
    pub kernel_bytes: u64,
    /// Swapped out, of all together; not among `bytes`.
    pub swapped_bytes: u64,
}

/// Body of `PUT /v1/pools/{provider}`: what is absent stays. It lasts until the daemon ends.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolChange {
    /// Warm containers wanted. Without `min`, `max` and `scaling` it is fixed from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<usize>,
    /// Fewest that scaling may want; switches it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<usize>,
    /// Most that scaling may want; switches it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<usize>,
    /// Whether the target follows demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<bool>,
    /// Containers wanted in which the provider's CLI waits already started with its default model; only where the
    /// configuration has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prestarted: Option<usize>,
}

/// State of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Being created.
    Creating,
    /// Frozen in a pool.
    Warm,
    /// Serving an execution.
    Claimed,
    /// Being destroyed.
    Destroying,
}

/// One container, as listed by `GET /v1/containers`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// Identifier, `[a-z0-9-]`.
    pub id: String,
    /// Provider whose image it runs; `image` when it was made for a command in an image.
    pub provider: String,
    /// How far it is taken before it is frozen.
    #[serde(default)]
    pub stage: Stage,
    /// State.
    pub state: ContainerState,
    /// Execution that it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// Sandbox that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Login whose CLI runs in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Whose execution, sandbox or login that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Since when it serves it, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at_ms: Option<u64>,
    /// What the execution has used, while it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Process id of its PID 1, seen from the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Creation time, Unix milliseconds.
    pub created_at_ms: u64,
    /// Memory charged to its cgroup now, bytes.
    pub memory_bytes: u64,
    /// CPU time used since its creation, milliseconds.
    pub cpu_ms: u64,
    /// Whether the kernel reports its cgroup as frozen.
    pub frozen: bool,
    /// Its cgroup, relative to the cgroup root.
    pub cgroup: String,
}

/// What an execution has used of its container so far, and what it may use. Nothing that was used before the container was
/// claimed is in it, except in `memory_bytes`, and in `memory_peak_bytes` where the kernel cannot forget a peak (cgroup v2
/// before Linux 6.12).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// CPU time, microseconds.
    pub cpu_us: u64,
    /// CPUs' worth of time that it may use.
    pub cpu_limit: f64,
    /// Memory charged now, bytes.
    pub memory_bytes: u64,
    /// Highest memory charged, bytes.
    pub memory_peak_bytes: u64,
    /// Most memory that may be charged, bytes.
    pub memory_limit_bytes: u64,
    /// Periods of the CPU limit in which something ran.
    pub periods: u64,
    /// Those of them in which it had to wait because the limit was used up.
    pub throttled_periods: u64,
    /// How long its CPUs had to wait for that reason, all together, microseconds.
    pub throttled_us: u64,
    /// Processes killed because the memory limit was reached.
    pub oom_kills: u64,
    /// Bytes sent through the egress proxy, headers and TLS included.
    pub network_out_bytes: u64,
    /// Bytes received through it.
    pub network_in_bytes: u64,
}

/// One provider, as listed by `GET /v1/providers`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Name.
    pub name: String,
    /// Image it runs.
    pub image: String,
    /// Model used when a request names none.
    pub default_model: String,
    /// Whether its image is in the store, so that executions can run.
    pub ready: bool,
    /// Credential file names that it reads.
    pub credential_files: Vec<String>,
    /// Environment variables that it takes an API key or token from.
    pub credential_env: Vec<String>,
    /// Hosts that its containers may reach, after what the configuration adds and replaces: `host:port`.
    pub egress: Vec<String>,
    /// The upstream that it asks instead of its maker's, if the configuration names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Models that can be asked for; `*` stands for any characters.
    #[serde(default)]
    pub models: Vec<String>,
    /// Short names of models.
    #[serde(default)]
    pub model_aliases: BTreeMap<String, String>,
    /// Reasoning efforts that can be asked for.
    #[serde(default)]
    pub efforts: Vec<String>,
    /// Time limit of an execution that names none, milliseconds; a model or an effort may have a longer one.
    #[serde(default)]
    pub default_timeout_ms: u64,
    /// Such limits by pattern of the model, milliseconds.
    #[serde(default)]
    pub model_timeouts_ms: BTreeMap<String, u64>,
    /// Such limits by effort, milliseconds.
    #[serde(default)]
    pub effort_timeouts_ms: BTreeMap<String, u64>,
    /// Digest of the image that its containers are made from; absent until that is unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Digest of another image of that name that is there; it is used from the next start of the daemon on, or from `POST /v1/images/use` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_image_digest: Option<String>,
}

/// One image, as listed by `GET /v1/images`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Name.
    pub name: String,
    /// Manifest digest, `sha256:…`.
    pub digest: String,
    /// Size of its layers as stored, bytes.
    pub compressed_bytes: u64,
    /// Size of its root file system, bytes.
    pub unpacked_bytes: u64,
    /// Unpack time, Unix milliseconds.
    pub unpacked_at_ms: u64,
    /// Number of its layers.
    #[serde(default)]
    pub layers: usize,
    /// What is to be known about it besides: files that were left out, for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A list answer: `{"items": […]}`, so that fields can be added later.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The resources.
    pub items: Vec<T>,
}

/// RFC 9457 problem, `application/problem+json`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI for the kind of problem: the page that explains it, with `code` behind `#`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short name of the HTTP status.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What went wrong and what to do.
    pub detail: String,
    /// Stable machine-readable code.
    pub code: String,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// Id of the request, which is in the daemon's log too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
