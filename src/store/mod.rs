//! The database of the daemon: SQLite in `paths.state_dir`, or PostgreSQL when `store.url` names one.
//!
//! It owns the connection, the schema and its migrations ([`migrations`]), and what an operator does with it ([`admin`]).
//! Who keeps something here writes his own queries, in the SQL that both databases share: `$1` placeholders, `BIGINT`,
//! `TEXT` and the blob type of the database.
//!
//! SQLite has one connection, in WAL mode, and a commit is on the disk before it returns (`synchronous = FULL`): a renewed
//! token must not be lost to a power cut, since the old one is worthless by then. Deliberately absent: an ORM, queries
//! checked against a database at build time, and migrations back.

pub mod admin;
mod migrations;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row, Transaction};

pub use migrations::NEWEST;

/// Which database it is, and how it is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `postgres://…`; SQLite when absent.
    pub url: Option<String>,
    /// The file of SQLite.
    pub file: PathBuf,
    /// Connections to PostgreSQL at most.
    pub connections: u32,
    /// How long a request waits for a connection.
    pub timeout: Duration,
}

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is none.
    #[error("`store.url` {0}")]
    Url(&'static str),
    /// The file cannot be made.
    #[error("cannot make {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A newer program has changed the schema.
    #[error(
        "the database has schema version {found}, and this program knows {known}: a newer thawd has used it. Install that \
         version, or restore a backup from before (`thawd store restore`)"
    )]
    TooNew {
        /// Its version.
        found: i64,
        /// Newest version that this program knows.
        known: i64,
    },
    /// What is in it is not what this program wrote.
    #[error("the database is damaged: {0}; restore a backup (`thawd store restore`)")]
    Damaged(String),
    /// Not possible with this kind of database, or not now.
    #[error("{0}")]
    Refused(String),
    /// The database answered with an error, or not at all.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
}

impl StoreError {
    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(_) | Self::File { .. })
    }
}

/// An open database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    is_sqlite: bool,
}

/// Changes that happen together or not at all.
pub type Changes = Transaction<'static, Any>;

impl Store {
    /// Opens the database, makes it if it is SQLite's and does not exist, and brings its schema up to date.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(settings: &Settings) -> Result<Self, StoreError> {
        if settings.url.is_none() {
            make_private(&settings.file)?;
        }
        let this = Self::connect(settings).await?;
        migrations::apply(&this).await?;
        Ok(this)
    }

    /// Connects without making or changing anything.
    async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let (url, is_sqlite) = match &settings.url {
            Some(url) => (checked_url(url)?.to_owned(), false),
            None => (sqlite_url(&settings.file), true),
        };
        let options = AnyPoolOptions::new().acquire_timeout(settings.timeout);
        let options = match is_sqlite {
            // One owner of the file; it is never closed for being idle.
            true => options.max_connections(1).idle_timeout(None).max_lifetime(None).after_connect(|connection, _| {
                Box::pin(async move {
                    for pragma in PRAGMAS {
                        sqlx::query(pragma).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            }),
            false => options.max_connections(settings.connections),
        };
        Ok(Self { pool: options.connect(&url).await?, is_sqlite })
    }

    /// Whether nobody else changes what is in it.
    pub fn is_exclusive(&self) -> bool {
        self.is_sqlite
    }

    /// The connections, for a single query.
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins changes that happen together; dropped without a commit, nothing has happened.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn begin(&self) -> Result<Changes, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// Overwrites what was deleted in the log that SQLite writes ahead, so that no copy of it stays on the disk.
    ///
    /// # Errors
    /// The database fails.
    pub async fn forget_deleted(&self) -> Result<(), StoreError> {
        if self.is_sqlite {
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_all(&self.pool).await?;
        }
        Ok(())
    }

    /// Version of the schema; 0 when there is none yet.
    async fn version(&self) -> Result<i64, StoreError> {
        let exists = match self.is_sqlite {
            true => "SELECT COUNT(*) FROM sqlite_master WHERE name = 'thawd_schema'",
            false => {
                "SELECT COUNT(*) FROM information_schema.tables WHERE table_name = 'thawd_schema' \
                      AND table_schema = current_schema()"
            }
        };
        if sqlx::query(exists).fetch_one(&self.pool).await?.try_get::<i64, _>(0)? == 0 {
            return Ok(0);
        }
        let newest = sqlx::query("SELECT MAX(version) FROM thawd_schema").fetch_one(&self.pool).await?;
        Ok(newest.try_get::<Option<i64>, _>(0)?.unwrap_or_default())
    }

    /// Runs text that is put together by this room.
    async fn run(changes: &mut Changes, sql: String) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut **changes).await?;
        Ok(())
    }
}

/// How SQLite is used, for each connection. What was deleted is overwritten, and a damaged schema runs no code.
const PRAGMAS: [&str; 6] = [
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
];

/// The address, if it may be used. A password in it would stand in a configuration file that others read.
fn checked_url(url: &str) -> Result<&str, StoreError> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let Some(rest) = rest else {
        return Err(StoreError::Url("must begin with postgres://; without it SQLite in `paths.state_dir` is used"));
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    if user.is_some_and(|user| user.contains(':')) || rest.contains("password=") {
        return Err(StoreError::Url(
            "has a password; put that into the file that PGPASSFILE names, mode 0600, or let PostgreSQL trust the socket",
        ));
    }
    Ok(url)
}

/// Characters of a path that mean something in an address are escaped.
fn sqlite_url(file: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut url = "sqlite://".to_owned();
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => url.push(char::from(*byte)),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// Makes the file for its owner alone; SQLite gives its other files the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    made.map(drop).map_err(|source| StoreError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{checked_url, sqlite_url};

    #[test]
    fn an_address_names_postgresql_and_has_no_password() {
        assert!(checked_url("postgres://thawd@db.example:5432/thawd?sslmode=verify-full").is_ok());
        assert!(checked_url("postgresql:///thawd?host=/run/postgresql").is_ok());
        for (bad, why) in [
            ("mysql://x", "must begin with postgres://"),
            ("postgres://thawd:hunter2@db/thawd", "has a password"),
            ("postgres://db/thawd?user=a&password=hunter2", "has a password"),
        ] {
            let error = checked_url(bad).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_path_stays_one_in_an_address() {
        assert_eq!(sqlite_url(Path::new("/var/lib/thawd/store.db")), "sqlite:///var/lib/thawd/store.db");
        assert_eq!(sqlite_url(Path::new("/a b/50%?x#y")), "sqlite:///a%20b/50%25%3Fx%23y");
    }
}
