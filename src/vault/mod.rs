//! The credentials of users, encrypted at rest.
//!
//! ```text
//! master key ──wraps──► key of a user ──encrypts──► credential of a user for a provider
//! (a file, systemd, a command;          │
//!  in locked memory)                    └──encrypts──► list of what the user has, with the version of each
//! ```
//!
//! It owns the master keys, the records, and who changes them: one write at a time, each a compare-and-swap on the
//! revision of the user, so that several daemons can share a database. An execution takes a credential with
//! [`Vault::checkout`] and brings back what the CLI made of it with [`Vault::write_back`].
//!
//! A secret goes to an execution and nowhere else: there is no way to read it back. Deliberately absent: a cache of
//! unwrapped user keys (docs/decisions.md), and a master key that the daemon makes by itself.

mod ahead;
mod audit;
mod audit_rows;
mod cache;
mod check;
mod content;
mod crypto;
mod due;
mod entries;
mod error;
mod init;
mod lease;
mod login_file;
mod master;
mod names;
mod record;
mod rotate;
mod rows;
mod seal;
mod token_client;
mod token_process;
mod token_request;
mod turns;
mod used;
mod write;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use thaw_client::config::RefreshPolicy;
use thaw_client::types::{self, AuditAction, AuditRecord, Credentials, Page};
use tokio_util::task::TaskTracker;

use self::audit::Audit;
use self::cache::{Cache, Lookup};
use self::due::Failures;
use self::master::MasterKeys;
use self::rows::{Credential, Stored};
use self::turns::Turns;
use self::used::Used;
use crate::provider::Provider;
use crate::store::{self, Store};

pub use audit::Bounds;
pub use check::fingerprint;
pub use error::VaultError;
pub use init::{InitError, init};
pub use master::{KeySource, MasterKeyError};
pub use record::{Asker, Query as AuditQuery, Record};
pub use token_client::serve as serve_refresh;
pub use token_process::{TokenProcesses, start_with};
pub use turns::Turn;
pub use write::WrittenBack;

/// Time between two writes of audit records.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);

/// What an operator decides; see `[vault]` in the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest credential of one user for one provider, bytes.
    pub max_credential_bytes: usize,
    /// Encrypted records that are kept in memory, bytes.
    pub cache_bytes: usize,
    /// How many audit records are kept, and for how long.
    pub audit: Bounds,
    /// How long before its end the daemon renews a login, besides the time of the execution that gets it.
    pub refresh_ahead: Duration,
    /// How long a provider has to renew one.
    pub refresh_timeout: Duration,
}

/// What an execution needs of a credential.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// How long it waits for another one to renew the login.
    pub patience: Duration,
    /// For how long the login is to last, if it can.
    pub lasting: Duration,
}

impl From<Duration> for Need {
    fn from(patience: Duration) -> Self {
        Self { patience, lasting: Duration::ZERO }
    }
}

/// What an execution gets.
#[derive(Debug)]
pub struct Checkout {
    /// The secret.
    pub credentials: Credentials,
    /// Which version it is: what comes back replaces this one, and no other.
    pub version: u64,
    /// Tells whether what comes back is another content.
    pub fingerprint: String,
    /// The turn at renewing it, if that is due: nobody else gets it until this is dropped.
    pub turn: Option<Turn>,
    /// Whether the daemon renews it: then it has no refresh token, and nothing comes back.
    pub is_managed: bool,
}

/// A credential that an execution has.
#[derive(Debug, Clone)]
pub struct Loan {
    /// Whose it is.
    pub user: String,
    /// Who has it.
    pub execution: String,
    /// Which version was handed out.
    pub version: u64,
    /// Its content: it has another version, and is the same one, once the user has got a new key.
    pub fingerprint: String,
}

/// The vault of a daemon.
#[derive(Debug)]
pub struct Vault {
    store: Store,
    source: KeySource,
    keys: RwLock<MasterKeys>,
    settings: Settings,
    cache: Mutex<Cache>,
    used: Used,
    audit: Audit,
    turns: Turns,
    /// How logins are renewed, once the daemon can.
    processes: OnceLock<TokenProcesses>,
    renewals: TaskTracker,
    failures: Failures,
    /// One change at a time.
    writing: tokio::sync::Mutex<()>,
}

impl Vault {
    /// Opens the vault: reads the master key and the database.
    ///
    /// # Errors
    /// There is no usable key, it is not the one that the vault was made with, or the database cannot be used.
    pub async fn open(
        source: KeySource,
        database: &store::Settings,
        settings: Settings,
    ) -> Result<Arc<Self>, VaultError> {
        // A key that cannot be read is told of before a database is made.
        let keys = source.read()?;
        Self::with((source, keys), Store::open(database).await?, settings).await
    }

    /// The same, in a database that is open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_in(source: KeySource, store: Store, settings: Settings) -> Result<Arc<Self>, VaultError> {
        let keys = source.read()?;
        Self::with((source, keys), store, settings).await
    }

    async fn with(
        (source, keys): (KeySource, MasterKeys),
        store: Store,
        settings: Settings,
    ) -> Result<Arc<Self>, VaultError> {
        let unknown = rows::master_keys(&store).await?.into_iter().find(|(id, _)| !keys.has(id));
        if let Some((id, users)) = unknown {
            return Err(VaultError::UnknownMasterKey { id, users });
        }
        let cache = Mutex::new(Cache::new(settings.cache_bytes));
        let (keys, used, turns) = (RwLock::new(keys), Used::default(), Turns::default());
        let writing = tokio::sync::Mutex::default();
        let audit = Audit::new(settings.audit);
        let (processes, renewals, failures) = (OnceLock::new(), TaskTracker::new(), Failures::default());
        let this =
            Self { store, source, keys, settings, cache, used, audit, turns, processes, renewals, failures, writing };
        this.warm_up().await?;
        Ok(Arc::new(this))
    }

    /// Reads what was used last into memory, as far as it fits, so that a claim does not wait for a disk.
    async fn warm_up(&self) -> Result<(), VaultError> {
        if !self.store.is_exclusive() {
            return Ok(());
        }
        let (mut users, are_all) = rows::all(&self.store, self.settings.cache_bytes).await?;
        let mut cache = self.cache();
        if are_all {
            cache.complete();
        }
        // The last one that is put in is the last one to go.
        while let Some(stored) = users.pop() {
            cache.put(Arc::new(stored));
        }
        Ok(())
    }

    /// What is stored of a user: from memory if nobody else may have changed it.
    async fn stored(&self, user: &str) -> Result<Option<Arc<Stored>>, VaultError> {
        if !self.store.is_exclusive() {
            return Ok(rows::user(&self.store, user).await?.map(Arc::new));
        }
        // Of its own, so that the lock is not held while the database is asked.
        let known = self.cache().get(user);
        let epoch = match known {
            Lookup::Known(found) => return Ok(Some(found)),
            Lookup::Nothing => return Ok(None),
            Lookup::Unknown(epoch) => epoch,
        };
        let found = rows::user(&self.store, user).await?.map(Arc::new);
        if let Some(found) = &found {
            self.cache().put_read(Arc::clone(found), epoch);
        }
        Ok(found)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> RwLockReadGuard<'_, MasterKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user's credential for a provider, if there is one. Called for an execution that is about to begin. When it has
    /// to be renewed, this waits until the daemon has done that, or until no other execution has it whose CLI will.
    ///
    /// # Errors
    /// It cannot be used any more, or what is stored is not what was stored, or another execution is still renewing it.
    pub async fn checkout(
        self: &Arc<Self>,
        user: &str,
        provider: &Provider,
        need: impl Into<Need>,
    ) -> Result<Option<Checkout>, VaultError> {
        let need = need.into();
        let policy = provider.refresh_policy();
        if let (RefreshPolicy::RefreshAhead, Some(endpoint)) = (policy, provider.endpoint()) {
            return self.checkout_ahead(user, provider, endpoint, need).await;
        }
        let found = self.look(user, provider).await?;
        let is_due = |row: &Credential| policy == RefreshPolicy::Exclusive && row.is_renewal_due();
        if !found.as_ref().is_some_and(|(_, row)| is_due(row)) {
            return Ok(found.map(|(checkout, _)| checkout));
        }
        // It is old by the time that the turn comes.
        drop(found);
        let taken = tokio::time::timeout(need.patience, self.turns.take(user, &provider.name)).await;
        let turn = taken.map_err(|_| VaultError::Busy { user: user.to_owned(), provider: provider.name.clone() })?;
        // Whoever had it before has renewed it, or not.
        let found = self.look(user, provider).await?;
        Ok(found.map(|(checkout, row)| Checkout { turn: is_due(&row).then_some(turn), ..checkout }))
    }

    /// Gives an execution that an earlier daemon had begun its turn back, before anybody else can have it.
    pub fn resume_turn(&self, user: &str, provider: &str) -> Option<Turn> {
        self.turns.try_take(user, provider)
    }

    /// The credential as it is now, and what is known of it.
    async fn look(&self, user: &str, provider: &Provider) -> Result<Option<(Checkout, Credential)>, VaultError> {
        let Some(stored) = self.stored(user).await? else { return Ok(None) };
        let name = provider.name.as_str();
        let opened = seal::open(&self.keys(), &stored, name);
        let usable = opened.and_then(|opened| match opened {
            Some((credentials, row)) => row.usable(user).map(|()| Some((credentials, row))),
            None => Ok(None),
        });
        let usable = usable.inspect_err(|error| {
            tracing::warn!(user, provider = name, %error, "audit: credential not handed out");
            self.audit.note(Record::new(AuditAction::UseRefused, user, name).detail(error.to_string()));
        })?;
        let Some((credentials, row)) = usable else { return Ok(None) };
        self.used.note(user, name, crate::telemetry::unix_ms());
        let (version, fingerprint) = (row.version, row.facts.fingerprint.clone());
        Ok(Some((Checkout { credentials, version, fingerprint, turn: None, is_managed: false }, row.clone())))
    }

    /// What is known of the user's credential for a provider, without the secret.
    ///
    /// # Errors
    /// The database fails.
    pub async fn describe(&self, user: &str, provider: &str) -> Result<Option<types::Credential>, VaultError> {
        let stored = self.stored(user).await?;
        Ok(stored.and_then(|stored| stored.credential(provider).map(|row| self.shown(user, row))))
    }

    /// All of a user, by provider.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list(&self, user: &str) -> Result<Vec<types::Credential>, VaultError> {
        let stored = self.stored(user).await?;
        let rows = stored.iter().flat_map(|stored| &stored.credentials);
        Ok(rows.map(|row| self.shown(user, row)).collect())
    }

    fn shown(&self, user: &str, row: &Credential) -> types::Credential {
        row.shown(user, self.used.last(user, &row.provider), crate::telemetry::unix_ms())
    }

    /// Checks a credential as it is checked before it is kept.
    ///
    /// # Errors
    /// [`VaultError::Invalid`]: no CLI could use it.
    pub fn examine(&self, provider: &Provider, credentials: &Credentials) -> Result<(), VaultError> {
        check::examine(provider, credentials, self.settings.max_credential_bytes, rows::now_ms()).map(|_| ())
    }

    /// Largest credential that is kept, bytes.
    pub fn max_credential_bytes(&self) -> usize {
        self.settings.max_credential_bytes
    }

    /// The vault as a whole.
    ///
    /// # Errors
    /// The database fails.
    pub async fn status(&self) -> Result<types::Vault, VaultError> {
        let current = self.keys().current().to_owned();
        let (mut users, mut others) = (0, 0);
        for (id, count) in rows::master_keys(&self.store).await? {
            users += count;
            others += if id == current { 0 } else { count };
        }
        let credentials = rows::count_credentials(&self.store).await?;
        Ok(types::Vault { master_key: current, users, credentials, users_under_other_master_keys: others })
    }

    /// Puts on record that an execution has a credential.
    pub fn note_use(&self, loan: &Loan, provider: &str) {
        let Loan { user, execution, version, .. } = loan;
        self.audit.note(Record::new(AuditAction::Used, user, provider).version(*version).execution(execution));
    }

    /// Puts on record that the provider was asked whether a credential is good, and what it said.
    pub fn note_check(&self, user: &str, provider: &str, execution: Option<&str>, found: &str, by: Asker) {
        tracing::info!(user, provider, execution, found, "audit: credential checked");
        let record = Record::new(AuditAction::Checked, user, provider).detail(found).by(by);
        self.audit.note(Record { execution: execution.map(str::to_owned), ..record });
    }

    /// What happened to a user's credentials, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn audit(&self, query: &AuditQuery) -> Result<Page<AuditRecord>, VaultError> {
        self.audit.list(&self.store, query).await
    }

    /// Writes audit records once a second, for as long as the daemon lives.
    pub async fn keep_audit(self: Arc<Self>) {
        let mut interval = tokio::time::interval(AUDIT_INTERVAL);
        loop {
            interval.tick().await;
            self.write_audit().await;
        }
    }

    async fn write_audit(&self) {
        if let Err(error) = self.audit.write(&self.store).await {
            tracing::warn!(%error, "audit records are not written down yet");
        }
    }

    /// Writes down when credentials were used last, and what happened to them; called now and then, and at the end.
    pub async fn write_uses(&self) {
        self.write_audit().await;
        match self.used.write(&self.store).await {
            Ok(written) => {
                let mut cache = self.cache();
                written.iter().for_each(|((user, provider), at_ms)| cache.note_use(user, provider, *at_ms));
            }
            Err(error) => tracing::warn!(%error, "when credentials were used last is not written down"),
        }
    }
}

#[cfg(test)]
mod tests;
