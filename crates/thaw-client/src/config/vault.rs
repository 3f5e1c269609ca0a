//! `[store]` and `[vault]`: the database, and the credentials of users in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most connections to PostgreSQL: what it takes by default (`max_connections`).
const MAX_CONNECTIONS: u32 = 100;

/// `[store]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `postgres://…`, which several daemons may share; SQLite in `STATE_DIR/store.db` when absent.
    pub url: Option<String>,
    /// Connections to PostgreSQL.
    pub connections: u32,
    /// Milliseconds for which a request waits for a connection; then it gets 503.
    pub timeout_ms: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: None, connections: 4, timeout_ms: 5000 }
    }
}

impl Store {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return Err(("store.connections".to_owned(), format!("must be from 1 to {MAX_CONNECTIONS}")));
        }
        Ok(())
    }
}

/// `[vault]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vault {
    /// File with the master key, mode 0600, outside of `paths.state_dir`. Without it, without `key_command` and without
    /// systemd's credential `thawd.vault-key`, there is no vault.
    pub key_file: Option<PathBuf>,
    /// Program and arguments that print the master key.
    pub key_command: Vec<String>,
    /// Seconds for which that command may run.
    pub key_command_timeout_seconds: u64,
    /// Largest credential of one user for one provider, bytes.
    pub max_credential_bytes: usize,
    /// Encrypted credentials that are kept in memory, bytes, so that an execution does not wait for the disk. Only with
    /// SQLite: in a shared database, another daemon may have changed them.
    pub cache_bytes: usize,
    /// Seconds for which audit records are kept.
    pub audit_seconds: u64,
    /// Audit records that are kept of all users together; the oldest go first.
    pub audit_records: u64,
    /// Seconds before a login is renewed, besides the time that the execution may take that gets it: for providers whose
    /// logins the daemon renews.
    pub refresh_ahead_seconds: u64,
    /// Seconds that a provider has to renew a login, with all tries.
    pub refresh_timeout_seconds: u64,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            key_file: None,
            key_command: Vec::new(),
            key_command_timeout_seconds: 10,
            max_credential_bytes: 64 << 10,
            cache_bytes: 64 << 20,
            audit_seconds: 90 * 24 * 60 * 60,
            audit_records: 100_000,
            refresh_ahead_seconds: 300,
            refresh_timeout_seconds: 20,
        }
    }
}

impl Vault {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if self.key_file.is_some() && !self.key_command.is_empty() {
            let problem = "and `vault.key_command` are both set; the master key comes from one place";
            return Err(("vault.key_file".to_owned(), problem.to_owned()));
        }
        if self.key_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(("vault.key_file".to_owned(), "must be an absolute path".to_owned()));
        }
        Ok(())
    }
}
