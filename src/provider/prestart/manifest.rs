//! The shape of a manifest's `[prestart]`; `docs/providers.md` has examples.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::provider::manifest::{Condition, When, mebibytes, seconds};

/// How the CLI is started ahead of time (`[prestart]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prestart {
    /// What it speaks on its standard input and output.
    pub protocol: Protocol,
    /// Argument vector; placeholders `{model}`, and an element `{args}` that is replaced by the arguments of the
    /// `[[prestart.when]]` blocks.
    pub argv: Vec<String>,
    /// Whether the model can be chosen at the claim. Default: it cannot.
    #[serde(default)]
    pub model: ModelMode,
    /// Efforts that can be chosen at the claim, by the names of `[efforts]`. Default: none.
    #[serde(default)]
    pub efforts: Vec<String>,
    /// Environment beside that of `[env]`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Credentials that it takes at the claim (`[[prestart.credentials]]`); with any other one, or with none, a
    /// prompt does not use it.
    pub credentials: Vec<LateCredential>,
    /// Arguments and environment that depend on the operator's upstream (`[[prestart.when]]`), applied in order.
    #[serde(default)]
    pub when: Vec<When>,
    /// Key `quiet_ms`, milliseconds: how long it must print nothing, once it is ready, before it is frozen.
    /// Default 200.
    #[serde(rename = "quiet_ms", deserialize_with = "milliseconds", default = "default_quiet")]
    pub quiet: Duration,
    /// Key `ready_timeout_s`, seconds: one that is not ready by then, at the run class, is thrown away. Default 30.
    #[serde(rename = "ready_timeout_s", deserialize_with = "seconds", default = "default_ready_timeout")]
    pub ready_timeout: Duration,
    /// Key `memory_mib`, MiB: what one holds while it waits, for the pool's arithmetic.
    #[serde(rename = "memory_mib", deserialize_with = "mebibytes")]
    pub memory_bytes: u64,
}

fn default_quiet() -> Duration {
    Duration::from_millis(200)
}

fn default_ready_timeout() -> Duration {
    Duration::from_secs(30)
}

fn milliseconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // A minute: longer is a mistake in the unit.
    match u64::deserialize(deserializer)? {
        value @ 0..=60_000 => Ok(Duration::from_millis(value)),
        value => Err(serde::de::Error::custom(format!("{value} ms is not between 0 and 60000"))),
    }
}

/// A protocol that can be spoken with a CLI over its standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// `codex app-server`: JSON-RPC, one thread, one turn.
    CodexAppServer,
    /// `claude -p --input-format stream-json --output-format stream-json --verbose --include-partial-messages`.
    ClaudeStreamJson,
    /// `gemini --acp`: the Agent Client Protocol, one session, one prompt.
    GeminiAcp,
}

/// Whether the model can be chosen at the claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelMode {
    /// With the prompt.
    Late,
    /// When it is started; a prompt for another model does not use it.
    #[default]
    Fixed,
}

/// A credential that is taken at the claim.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateCredential {
    /// `file:NAME` or `env:NAME`, one of `[credentials]`.
    pub credential: Condition,
    /// How it is handed over.
    pub by: HandOver,
}

/// How a credential is handed to a running CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandOver {
    /// The variable's value is an API key for the protocol's own login (codex, gemini).
    ApiKey,
    /// The file is codex's `auth.json`; its key or access token goes into the protocol's own login, and no file is
    /// needed. One whose token would have to be renewed first is refused.
    AuthJson,
    /// The variable is set in the running process (claude).
    Environment,
    /// The file is mounted into the credential directory, where the CLI looks for it (claude) or is told to look for
    /// it (gemini).
    File,
}
