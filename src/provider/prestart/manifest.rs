//! Shape of a manifest's `[prestart]`; `docs/providers.md` has examples.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::provider::manifest::{Condition, When, mebibytes, seconds};

/// How the CLI is prestarted (`[prestart]`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prestart {
    /// Protocol on the CLI's standard input and output.
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
    /// Credentials that the CLI can take at the claim (`[[prestart.credentials]]`). A prompt with another credential,
    /// or with none, starts a process of its own.
    pub credentials: Vec<LateCredential>,
    /// Arguments and environment that depend on the operator's upstream (`[[prestart.when]]`), applied in order.
    #[serde(default)]
    pub when: Vec<When>,
    /// Key `quiet_ms`, milliseconds: time without output, once the CLI is ready, after which it is frozen. Default 200.
    #[serde(rename = "quiet_ms", deserialize_with = "milliseconds", default = "default_quiet")]
    pub quiet: Duration,
    /// Key `ready_timeout_s`, seconds: a CLI that is not ready by then, at the run class, is discarded. Default 30.
    #[serde(rename = "ready_timeout_s", deserialize_with = "seconds", default = "default_ready_timeout")]
    pub ready_timeout: Duration,
    /// Key `memory_mib`, MiB: memory of a waiting CLI, for the reservation while one is created.
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
    // At most a minute: a longer value is a mistake in the unit.
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

/// When the model is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelMode {
    /// At the claim, with the prompt.
    Late,
    /// At the start. A prompt for another model starts a process of its own.
    #[default]
    Fixed,
}

/// A credential that the CLI can take at the claim.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateCredential {
    /// `file:NAME` or `env:NAME`, one of `[credentials]`.
    pub credential: Condition,
    /// How the credential is passed to the CLI.
    pub by: HandOver,
}

/// How a credential is passed to a running CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandOver {
    /// The variable's value is an API key for the protocol's own login (codex, gemini).
    ApiKey,
    /// The file is codex's `auth.json`: its key or access token goes into the protocol's own login, and no file is
    /// mounted. A file whose token would have to be renewed first is refused.
    AuthJson,
    /// The variable is set in the running process (claude).
    Environment,
    /// The file is mounted into the credential directory, where the CLI looks for it by default (claude) or by its
    /// settings (gemini).
    File,
}
