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

mod cache;
mod check;
mod content;
mod crypto;
mod entries;
mod error;
mod init;
mod master;
mod names;
mod rotate;
mod rows;
mod seal;
mod turns;
mod used;
mod write;

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use thaw_client::types::{self, Credentials};

use self::cache::{Cache, Lookup};
use self::master::MasterKeys;
use self::rows::{Credential, Stored};
use self::turns::Turns;
use self::used::Used;
use crate::provider::Provider;
use crate::store::{self, Store};

pub use check::fingerprint;
pub use error::VaultError;
pub use init::{InitError, init};
pub use master::{KeySource, MasterKeyError};
pub use turns::Turn;
pub use write::WrittenBack;

/// What an operator decides; see `[vault]` in the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest credential of one user for one provider, bytes.
    pub max_credential_bytes: usize,
    /// Encrypted records that are kept in memory, bytes.
    pub cache_bytes: usize,
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
    turns: Turns,
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
        let this = Self { store, source, keys, settings, cache, used, turns, writing };
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

    /// The user's credential for a provider, if there is one. Called for an execution that is about to begin. When its
    /// CLI would have to renew it, this waits, for as long as `patience`, until no other execution has it.
    ///
    /// # Errors
    /// It cannot be used any more, or what is stored is not what was stored, or another execution is still renewing it.
    pub async fn checkout(
        &self,
        user: &str,
        provider: &Provider,
        patience: Duration,
    ) -> Result<Option<Checkout>, VaultError> {
        let found = self.look(user, provider).await?;
        if !found.as_ref().is_some_and(|(_, is_due)| *is_due) {
            return Ok(found.map(|(checkout, _)| checkout));
        }
        // It is old by the time that the turn comes.
        drop(found);
        let taken = tokio::time::timeout(patience, self.turns.take(user, &provider.name)).await;
        let turn = taken.map_err(|_| VaultError::Busy { user: user.to_owned(), provider: provider.name.clone() })?;
        // Whoever had it before has renewed it, or not.
        let found = self.look(user, provider).await?;
        Ok(found.map(|(checkout, is_due)| Checkout { turn: is_due.then_some(turn), ..checkout }))
    }

    /// Gives an execution that an earlier daemon had begun its turn back, before anybody else can have it.
    pub fn resume_turn(&self, user: &str, provider: &str) -> Option<Turn> {
        self.turns.try_take(user, provider)
    }

    /// The credential as it is now, and whether its CLI will have to renew it.
    async fn look(&self, user: &str, provider: &Provider) -> Result<Option<(Checkout, bool)>, VaultError> {
        let Some(stored) = self.stored(user).await? else { return Ok(None) };
        let name = provider.name.as_str();
        let opened = seal::open(&self.keys(), &stored, name);
        let usable = opened.and_then(|opened| match opened {
            Some((credentials, row)) => row.usable(user).map(|()| Some((credentials, row))),
            None => Ok(None),
        });
        let usable = usable.inspect_err(|error| {
            tracing::warn!(user, provider = name, %error, "audit: credential not handed out");
        })?;
        let Some((credentials, row)) = usable else { return Ok(None) };
        self.used.note(user, name, crate::telemetry::unix_ms());
        let (version, fingerprint) = (row.version, row.facts.fingerprint.clone());
        Ok(Some((Checkout { credentials, version, fingerprint, turn: None }, row.is_renewal_due())))
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

    /// Writes down when credentials were used last; called now and then, and at the end.
    pub async fn write_uses(&self) {
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
