//! Shape of the manifest. Every key is documented here and, with examples, in `docs/providers.md`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{dialect::Dialect, login::Login, prestart::Prestart, refresh::Refresh};

/// One provider: a CLI in an image, with everything needed to run it. Fields have the names of the TOML keys; a field
/// with another name says so.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Name in requests: 1 to 32 characters of `[a-z0-9-]`; also the manifest's file name.
    pub name: String,
    /// Name of the image that its containers run.
    pub image: String,
    /// Home directory of the user inside the container, an absolute path; the daemon mounts a tmpfs there.
    pub home: String,
    /// Number of warm containers if the daemon's configuration gives none. Default 10.
    #[serde(default = "default_pool_target")]
    pub pool_target: usize,
    /// Limit of processes and threads in a container. Default 256: the three CLIs need 15 to 40 threads.
    #[serde(default = "default_pids_max")]
    pub pids_max: u32,
    /// Destinations that the provider's containers may connect to: `host:port`, the host exact or `*.domain`. Empty
    /// means none.
    pub egress: Vec<String>,
    /// How the CLI is started. Absent: the image has no CLI, and only commands can be run.
    #[serde(default)]
    pub command: Command,
    /// Models that a request can ask for.
    #[serde(default)]
    pub models: Models,
    /// Wall-clock limits of an execution that names none.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Reasoning efforts that a request can ask for, by name.
    #[serde(default)]
    pub efforts: BTreeMap<String, Effort>,
    /// Environment of every prompt. `HOME` and the proxy variables are set by the daemon.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Aliases of variables: the name in a request, and the name that the CLI knows.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Credentials that the CLI takes.
    pub credentials: CredentialSpec,
    /// Arguments and environment that depend on the credential and on the operator's upstream, applied in order.
    #[serde(default)]
    pub when: Vec<When>,
    /// How the CLI logs in, in the order in which the ways are to be taken. Absent: logins are not captured.
    #[serde(default)]
    pub login: Vec<Login>,
    /// How the CLI is prestarted. Absent: the CLI starts only with its prompt.
    #[serde(default)]
    pub prestart: Option<Prestart>,
    /// Resource limits, idle and running.
    pub resources: Resources,
}

fn default_pool_target() -> usize {
    10
}

fn default_pids_max() -> u32 {
    256
}

/// How the CLI is started (`[command]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Argument vector; never passed through a shell. Placeholders: `{model}`, `{effort}` (empty when none was asked
    /// for), `{prompt}` (unless `prompt = "stdin"`), and an element `{args}` that is replaced by the arguments of
    /// the effort and of the `[[when]]` blocks.
    pub argv: Vec<String>,
    /// How the CLI takes its prompt. Default: on standard input.
    #[serde(default)]
    pub prompt: PromptVia,
    /// Decoder for the CLI's output. Default: `plain`.
    #[serde(default)]
    pub dialect: Dialect,
    /// Key `start_timeout_s`, seconds: a CLI that has printed nothing by then counts as stuck. Default 20: at half a
    /// CPU the slowest of the three CLIs needs 2 s, and below about 192 MiB Node livelocks without ever being
    /// OOM-killed.
    #[serde(rename = "start_timeout_s", deserialize_with = "seconds", default = "default_start_timeout")]
    pub start_timeout: Duration,
}

impl Default for Command {
    fn default() -> Self {
        Self {
            argv: Vec::new(),
            prompt: PromptVia::default(),
            dialect: Dialect::default(),
            start_timeout: default_start_timeout(),
        }
    }
}

fn default_start_timeout() -> Duration {
    Duration::from_secs(20)
}

/// How the CLI takes its prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptVia {
    /// On standard input, which is then closed.
    #[default]
    Stdin,
    /// In the argument that holds `{prompt}`; at most 128 KiB, the kernel's limit for one argument.
    Argument,
    /// As an argument if the prompt fits into one. A longer prompt goes to standard input, and the argument that holds
    /// `{prompt}` is dropped.
    ArgumentOrStdin,
}

/// Which models can be asked for (`[models]`).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Model of a request that names none.
    pub default: String,
    /// Patterns (`*` stands for any characters). A model must match one of them.
    pub allowed: Vec<String>,
    /// Short names and the models that they stand for.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
}

/// Wall-clock limits (`[timeouts]`). The longest limit that applies is used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Key `default_s`, seconds; also the limit of commands. Default 30.
    #[serde(rename = "default_s", deserialize_with = "seconds", default = "default_timeout")]
    pub default: Duration,
    /// Limits by model (`[[timeouts.model]]`).
    #[serde(default)]
    pub model: Vec<ModelTimeout>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { default: default_timeout(), model: Vec::new() }
    }
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

/// A limit for models that match a pattern.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTimeout {
    /// Key `match`: a pattern as in [`Models::allowed`].
    #[serde(rename = "match")]
    pub pattern: String,
    /// Key `timeout_s`, seconds.
    #[serde(rename = "timeout_s", deserialize_with = "seconds")]
    pub timeout: Duration,
}

/// What an effort adds to the command (`[efforts.NAME]`).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// Arguments for `{args}`; placeholders `{model}` and `{effort}`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment; same placeholders.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Key `timeout_s`, seconds. Default: no limit of its own.
    #[serde(rename = "timeout_s", deserialize_with = "optional_seconds", default)]
    pub timeout: Option<Duration>,
}

/// Credentials that the CLI takes (`[credentials]`): files in one directory, or one variable.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialSpec {
    /// Directory of the files, relative to `home`; each execution gets a tmpfs of its own there.
    pub dir: String,
    /// File names that the CLI reads there.
    #[serde(default)]
    pub files: Vec<String>,
    /// What is in these files, by name: how the vault checks one before it keeps it. Absent: any text.
    #[serde(default)]
    pub formats: BTreeMap<String, FileFormat>,
    /// Who renews logins.
    #[serde(default)]
    pub refresh: Refresh,
    /// Other names that a request may give to these files.
    #[serde(default)]
    pub file_aliases: BTreeMap<String, String>,
    /// Variables that the CLI takes a key or token from.
    #[serde(default)]
    pub env: Vec<String>,
    /// Whether a prompt needs a credential. Default true.
    #[serde(default = "default_required")]
    pub required: bool,
    /// Key `tmpfs_mib`, MiB: size of the tmpfs, with room for what the CLI itself writes there.
    #[serde(rename = "tmpfs_mib", deserialize_with = "mebibytes")]
    pub tmpfs_bytes: u64,
}

/// What a credential file looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// `auth.json` of codex.
    CodexAuth,
    /// `.credentials.json` of claude.
    ClaudeCredentials,
    /// `oauth_creds.json` of gemini.
    GeminiOauth,
}

fn default_required() -> bool {
    true
}

/// Arguments and environment under a condition (`[[when]]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// Credential that the condition needs. Absent: any or none.
    pub credential: Option<Condition>,
    /// Whether the condition needs an operator's base URL (`true`) or needs none (`false`). Absent: either.
    pub base_url: Option<bool>,
    /// Arguments for `{args}`; placeholders `{model}`, `{effort}`, and `{base_url}` if `base_url = true`.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment; same placeholders.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A credential in a condition: `file:NAME`, `env:NAME`, or with `*` for the name any file or any variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The file of that name.
    File(String),
    /// The variable of that name.
    Env(String),
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.split_once(':') {
            Some(("file", name)) => Ok(Self::File(name.to_owned())),
            Some(("env", name)) => Ok(Self::Env(name.to_owned())),
            _ => Err(D::Error::custom(format!("`{text}` is neither `file:NAME` nor `env:NAME`"))),
        }
    }
}

/// Resource limits (`[resources]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Limits of a container that waits in its pool.
    pub idle: ResourceClass,
    /// Limits from the claim on.
    pub run: ResourceClass,
}

/// One set of limits.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceClass {
    /// Key `memory_mib`, MiB: hard limit of memory.
    #[serde(rename = "memory_mib", deserialize_with = "mebibytes")]
    pub memory_bytes: u64,
    /// CPUs on average: 0.5 is half of one.
    pub cpu: f64,
    /// CPUs for a short time, at least `cpu`. Absent: no burst.
    pub cpu_burst: Option<f64>,
    /// Key `cpu_period_ms`, milliseconds, 1 to 1000: time over which `cpu` is averaged. Default 100. With 1000, a `cpu`
    /// of 0.1 allows 100 ms at once; a `cpu_burst` of 0.2 allows another 100 ms to a container that was idle before.
    #[serde(rename = "cpu_period_ms", deserialize_with = "cpu_period", default = "default_cpu_period")]
    pub cpu_period: Duration,
}

fn default_cpu_period() -> Duration {
    Duration::from_millis(100)
}

fn cpu_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // The kernel's bounds (Documentation/scheduler/sched-bwc.rst).
    match u64::deserialize(deserializer)? {
        value @ 1..=1_000 => Ok(Duration::from_millis(value)),
        value => Err(D::Error::custom(format!("{value} ms is not between 1 and 1000"))),
    }
}

pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // At most a day: a longer value is a mistake in the unit.
    match u64::deserialize(deserializer)? {
        value @ 1..=86_400 => Ok(Duration::from_secs(value)),
        value => Err(D::Error::custom(format!("{value} seconds is not between 1 and 86400"))),
    }
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    seconds(deserializer).map(Some)
}

pub(super) fn mebibytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // At most a tebibyte: a larger value is a mistake in the unit.
    match u64::deserialize(deserializer)? {
        value @ 1..=1_048_576 => Ok(value * 1024 * 1024),
        value => Err(D::Error::custom(format!("{value} MiB is not between 1 and 1048576"))),
    }
}
