//! How a provider's CLI logs in (`[[login]]`): what is started, how what it prints is understood, and what it leaves.

use std::collections::BTreeMap;

use serde::Deserialize;
use thaw_client::types::LoginMethod;

/// Stands in `redirect` for the port that the CLI listens on.
pub const PORT: &str = "{port}";

/// One way to log in.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// What the user has to do: `callback` or `device`.
    pub method: LoginMethod,
    /// Argument vector, in a container without any credential.
    pub argv: Vec<String>,
    /// Environment, besides that of every prompt.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Lines that are written to its standard input, which then stays open. Absent: it reads nothing.
    #[serde(default)]
    pub input: Vec<String>,
    /// How the address begins that the user has to open, as the CLI prints it.
    pub url: String,
    /// How the code looks that the user has to enter there, with `*` for any characters: a word of A-Z, 0-9 and `-`.
    #[serde(default)]
    pub code: Option<String>,
    /// Where the provider is to send the browser, if the CLI prints another address: `{port}` is the one port that it listens
    /// on.
    #[serde(default)]
    pub redirect: Option<String>,
    /// Path of the page that the CLI sends the browser to behind a callback, if it has to be fetched inside.
    #[serde(default)]
    pub follow: Option<String>,
    /// The credential file that the CLI leaves.
    pub file: String,
    /// What ends it: the file, or that the CLI ends by itself too.
    #[serde(default)]
    pub until: Until,
}

/// When a login is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The file is there, and the CLI has ended.
    #[default]
    Exit,
    /// The file is there.
    File,
}
