//! Rows of audit records.

use sqlx::any::AnyRow;
use sqlx::{Any, Executor, Row};
use thaw_client::types::AuditAction;

use super::error::VaultError;
use super::record::{Asker, Query, Record};
use crate::store::{Store, StoreError};

/// The word of the API, which is the word in the database.
fn word(action: AuditAction) -> String {
    let word = serde_json::to_value(action).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Writes one.
pub async fn add<'a>(to: impl Executor<'a, Database = Any>, record: &Record) -> Result<(), VaultError> {
    let sql = "INSERT INTO vault_audit (id, at_ms, user_name, provider, action, version, execution, detail, peer_uid, \
               peer_pid) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sqlx::query(sql)
        .bind(record.id.as_str())
        .bind(record.at_ms)
        .bind(record.user.as_str())
        .bind(record.provider.as_deref())
        .bind(word(record.action))
        .bind(record.version.and_then(|version| i64::try_from(version).ok()))
        .bind(record.execution.as_deref())
        .bind(record.detail.as_deref())
        .bind(record.by.uid.map(i64::from))
        .bind(record.by.pid.map(i64::from))
        .execute(to)
        .await?;
    Ok(())
}

fn record_of(row: &AnyRow) -> Result<Record, VaultError> {
    let action: String = row.try_get("action")?;
    let action = serde_json::from_value(action.into()).map_err(|_| {
        let problem = "an audit record has an action that this program does not know".to_owned();
        VaultError::Store(StoreError::Damaged(problem))
    })?;
    let number = |column: &str| row.try_get::<Option<i64>, _>(column);
    Ok(Record {
        id: row.try_get("id")?,
        at_ms: row.try_get("at_ms")?,
        user: row.try_get("user_name")?,
        provider: row.try_get("provider")?,
        action,
        version: number("version")?.and_then(|version| u64::try_from(version).ok()),
        execution: row.try_get("execution")?,
        detail: row.try_get("detail")?,
        by: Asker {
            uid: number("peer_uid")?.and_then(|uid| u32::try_from(uid).ok()),
            pid: number("peer_pid")?.and_then(|pid| i32::try_from(pid).ok()),
        },
    })
}

/// Those that are asked for, newest first, and one more if there is one.
pub async fn list(store: &Store, query: &Query) -> Result<Vec<Record>, VaultError> {
    let sql = "SELECT * FROM vault_audit WHERE user_name = $1 AND ($2 = '' OR provider = $2) AND ($3 = '' OR id < $3) \
               ORDER BY id DESC LIMIT $4";
    let rows = sqlx::query(sql)
        .bind(query.user.as_str())
        .bind(query.provider.as_deref().unwrap_or_default())
        .bind(query.cursor.as_deref().unwrap_or_default())
        .bind(i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1))
        .fetch_all(store.pool())
        .await?;
    rows.iter().map(record_of).collect()
}

/// Removes those from before a time, Unix milliseconds.
pub async fn remove_before(store: &Store, at_ms: i64) -> Result<(), VaultError> {
    sqlx::query("DELETE FROM vault_audit WHERE at_ms < $1").bind(at_ms).execute(store.pool()).await?;
    Ok(())
}

/// Removes all but the newest `most`.
pub async fn keep_newest(store: &Store, most: i64) -> Result<(), VaultError> {
    let sql = "DELETE FROM vault_audit WHERE id <= (SELECT id FROM vault_audit ORDER BY id DESC LIMIT 1 OFFSET $1)";
    sqlx::query(sql).bind(most).execute(store.pool()).await?;
    Ok(())
}
