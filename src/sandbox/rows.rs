//! The sandboxes in the database: written behind, the newest state of each, and at once where somebody waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::Row as _;
use tokio::sync::{Notify, OnceCell};

use crate::store::{self, Store, StoreError};
use thaw_client::types::{SandboxLifecycle, SandboxReason, SandboxState};

/// Time in which changes come together before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(200);

/// Pause after a failed write.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A sandbox as it is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// Name that its user gave it.
    pub name: Option<String>,
    /// The provider whose container it is.
    pub template: String,
    /// State.
    pub state: SandboxState,
    /// Why it is in that state.
    pub reason: SandboxReason,
    /// More about that.
    pub detail: Option<String>,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// When it was created, Unix milliseconds.
    pub created_at_ms: u64,
    /// When it was last used, Unix milliseconds.
    pub used_at_ms: u64,
    /// Names of its variables.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it is frozen, stopped and destroyed.
    pub lifecycle: SandboxLifecycle,
    /// Size of its root to write to, bytes, if it has one.
    pub storage_bytes: Option<u64>,
    /// Digest of the image below that.
    pub image: Option<String>,
}

/// What is to be written of one sandbox; `None` to remove it.
type Change = Option<Box<Row>>;

/// The database, which is made when there is something to write.
#[derive(Debug)]
pub struct Database {
    settings: store::Settings,
    open: OnceCell<Store>,
}

impl Database {
    /// One that is open, or that is opened when it is needed.
    pub fn new(settings: store::Settings, open: Option<Store>) -> Self {
        Self { settings, open: OnceCell::new_with(open) }
    }

    async fn store(&self) -> Result<&Store, StoreError> {
        self.open.get_or_try_init(|| Store::open(&self.settings)).await
    }
}

/// The rows. One task writes behind.
#[derive(Debug)]
pub struct Rows {
    /// `None` where nothing can be written.
    database: Option<Database>,
    changed: Mutex<BTreeMap<String, Change>>,
    work: Notify,
    writing: tokio::sync::Mutex<()>,
}

fn damaged(id: &str, column: &str) -> StoreError {
    StoreError::Damaged(format!("sandbox {id}: `{column}`"))
}

/// A time as the database has it.
fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Rows {
    /// Rows of `database`.
    pub fn new(database: Option<Database>) -> Arc<Self> {
        let (changed, work, writing) = (Mutex::default(), Notify::new(), tokio::sync::Mutex::default());
        let this = Arc::new(Self { database, changed, work, writing });
        if this.database.is_some() {
            tokio::spawn(Arc::clone(&this).write_behind());
        }
        this
    }

    /// Whether anything can be written.
    pub fn is_writable(&self) -> bool {
        self.database.is_some()
    }

    fn changed(&self) -> MutexGuard<'_, BTreeMap<String, Change>> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    ///
    /// # Errors
    /// The database fails, or has something that this program did not write.
    pub async fn all(store: &Store) -> Result<Vec<Row>, StoreError> {
        let rows = sqlx::query("SELECT * FROM sandboxes ORDER BY id").fetch_all(store.pool()).await?;
        let rows = rows.iter().map(|row| {
            let id: String = row.try_get("id")?;
            let word = |column: &str| row.try_get::<String, _>(column);
            let time = |column: &str| {
                let ms = row.try_get::<i64, _>(column)?;
                u64::try_from(ms).map_err(|_| damaged(&id, column))
            };
            let (state, reason) = (word("state")?, word("reason")?);
            Ok(Row {
                user: word("user_name")?,
                name: row.try_get("name")?,
                template: word("template")?,
                state: SandboxState::ALL
                    .into_iter()
                    .find(|known| known.name() == state)
                    .ok_or_else(|| damaged(&id, "state"))?,
                reason: SandboxReason::ALL
                    .into_iter()
                    .find(|known| known.name() == reason)
                    .ok_or_else(|| damaged(&id, "reason"))?,
                detail: row.try_get("detail")?,
                since_ms: time("since_ms")?,
                created_at_ms: time("created_at_ms")?,
                used_at_ms: time("used_at_ms")?,
                env: serde_json::from_str(&word("env_names")?).map_err(|_| damaged(&id, "env_names"))?,
                labels: serde_json::from_str(&word("labels")?).map_err(|_| damaged(&id, "labels"))?,
                lifecycle: serde_json::from_str(&word("lifecycle")?).map_err(|_| damaged(&id, "lifecycle"))?,
                storage_bytes: row
                    .try_get::<Option<i64>, _>("storage_bytes")?
                    .map(|bytes| u64::try_from(bytes).map_err(|_| damaged(&id, "storage_bytes")))
                    .transpose()?,
                image: row.try_get("image")?,
                id,
            })
        });
        rows.collect()
    }

    /// Writes it soon.
    pub fn note(&self, row: Row) {
        self.put(row.id.clone(), Some(Box::new(row)));
    }

    /// Removes it soon.
    pub fn forget(&self, id: &str) {
        self.put(id.to_owned(), None);
    }

    fn put(&self, id: String, change: Change) {
        if self.database.is_some() {
            self.changed().insert(id, change);
            self.work.notify_one();
        }
    }

    /// Writes everything that was noted; it is on the disk then.
    ///
    /// # Errors
    /// The database fails; it is tried again.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let Some(database) = &self.database else { return Ok(()) };
        // In turns, so that an older state never replaces a newer one.
        let _turn = self.writing.lock().await;
        let changes = std::mem::take(&mut *self.changed());
        if changes.is_empty() {
            return Ok(());
        }
        let written = match database.store().await {
            Ok(store) => write(store, &changes).await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            let mut changed = self.changed();
            for (id, change) in changes {
                changed.entry(id).or_insert(change);
            }
            self.work.notify_one();
        }
        written
    }

    async fn write_behind(self: Arc<Self>) {
        loop {
            self.work.notified().await;
            tokio::time::sleep(WRITE_DELAY).await;
            if let Err(error) = self.flush().await {
                tracing::error!(%error, "what is known of sandboxes is not written down; tried again");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// As JSON: strings and numbers always serialize.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

async fn write(store: &Store, all: &BTreeMap<String, Change>) -> Result<(), StoreError> {
    let mut changes = store.begin().await?;
    for (id, change) in all {
        let Some(row) = change else {
            sqlx::query("DELETE FROM sandboxes WHERE id = $1").bind(id).execute(&mut *changes).await?;
            continue;
        };
        let sql = "INSERT INTO sandboxes (id, user_name, name, template, state, reason, detail, since_ms, created_at_ms, \
                   used_at_ms, env_names, labels, lifecycle, storage_bytes, image) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
                   ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason, \
                   detail = excluded.detail, since_ms = excluded.since_ms, used_at_ms = excluded.used_at_ms, \
                   labels = excluded.labels, lifecycle = excluded.lifecycle, image = excluded.image";
        sqlx::query(sql)
            .bind(id)
            .bind(&row.user)
            .bind(&row.name)
            .bind(&row.template)
            .bind(row.state.name())
            .bind(row.reason.name())
            .bind(&row.detail)
            .bind(time(row.since_ms))
            .bind(time(row.created_at_ms))
            .bind(time(row.used_at_ms))
            .bind(json(&row.env))
            .bind(json(&row.labels))
            .bind(json(&row.lifecycle))
            .bind(row.storage_bytes.map(time))
            .bind(&row.image)
            .execute(&mut *changes)
            .await?;
    }
    changes.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    async fn rows(directory: &std::path::Path) -> Arc<Rows> {
        let settings =
            Settings { url: None, file: directory.join("store.db"), connections: 1, timeout: Duration::from_secs(5) };
        Rows::new(Some(Database::new(settings, None)))
    }

    async fn all(rows: &Rows) -> Result<Vec<Row>, StoreError> {
        Rows::all(rows.database.as_ref().unwrap().store().await.unwrap()).await
    }

    fn row(id: &str) -> Row {
        Row {
            id: id.to_owned(),
            user: "u".to_owned(),
            name: Some("dev".to_owned()),
            template: "test".to_owned(),
            state: SandboxState::Creating,
            reason: SandboxReason::Created,
            detail: None,
            since_ms: 1,
            created_at_ms: 1,
            used_at_ms: 1,
            env: vec!["A".to_owned()],
            labels: BTreeMap::from([("x".to_owned(), "ä\"".to_owned())]),
            lifecycle: SandboxLifecycle { freeze_after_s: Some(5), ..SandboxLifecycle::default() },
            storage_bytes: Some(1 << 30),
            image: None,
        }
    }

    #[tokio::test]
    async fn what_was_written_is_read_and_the_newest_state_wins() {
        let directory = tempfile::tempdir().unwrap();
        let first = rows(directory.path()).await;
        let frozen = Row {
            state: SandboxState::Frozen,
            reason: SandboxReason::Idle,
            detail: Some("why".to_owned()),
            since_ms: 7,
            used_at_ms: 6,
            image: Some("sha256:1".to_owned()),
            ..row("s-2")
        };
        for row in [row("s-1"), row("s-2"), frozen.clone(), row("s-3")] {
            first.note(row);
        }
        first.forget("s-3");
        first.flush().await.unwrap();
        assert_eq!(all(&first).await.unwrap(), [row("s-1"), frozen.clone()]);
        first.note(Row { name: None, ..row("s-4") });
        first.forget("s-1");
        // Without anybody waiting for it.
        let begun = std::time::Instant::now();
        while all(&first).await.unwrap().len() != 2 || all(&first).await.unwrap()[0].id != "s-2" {
            assert!(begun.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(first);
        let next = rows(directory.path()).await;
        assert_eq!(all(&next).await.unwrap(), [frozen, Row { name: None, ..row("s-4") }]);
    }

    #[tokio::test]
    async fn without_a_database_nothing_is_kept() {
        let rows = Rows::new(None);
        rows.note(row("s-1"));
        rows.flush().await.unwrap();
        assert!(!rows.is_writable());
    }
}
