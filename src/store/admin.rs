//! What an operator does with the database: `thawd store check|backup|restore`.

use std::path::Path;

use sqlx::{AssertSqlSafe, Row};

use super::{NEWEST, Settings, Store, StoreError};

/// What a check found that is right.
#[derive(Debug)]
pub struct Checked {
    /// Version of the schema.
    pub version: i64,
    /// Users of the vault.
    pub users: i64,
    /// Their credentials.
    pub credentials: i64,
}

/// Reads the whole database and says whether it is sound.
///
/// # Errors
/// It does not exist, is damaged, or is newer than this program.
pub async fn check(settings: &Settings) -> Result<Checked, StoreError> {
    if settings.url.is_none() && !settings.file.is_file() {
        return Err(StoreError::Refused(format!("there is no database at {}", settings.file.display())));
    }
    let store = Store::connect(settings).await?;
    if store.is_sqlite {
        let rows = sqlx::query("PRAGMA integrity_check").fetch_all(&store.pool).await?;
        let lines = rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<Result<Vec<_>, _>>()?;
        if lines != ["ok"] {
            return Err(StoreError::Damaged(lines.join("; ")));
        }
    }
    let version = store.version().await?;
    if version > NEWEST {
        return Err(StoreError::TooNew { found: version, known: NEWEST });
    }
    if version == 0 {
        return Err(StoreError::Refused("it has no tables of thawd yet".to_owned()));
    }
    let count = async |sql: &'static str| -> Result<i64, StoreError> {
        Ok(sqlx::query(sql).fetch_one(&store.pool).await?.try_get(0)?)
    };
    let users = count("SELECT COUNT(*) FROM vault_users").await?;
    let credentials = count("SELECT COUNT(*) FROM user_cli_auth").await?;
    store.pool.close().await;
    Ok(Checked { version, users, credentials })
}

/// Writes a copy of the whole database, also while the daemon uses it.
///
/// # Errors
/// The copy exists already or cannot be written, or the database is not SQLite.
pub async fn backup(settings: &Settings, copy: &Path) -> Result<(), StoreError> {
    if settings.url.is_some() {
        return Err(StoreError::Refused("use pg_dump for a database of PostgreSQL".to_owned()));
    }
    if copy.exists() {
        return Err(StoreError::Refused(format!("{} exists already", copy.display())));
    }
    check(settings).await?;
    let store = Store::connect(settings).await?;
    let path = copy.to_str().ok_or_else(|| StoreError::Refused("the name must be UTF-8".to_owned()))?;
    super::make_private(copy)?;
    let copied = sqlx::query(AssertSqlSafe(format!("VACUUM INTO '{}'", path.replace('\'', "''"))));
    let outcome = copied.execute(&store.pool).await;
    store.pool.close().await;
    if let Err(error) = outcome {
        // Of no use to anybody: half a copy.
        let _ = std::fs::remove_file(copy);
        return Err(error.into());
    }
    let durable = std::fs::File::open(copy).and_then(|file| file.sync_all());
    durable.map_err(|source| StoreError::File { path: copy.to_owned(), source })
}

/// Puts a copy in the place of the database; the one before is kept beside, as `store.db.before-restore`. The daemon must
/// not run: the caller holds the lock on its directories.
///
/// # Errors
/// The copy is damaged or newer than this program, or cannot be written.
pub async fn restore(settings: &Settings, copy: &Path) -> Result<Checked, StoreError> {
    if settings.url.is_some() {
        return Err(StoreError::Refused("use psql or pg_restore for a database of PostgreSQL".to_owned()));
    }
    let from = Settings { file: copy.to_owned(), ..settings.clone() };
    check(&from).await?;
    let file = &settings.file;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::File { path, source }
    };
    let fresh = file.with_extension("db.restoring");
    let _ = std::fs::remove_file(&fresh);
    // Of SQLite's own making, so that what the copy has in a log beside it comes too.
    backup(&from, &fresh).await?;
    if file.exists() {
        // Empties the log of the present one into it: both would not fit together afterwards.
        let before = file.with_extension("db.before-restore");
        let present = Store::connect(settings).await?;
        present.forget_deleted().await?;
        present.pool.close().await;
        std::fs::rename(file, &before).map_err(failed(&before))?;
    }
    for log in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(file.with_extension(log));
    }
    std::fs::rename(&fresh, file).map_err(failed(file))?;
    if let Some(directory) = file.parent() {
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))?;
    }
    check(settings).await
}
