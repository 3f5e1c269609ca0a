//! Which daemon is renewing a login, in a database that several share. A daemon that dies holds its lease until the time is
//! over, which is when no answer to it can come any more.

use super::error::VaultError;
use crate::store::Store;

/// Takes the lease if nobody has it; whether it is ours.
pub async fn take(
    store: &Store,
    (user, provider): (&str, &str),
    holder: &str,
    now_ms: i64,
    until_ms: i64,
) -> Result<bool, VaultError> {
    let sql = "INSERT INTO vault_refreshes (user_name, provider, holder, until_ms) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (user_name, provider) DO UPDATE SET holder = $3, until_ms = $4 \
               WHERE vault_refreshes.until_ms < $5";
    let done = sqlx::query(sql).bind(user).bind(provider).bind(holder).bind(until_ms).bind(now_ms);
    Ok(done.execute(store.pool()).await?.rows_affected() == 1)
}

/// Gives it back.
pub async fn release(store: &Store, holder: &str) -> Result<(), VaultError> {
    sqlx::query("DELETE FROM vault_refreshes WHERE holder = $1").bind(holder).execute(store.pool()).await?;
    Ok(())
}
