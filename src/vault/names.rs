//! What the parts of a credential are called.

use thaw_client::types::Credentials;

/// Names of a credential's files (`file:a/b`), or of its variable (`env:NAME`), as they are bound to the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(String);

impl Names {
    /// Those of a secret. No file's name has a slash.
    pub fn of(credentials: &Credentials) -> Self {
        let join = |names: Vec<&String>| names.into_iter().map(String::as_str).collect::<Vec<_>>().join("/");
        match credentials.env.is_empty() {
            true => Self(format!("file:{}", join(credentials.files.keys().collect()))),
            false => Self(format!("env:{}", join(credentials.env.keys().collect()))),
        }
    }

    /// As stored.
    pub fn parse(text: String) -> Self {
        Self(text)
    }

    /// As stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Files, and variables.
    pub fn shown(&self) -> (Vec<String>, Vec<String>) {
        let list = |names: &str| names.split('/').map(str::to_owned).collect();
        match self.0.split_once(':') {
            Some(("file", names)) => (list(names), Vec::new()),
            Some(("env", names)) => (Vec::new(), list(names)),
            _ => (Vec::new(), Vec::new()),
        }
    }
}
