//! The schema, and how it came to be. Each migration is one transaction, and none is ever changed once it was released:
//! what has to become different is a new one. There is no way back; a backup is.

use super::{Changes, Store, StoreError};

/// Newest version of the schema.
pub const NEWEST: i64 = MIGRATIONS.len() as i64;

/// Version n is reached by the n-th. `{blob}` stands for the type of bytes, which the databases name differently.
const MIGRATIONS: [&[&str]; 5] = [
    &[
        // A user of the vault. `wrapped_key` is the user's key, encrypted with the master key `master_key`; `entries` is
        // what the user has, encrypted with the user's key, so that a row that is missing or from earlier is noticed.
        "CREATE TABLE vault_users (
        user_name TEXT PRIMARY KEY NOT NULL,
        key_id TEXT NOT NULL,
        master_key TEXT NOT NULL,
        wrapped_key {blob} NOT NULL,
        entries {blob} NOT NULL,
        revision BIGINT NOT NULL,
        created_at_ms BIGINT NOT NULL
    )",
        // A credential. `sealed` is the secret, encrypted with the user's key; the other columns are what is shown of it.
        "CREATE TABLE user_cli_auth (
        user_name TEXT NOT NULL,
        provider TEXT NOT NULL,
        version BIGINT NOT NULL,
        key_id TEXT NOT NULL,
        name TEXT NOT NULL,
        sealed {blob} NOT NULL,
        kind TEXT NOT NULL,
        account TEXT,
        fingerprint TEXT NOT NULL,
        expires_at_ms BIGINT,
        renewable BIGINT NOT NULL,
        refused TEXT,
        renewed_by TEXT,
        created_at_ms BIGINT NOT NULL,
        updated_at_ms BIGINT NOT NULL,
        used_at_ms BIGINT,
        refreshed_at_ms BIGINT,
        PRIMARY KEY (user_name, provider)
    )",
    ],
    &[
        // What happened to credentials. No secret is in it.
        "CREATE TABLE vault_audit (
        id TEXT PRIMARY KEY NOT NULL,
        at_ms BIGINT NOT NULL,
        user_name TEXT NOT NULL,
        provider TEXT,
        action TEXT NOT NULL,
        version BIGINT,
        execution TEXT,
        detail TEXT,
        peer_uid BIGINT,
        peer_pid BIGINT
    )",
        "CREATE INDEX vault_audit_of_user ON vault_audit (user_name, id)",
        "CREATE INDEX vault_audit_at ON vault_audit (at_ms)",
        // Which daemon is renewing which login, so that others wait for it: with a database that several share.
        "CREATE TABLE vault_refreshes (
        user_name TEXT NOT NULL,
        provider TEXT NOT NULL,
        holder TEXT NOT NULL,
        until_ms BIGINT NOT NULL,
        PRIMARY KEY (user_name, provider)
    )",
    ],
    &[
        // A sandbox of this host. `env_names`, `labels` and `lifecycle` are JSON; values of variables are not written down.
        "CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY NOT NULL,
        user_name TEXT NOT NULL,
        name TEXT,
        template TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT,
        since_ms BIGINT NOT NULL,
        created_at_ms BIGINT NOT NULL,
        used_at_ms BIGINT NOT NULL,
        env_names TEXT NOT NULL,
        labels TEXT NOT NULL,
        lifecycle TEXT NOT NULL
    )",
    ],
    &[
        // Size of a sandbox's root to write to, and digest of the image below it.
        "ALTER TABLE sandboxes ADD COLUMN storage_bytes BIGINT",
        "ALTER TABLE sandboxes ADD COLUMN image TEXT",
    ],
    &[
        // Which egress identity of this host's configuration a user has.
        "CREATE TABLE egress_allocations (
        user_name TEXT PRIMARY KEY NOT NULL,
        identity TEXT NOT NULL,
        allocated_at_ms BIGINT NOT NULL
    )",
    ],
];

/// Number by which PostgreSQL knows the lock that daemons take in turns for this: `thawd` in ASCII.
const LOCK: i64 = 0x0074_6861_7764;

/// Brings the schema up to date.
///
/// # Errors
/// It is newer than this program, or the database fails.
pub(super) async fn apply(store: &Store) -> Result<(), StoreError> {
    let found = store.version().await?;
    if found > NEWEST {
        return Err(StoreError::TooNew { found, known: NEWEST });
    }
    if found == NEWEST {
        return Ok(());
    }
    let mut changes = store.begin().await?;
    if !store.is_sqlite {
        Store::run(&mut changes, format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    }
    let table =
        "CREATE TABLE IF NOT EXISTS thawd_schema (version BIGINT PRIMARY KEY NOT NULL, applied_at_ms BIGINT NOT NULL)";
    Store::run(&mut changes, table.to_owned()).await?;
    // Another daemon may have been faster.
    let newest = sqlx::query("SELECT MAX(version) FROM thawd_schema").fetch_one(&mut *changes).await?;
    let reached = sqlx::Row::try_get::<Option<i64>, _>(&newest, 0)?.unwrap_or_default();
    for version in reached + 1..=NEWEST {
        migrate(&mut changes, version, if store.is_sqlite { "BLOB" } else { "BYTEA" }).await?;
    }
    changes.commit().await?;
    tracing::info!(from = found, to = NEWEST, "the schema of the database is up to date");
    Ok(())
}

async fn migrate(changes: &mut Changes, version: i64, blob: &str) -> Result<(), StoreError> {
    let index = usize::try_from(version - 1).unwrap_or_default();
    for statement in MIGRATIONS[index] {
        Store::run(changes, statement.replace("{blob}", blob)).await?;
    }
    let now = i64::try_from(crate::telemetry::unix_ms()).unwrap_or(i64::MAX);
    sqlx::query("INSERT INTO thawd_schema (version, applied_at_ms) VALUES ($1, $2)")
        .bind(version)
        .bind(now)
        .execute(&mut **changes)
        .await?;
    Ok(())
}
