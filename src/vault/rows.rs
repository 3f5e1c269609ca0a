//! The rows of the vault, as they are in the database.

use sqlx::any::AnyRow;
use sqlx::{Any, Executor, Row};
use thaw_client::types::{self, CredentialKind, CredentialState};

use super::error::VaultError;
use super::names::Names;
use crate::store::Store;

/// Less than this before its end, an access token is about to expire, milliseconds.
const EXPIRING_MS: i64 = 10 * 60 * 1000;

/// Less than this before its end, a CLI renews its login, milliseconds: gemini and claude five minutes before it, codex when
/// it is over.
const RENEWAL_MS: i64 = 5 * 60 * 1000;

/// A user: the wrapped key, and the sealed list of what the user has.
#[derive(Debug, Clone)]
pub struct User {
    /// Whose.
    pub name: String,
    /// Id of the user's key.
    pub key_id: String,
    /// Id of the master key that it is wrapped with.
    pub master_key: String,
    /// The user's key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// What the user has, sealed.
    pub entries: Vec<u8>,
    /// Grows with each change.
    pub revision: i64,
    /// When the user was new, Unix milliseconds.
    pub created_at_ms: i64,
}

/// A credential: the sealed secret, and what is shown of it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// For which provider.
    pub provider: String,
    /// Grows with each change.
    pub version: u64,
    /// Id of the user's key that it is sealed with.
    pub key_id: String,
    /// Names of its files or of its variable.
    pub names: Names,
    /// The secret, sealed.
    pub sealed: Vec<u8>,
    /// What the secret says about itself.
    pub facts: Facts,
    /// Why the provider refused it.
    pub refused: Option<String>,
    /// Execution whose CLI renewed it, if it was not the user.
    pub renewed_by: Option<String>,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Unix milliseconds.
    pub updated_at_ms: i64,
    /// Unix milliseconds.
    pub used_at_ms: Option<i64>,
    /// Unix milliseconds.
    pub refreshed_at_ms: Option<i64>,
}

/// What a credential says about itself, as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What kind it is.
    pub kind: CredentialKind,
    /// Address of the account.
    pub account: Option<String>,
    /// Tells two contents apart.
    pub fingerprint: String,
    /// When its access token is over, Unix milliseconds.
    pub expires_at_ms: Option<i64>,
    /// Whether it has something to be renewed with.
    pub renewable: bool,
}

/// Everything that is stored of a user.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The user.
    pub user: User,
    /// Credentials, by provider.
    pub credentials: Vec<Credential>,
}

impl Facts {
    /// Whether a CLI can have made this of a credential with those facts: it renews a login of the same account, and leaves
    /// a key as it is.
    pub fn is_renewal_of(&self, before: &Self) -> bool {
        let is_same_account = before.account.is_none() || self.account == before.account;
        self.kind == before.kind && self.kind != CredentialKind::ApiKey && is_same_account
    }
}

impl Stored {
    /// The credential for a provider.
    pub fn credential(&self, provider: &str) -> Option<&Credential> {
        self.credentials.iter().find(|row| row.provider == provider)
    }

    /// About how much memory it takes, bytes.
    pub fn bytes(&self) -> usize {
        let credentials = self.credentials.iter().map(|row| row.sealed.len() + 512).sum::<usize>();
        self.user.entries.len() + credentials + 512
    }
}

impl Credential {
    fn state(&self, now_ms: i64) -> CredentialState {
        match (self.facts.expires_at_ms, self.facts.renewable) {
            _ if self.refused.is_some() => CredentialState::Refused,
            (Some(end), false) if end <= now_ms => CredentialState::Expired,
            (Some(end), _) if end - now_ms < EXPIRING_MS => CredentialState::Expiring,
            _ => CredentialState::Valid,
        }
    }

    /// Whether it is a login with something to renew it with.
    pub fn is_renewable_login(&self) -> bool {
        self.facts.renewable && self.facts.kind == CredentialKind::Login
    }

    /// Whether a CLI that gets it now will have to renew it.
    pub fn is_renewal_due(&self) -> bool {
        let is_near = self.facts.expires_at_ms.is_some_and(|end| end - now_ms() < RENEWAL_MS);
        is_near && self.is_renewable_login()
    }

    /// Whether an execution can do something with it.
    ///
    /// # Errors
    /// It was refused, or is over.
    pub fn usable(&self, user: &str) -> Result<(), VaultError> {
        let (user, provider) = (user.to_owned(), self.provider.clone());
        match self.state(now_ms()) {
            CredentialState::Valid | CredentialState::Expiring => Ok(()),
            CredentialState::Expired => Err(VaultError::Expired { user, provider }),
            CredentialState::Refused => {
                let reason = self.refused.clone().unwrap_or_default();
                Err(VaultError::Refused { user, provider, reason })
            }
        }
    }

    /// As shown by the API. `used_ms` is when it was used last, if that is not written down yet.
    pub fn shown(&self, user: &str, used_ms: Option<u64>, now_ms: u64) -> types::Credential {
        let used_ms = used_ms.and_then(|ms| i64::try_from(ms).ok()).max(self.used_at_ms);
        let (files, env) = self.names.shown();
        types::Credential {
            user: user.to_owned(),
            provider: self.provider.clone(),
            kind: self.facts.kind,
            files,
            env,
            account: self.facts.account.clone(),
            fingerprint: self.facts.fingerprint.clone(),
            version: self.version,
            state: self.state(i64::try_from(now_ms).unwrap_or(i64::MAX)),
            reason: self.refused.clone(),
            created_at: rfc3339(self.created_at_ms),
            updated_at: rfc3339(self.updated_at_ms),
            expires_at: self.facts.expires_at_ms.map(rfc3339),
            last_used_at: used_ms.map(rfc3339),
            last_refresh_at: self.refreshed_at_ms.map(rfc3339),
        }
    }
}

/// Now, Unix milliseconds.
pub fn now_ms() -> i64 {
    i64::try_from(crate::telemetry::unix_ms()).unwrap_or(i64::MAX)
}

/// Unix milliseconds as a date; what no calendar has is the farthest date that it has.
pub fn rfc3339(ms: i64) -> String {
    let date = chrono::DateTime::from_timestamp_millis(ms).unwrap_or(chrono::DateTime::<chrono::Utc>::MAX_UTC);
    date.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn user_of(row: &AnyRow) -> Result<User, sqlx::Error> {
    Ok(User {
        name: row.try_get("user_name")?,
        key_id: row.try_get("key_id")?,
        master_key: row.try_get("master_key")?,
        wrapped_key: row.try_get("wrapped_key")?,
        entries: row.try_get("entries")?,
        revision: row.try_get("revision")?,
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn credential_of(row: &AnyRow) -> Result<Credential, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    let name: String = row.try_get("name")?;
    Ok(Credential {
        provider: row.try_get("provider")?,
        // One that is negative was not written by us, and opens nothing.
        version: u64::try_from(row.try_get::<i64, _>("version")?).unwrap_or_default(),
        key_id: row.try_get("key_id")?,
        names: Names::parse(name),
        sealed: row.try_get("sealed")?,
        facts: Facts {
            kind: match kind.as_str() {
                "api_key" => CredentialKind::ApiKey,
                "login" => CredentialKind::Login,
                _ => CredentialKind::File,
            },
            account: row.try_get("account")?,
            fingerprint: row.try_get("fingerprint")?,
            expires_at_ms: row.try_get("expires_at_ms")?,
            renewable: row.try_get::<i64, _>("renewable")? != 0,
        },
        refused: row.try_get("refused")?,
        renewed_by: row.try_get("renewed_by")?,
        created_at_ms: row.try_get("created_at_ms")?,
        updated_at_ms: row.try_get("updated_at_ms")?,
        used_at_ms: row.try_get("used_at_ms")?,
        refreshed_at_ms: row.try_get("refreshed_at_ms")?,
    })
}

/// Everything of one user. Both tables are read in one transaction, so that they are of the same moment.
pub async fn user(store: &Store, name: &str) -> Result<Option<Stored>, VaultError> {
    let mut reading = store.begin().await?;
    if !store.is_exclusive() {
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *reading).await?;
    }
    let sql = "SELECT user_name, key_id, master_key, wrapped_key, entries, revision, created_at_ms FROM vault_users \
               WHERE user_name = $1";
    let Some(found) = sqlx::query(sql).bind(name).fetch_optional(&mut *reading).await? else { return Ok(None) };
    let rows = sqlx::query("SELECT * FROM user_cli_auth WHERE user_name = $1 ORDER BY provider")
        .bind(name)
        .fetch_all(&mut *reading)
        .await?;
    reading.commit().await?;
    let credentials = rows.iter().map(credential_of).collect::<Result<_, _>>()?;
    Ok(Some(Stored { user: user_of(&found)?, credentials }))
}

/// Users and their credentials, the ones that were used last first, until they take `bytes`; and whether these are all.
pub async fn all(store: &Store, bytes: usize) -> Result<(Vec<Stored>, bool), VaultError> {
    let sql = "SELECT vault_users.user_name FROM vault_users \
               LEFT JOIN user_cli_auth ON user_cli_auth.user_name = vault_users.user_name GROUP BY vault_users.user_name \
               ORDER BY MAX(COALESCE(used_at_ms, updated_at_ms, 0)) DESC";
    let names = sqlx::query(sql).fetch_all(store.pool()).await?;
    let (mut all, mut taken) = (Vec::new(), 0);
    for row in names {
        let Some(stored) = user(store, row.try_get::<&str, _>(0)?).await? else { continue };
        taken += stored.bytes();
        if taken > bytes {
            return Ok((all, false));
        }
        all.push(stored);
    }
    Ok((all, true))
}

/// Ids of the master keys that something is wrapped with, and for how many users.
pub async fn master_keys(store: &Store) -> Result<Vec<(String, u64)>, VaultError> {
    let rows = sqlx::query("SELECT master_key, COUNT(*) FROM vault_users GROUP BY master_key").fetch_all(store.pool());
    let count = |row: &AnyRow| Ok((row.try_get(0)?, u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or_default()));
    Ok(rows.await?.iter().map(count).collect::<Result<_, sqlx::Error>>()?)
}

/// How many credentials there are.
pub async fn count_credentials(store: &Store) -> Result<u64, VaultError> {
    let row = sqlx::query("SELECT COUNT(*) FROM user_cli_auth").fetch_one(store.pool()).await?;
    Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or_default())
}

/// Some users, by name behind `after`, whose key is wrapped with another master key than `current`.
pub async fn under_other_master_keys(
    store: &Store,
    current: &str,
    after: &str,
    most: i64,
) -> Result<Vec<User>, VaultError> {
    let sql = "SELECT user_name, key_id, master_key, wrapped_key, entries, revision, created_at_ms FROM vault_users \
               WHERE master_key <> $1 AND user_name > $2 ORDER BY user_name LIMIT $3";
    let rows = sqlx::query(sql).bind(current).bind(after).bind(most).fetch_all(store.pool()).await?;
    Ok(rows.iter().map(user_of).collect::<Result<_, _>>()?)
}

/// Replaces a user's wrapped key by the same one wrapped anew, unless somebody has changed it meanwhile.
pub async fn rewrap(store: &Store, before: &User, wrapped: &[u8], master_key: &str) -> Result<bool, VaultError> {
    let sql = "UPDATE vault_users SET wrapped_key = $1, master_key = $2 \
               WHERE user_name = $3 AND key_id = $4 AND master_key = $5";
    let done = sqlx::query(sql)
        .bind(wrapped)
        .bind(master_key)
        .bind(before.name.as_str())
        .bind(before.key_id.as_str())
        .bind(before.master_key.as_str());
    Ok(done.execute(store.pool()).await?.rows_affected() == 1)
}

/// Adds a user who is not there yet; whether nobody else was faster.
pub async fn add_user<'a>(to: impl Executor<'a, Database = Any>, user: &User) -> Result<bool, VaultError> {
    let sql = "INSERT INTO vault_users (user_name, key_id, master_key, wrapped_key, entries, revision, created_at_ms) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (user_name) DO NOTHING";
    let done = sqlx::query(sql)
        .bind(user.name.as_str())
        .bind(user.key_id.as_str())
        .bind(user.master_key.as_str())
        .bind(user.wrapped_key.as_slice())
        .bind(user.entries.as_slice())
        .bind(user.revision)
        .bind(user.created_at_ms);
    Ok(done.execute(to).await?.rows_affected() == 1)
}

/// Changes a user who has this revision; whether that was the case.
pub async fn change_user<'a>(
    to: impl Executor<'a, Database = Any>,
    user: &User,
    revision: i64,
) -> Result<bool, VaultError> {
    let sql = "UPDATE vault_users SET key_id = $1, master_key = $2, wrapped_key = $3, entries = $4, revision = $5 \
               WHERE user_name = $6 AND revision = $7";
    let done = sqlx::query(sql)
        .bind(user.key_id.as_str())
        .bind(user.master_key.as_str())
        .bind(user.wrapped_key.as_slice())
        .bind(user.entries.as_slice())
        .bind(user.revision)
        .bind(user.name.as_str())
        .bind(revision);
    Ok(done.execute(to).await?.rows_affected() == 1)
}

/// Writes a credential, whether or not there was one.
pub async fn put_credential<'a>(
    to: impl Executor<'a, Database = Any>,
    user: &str,
    row: &Credential,
) -> Result<(), VaultError> {
    let sql = "INSERT INTO user_cli_auth (user_name, provider, version, key_id, name, sealed, kind, account, fingerprint, \
               expires_at_ms, renewable, refused, created_at_ms, updated_at_ms, used_at_ms, refreshed_at_ms, renewed_by) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
               ON CONFLICT (user_name, provider) DO UPDATE SET version = $3, key_id = $4, name = $5, sealed = $6, kind = $7, \
               account = $8, fingerprint = $9, expires_at_ms = $10, renewable = $11, refused = $12, updated_at_ms = $14, \
               refreshed_at_ms = $16, renewed_by = $17";
    let kind = match row.facts.kind {
        CredentialKind::ApiKey => "api_key",
        CredentialKind::Login => "login",
        CredentialKind::File => "file",
    };
    sqlx::query(sql)
        .bind(user)
        .bind(row.provider.as_str())
        .bind(i64::try_from(row.version).unwrap_or(i64::MAX))
        .bind(row.key_id.as_str())
        .bind(row.names.as_str())
        .bind(row.sealed.as_slice())
        .bind(kind)
        .bind(row.facts.account.as_deref())
        .bind(row.facts.fingerprint.as_str())
        .bind(row.facts.expires_at_ms)
        .bind(i64::from(row.facts.renewable))
        .bind(row.refused.as_deref())
        .bind(row.created_at_ms)
        .bind(row.updated_at_ms)
        .bind(row.used_at_ms)
        .bind(row.refreshed_at_ms)
        .bind(row.renewed_by.as_deref())
        .execute(to)
        .await?;
    Ok(())
}

/// Removes a credential.
pub async fn remove_credential<'a>(
    to: impl Executor<'a, Database = Any>,
    user: &str,
    provider: &str,
) -> Result<(), VaultError> {
    let sql = "DELETE FROM user_cli_auth WHERE user_name = $1 AND provider = $2";
    sqlx::query(sql).bind(user).bind(provider).execute(to).await?;
    Ok(())
}

/// Removes a user's key, whose credentials nobody can read from then on; whether there was one.
pub async fn remove_user<'a>(to: impl Executor<'a, Database = Any>, user: &str) -> Result<bool, VaultError> {
    let done = sqlx::query("DELETE FROM vault_users WHERE user_name = $1").bind(user).execute(to);
    Ok(done.await?.rows_affected() == 1)
}

/// Removes all credentials of a user; how many there were.
pub async fn remove_credentials<'a>(to: impl Executor<'a, Database = Any>, user: &str) -> Result<u64, VaultError> {
    let done = sqlx::query("DELETE FROM user_cli_auth WHERE user_name = $1").bind(user).execute(to);
    Ok(done.await?.rows_affected())
}

/// Notes when a credential was used last.
pub async fn note_use<'a>(
    to: impl Executor<'a, Database = Any>,
    user: &str,
    provider: &str,
    at_ms: i64,
) -> Result<(), VaultError> {
    let sql = "UPDATE user_cli_auth SET used_at_ms = $1 WHERE user_name = $2 AND provider = $3 \
               AND (used_at_ms IS NULL OR used_at_ms < $1)";
    sqlx::query(sql).bind(at_ms).bind(user).bind(provider).execute(to).await?;
    Ok(())
}
