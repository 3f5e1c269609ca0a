//! `[log] format` and `[metrics]`.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `[metrics]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Address that `/metrics`, and nothing else, is served on besides the API's socket, as `127.0.0.1:9477`; none when
    /// absent. Plain HTTP for whoever can reach it.
    pub listen: Option<SocketAddr>,
    /// Connections there at the same time; further ones wait.
    pub max_connections: usize,
    /// Seconds for which a client there may be silent, or take nothing of its answer.
    pub timeout_seconds: u64,
    /// Milliseconds for which an answer there is given again: each new one reads files of every container.
    pub max_age_ms: u64,
    /// Whether there are metrics of each execution that runs, which name it. Without them there are sums by provider.
    pub per_execution: bool,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self { listen: None, max_connections: 16, timeout_seconds: 10, max_age_ms: 1000, per_execution: true }
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Time (UTC), level, target and fields; coloured on a terminal.
    Human,
    /// One JSON object per line; `span` has the ids that it belongs to.
    Json,
    /// For systemd: an entry with fields of its own (systemd.journal-fields(7)). Where no journal listens, a line without
    /// time and colour, the level as a `<N>` prefix (sd-daemon(3)).
    Journald,
}

impl LogFormat {
    /// [`LogFormat::Journald`] when systemd connected standard error to the journal (it then sets `JOURNAL_STREAM`),
    /// otherwise [`LogFormat::Human`].
    pub fn detect() -> Self {
        if std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal() {
            Self::Journald
        } else {
            Self::Human
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, in the syntax of `RUST_LOG` (which overrides it).
    pub filter: String,
    /// Form of a line; the journal's form under systemd and `human` elsewhere when absent.
    pub format: Option<LogFormat>,
    /// Most bytes of log lines that wait for whoever reads them; further lines are dropped, counted, and said to be missing.
    pub queue_bytes: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: None, queue_bytes: 4 << 20 }
    }
}
