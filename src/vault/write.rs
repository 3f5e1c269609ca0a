//! Changes of what a user has: each is one transaction, and holds only if the user has not been changed meanwhile.

use std::sync::Arc;

use thaw_client::types::{self, AuditAction, CredentialKind, Credentials};

use super::crypto::{self, Key};
use super::entries::Entries;
use super::error::VaultError;
use super::names::Names;
use super::record::{Asker, Record};
use super::rows::{self, Credential, Facts, Stored, User, now_ms};
use super::{Loan, Vault, audit_rows, check, seal};
use crate::provider::Provider;

/// How often a change is tried when other daemons change the same user.
const ATTEMPTS: u32 = 8;

/// What became of a credential that a CLI may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrittenBack {
    /// It is as it was handed out.
    Unchanged,
    /// The new one is stored.
    Stored,
    /// Another one was stored meanwhile, which stays.
    Overtaken,
    /// It is of another account, or another kind of credential: whatever runs in a container must not make its user's next
    /// prompts go to somebody else. What was stored before stays.
    Foreign,
    /// What is there cannot be used, and the CLI may still be writing.
    Unfinished,
    /// The CLI has left nothing that could be used, as it does when the provider refuses to renew a login. What was stored
    /// before stays, and is not used any more.
    Refused,
}

/// A user's state while it is changed.
pub(super) struct Draft {
    before: Option<Arc<Stored>>,
    pub(super) user: User,
    pub(super) key: Key,
    pub(super) entries: Entries,
    /// Credentials that change.
    changed: Vec<Credential>,
    removed: Vec<String>,
    /// What is put on record with the change.
    records: Vec<Record>,
}

impl Draft {
    /// Puts something on record, if the change holds.
    pub(super) fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// The credential for a provider, as it was.
    fn credential(&self, provider: &str) -> Option<&Credential> {
        self.before.as_ref().and_then(|stored| stored.credential(provider))
    }

    /// The credential for a provider, if its content is this one and it is the one that is listed.
    pub(super) fn unchanged(&self, provider: &str, fingerprint: &str) -> Option<Credential> {
        let row = self.credential(provider).filter(|row| row.facts.fingerprint == fingerprint)?;
        (self.entries.version(provider) == Some(row.version)).then(|| row.clone())
    }

    /// All credentials, as they were.
    pub(super) fn credentials(&self) -> Vec<Credential> {
        self.before.as_ref().map(|stored| stored.credentials.clone()).unwrap_or_default()
    }

    /// Seals a secret and lists it as the next version.
    pub(super) fn put(&mut self, mut row: Credential, credentials: &Credentials) -> u64 {
        row.version = self.entries.next_version();
        row.key_id.clone_from(&self.user.key_id);
        row.sealed = seal::seal_record(&self.user.name, &row, &self.key, credentials);
        self.entries.put(&row.provider, row.version, &row.sealed);
        let version = row.version;
        self.changed.push(row);
        version
    }
}

impl Vault {
    /// Stores a credential of a user, instead of the one before if there is one. Returns whether it is the first one for
    /// this provider.
    ///
    /// # Errors
    /// No CLI could use it, or the database fails.
    pub async fn put(
        &self,
        user: &str,
        provider: &Provider,
        credentials: &Credentials,
        by: Asker,
    ) -> Result<(types::Credential, bool), VaultError> {
        let facts = check::examine(provider, credentials, self.settings.max_credential_bytes, now_ms())?;
        let is_new = self
            .change(user, |draft| {
                let before = draft.credential(&provider.name).cloned();
                let is_new = before.is_none();
                let row = renewed(before, &provider.name, credentials, facts.clone(), None);
                let version = draft.put(row, credentials);
                draft.record(Record::new(AuditAction::Stored, user, &provider.name).version(version).by(by));
                Ok(is_new)
            })
            .await?;
        self.failures.forget(user, &provider.name);
        tracing::info!(user, provider = provider.name, fingerprint = facts.fingerprint, "audit: credential stored");
        let shown = self.describe(user, &provider.name).await?;
        let gone = || VaultError::Contended(user.to_owned());
        Ok((shown.ok_or_else(gone)?, is_new))
    }

    /// Takes back what a CLI has made of a credential. Nothing is lost by it: what is stored is replaced only if it is still
    /// what the execution got, or has brought back itself, and only by what would have been taken from the user too. Only
    /// of a `settled` file, at the end of a command, is it held against the provider that it cannot be used.
    ///
    /// # Errors
    /// The database fails.
    pub async fn write_back(
        &self,
        loan: &Loan,
        provider: &Provider,
        credentials: &Credentials,
        settled: bool,
    ) -> Result<WrittenBack, VaultError> {
        let (name, Loan { user, execution, version, fingerprint }) = (provider.name.as_str(), loan);
        let examined = check::examine(provider, credentials, self.settings.max_credential_bytes, now_ms());
        if examined.is_err() && !settled {
            return Ok(WrittenBack::Unfinished);
        }
        let outcome = self
            .change(user, |draft| {
                let Some(row) = draft.credential(name).cloned() else { return Ok(WrittenBack::Overtaken) };
                let is_same = row.version == *version || row.facts.fingerprint == *fingerprint;
                let is_its_own = is_same || row.renewed_by.as_ref() == Some(execution);
                if !is_its_own || draft.entries.version(name) != Some(row.version) {
                    return Ok(WrittenBack::Overtaken);
                }
                match &examined {
                    Ok(facts) if facts.fingerprint == row.facts.fingerprint => Ok(WrittenBack::Unchanged),
                    Ok(facts) if !facts.is_renewal_of(&row.facts) => Ok(WrittenBack::Foreign),
                    Ok(facts) => {
                        let mut row = renewed(Some(row), name, credentials, facts.clone(), Some(now_ms()));
                        row.renewed_by = Some(execution.clone());
                        let version = draft.put(row, credentials);
                        let record = Record::new(AuditAction::Renewed, user, name).version(version);
                        draft.record(record.execution(execution));
                        Ok(WrittenBack::Stored)
                    }
                    Err(error) => {
                        let before = draft.opened(&row)?;
                        let reason = format!("the CLI has left a file that cannot be used: {error}");
                        let record = Record::new(AuditAction::Refused, user, name).detail(reason.as_str());
                        let row = Credential { refused: Some(reason), updated_at_ms: now_ms(), ..row };
                        let version = draft.put(row, &before);
                        draft.record(record.version(version).execution(execution));
                        Ok(WrittenBack::Refused)
                    }
                }
            })
            .await?;
        match outcome {
            WrittenBack::Unchanged | WrittenBack::Unfinished => {}
            WrittenBack::Stored => {
                tracing::info!(user, provider = name, execution, "audit: credential renewed by its CLI")
            }
            WrittenBack::Foreign => {
                tracing::warn!(user, provider = name, execution, "audit: credential of another account not taken back");
                let record = Record::new(AuditAction::NotTaken, user, name).version(*version).execution(execution);
                self.audit.note(record.detail("it is of another account, or another kind of credential"));
            }
            WrittenBack::Overtaken => {
                tracing::info!(
                    user,
                    provider = name,
                    execution,
                    "audit: a newer credential was stored meanwhile; it stays"
                );
                let record = Record::new(AuditAction::NotTaken, user, name).version(*version).execution(execution);
                self.audit.note(record.detail("a newer one was stored, or it was removed, meanwhile"));
            }
            WrittenBack::Refused => {
                let error = examined.err().map(|error| error.to_string()).unwrap_or_default();
                tracing::warn!(user, provider = name, execution, error, "audit: credential refused by its provider");
            }
        }
        Ok(outcome)
    }

    /// Removes the user's credential for a provider; whether there was one.
    ///
    /// # Errors
    /// The database fails.
    pub async fn remove(&self, user: &str, provider: &str, by: Asker) -> Result<bool, VaultError> {
        let removed = self
            .change(user, |draft| {
                let was = draft.entries.remove(provider) | draft.credential(provider).is_some();
                if was {
                    draft.removed.push(provider.to_owned());
                    draft.record(Record::new(AuditAction::Removed, user, provider).by(by));
                }
                Ok(was)
            })
            .await?;
        if removed {
            self.store.forget_deleted().await?;
            tracing::info!(user, provider, "audit: credential removed");
        }
        Ok(removed)
    }

    /// Removes everything of a user, the key first: from then on nobody can read the rest, wherever a copy of it is. How
    /// many credentials there were.
    ///
    /// # Errors
    /// The database fails.
    pub async fn remove_user(&self, user: &str, by: Asker) -> Result<Option<u64>, VaultError> {
        let _turn = self.writing.lock().await;
        let mut changes = self.store.begin().await?;
        let existed = rows::remove_user(&mut *changes, user).await?;
        let credentials = rows::remove_credentials(&mut *changes, user).await?;
        let is_change = existed || credentials > 0;
        if is_change {
            audit_rows::add(&mut *changes, &Record::of_user(AuditAction::AllRemoved, user).by(by)).await?;
        }
        changes.commit().await?;
        self.audit.note_written(usize::from(is_change));
        self.cache().remove(user);
        self.store.forget_deleted().await?;
        if is_change {
            tracing::info!(user, credentials, "audit: the user's key and credentials removed");
            return Ok(Some(credentials));
        }
        Ok(None)
    }

    /// Reads what a user has, lets `step` change it, and writes what it changed; again if somebody else was faster.
    pub(super) async fn change<T>(
        &self,
        name: &str,
        mut step: impl FnMut(&mut Draft) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let _turn = self.writing.lock().await;
        for _ in 0..ATTEMPTS {
            let before = self.stored(name).await?;
            let mut draft = self.draft(name, before)?;
            let outcome = step(&mut draft)?;
            if draft.changed.is_empty() && draft.removed.is_empty() {
                return Ok(outcome);
            }
            if self.commit(draft).await? {
                return Ok(outcome);
            }
            self.cache().forget(name);
        }
        Err(VaultError::Contended(name.to_owned()))
    }

    fn draft(&self, name: &str, before: Option<Arc<Stored>>) -> Result<Draft, VaultError> {
        let keys = self.keys();
        let (user, key, entries) = match &before {
            Some(stored) => {
                let key = seal::unwrap(&keys, &stored.user)?;
                let entries = seal::open_entries(&stored.user, &key)?;
                (stored.user.clone(), key, entries)
            }
            None => {
                let key = crypto::new_key();
                let mut user = User {
                    name: name.to_owned(),
                    key_id: new_key_id(),
                    master_key: keys.current().to_owned(),
                    wrapped_key: Vec::new(),
                    entries: Vec::new(),
                    revision: 0,
                    created_at_ms: now_ms(),
                };
                user.wrapped_key = seal::wrap(&keys, &user, &key)?;
                (user, key, Entries::default())
            }
        };
        Ok(Draft { before, user, key, entries, changed: Vec::new(), removed: Vec::new(), records: Vec::new() })
    }

    /// Whether it holds: nobody else has changed the user.
    async fn commit(&self, draft: Draft) -> Result<bool, VaultError> {
        let Draft { before, mut user, key, entries, changed, removed, records } = draft;
        let revision = user.revision;
        user.revision += 1;
        user.entries = seal::seal_entries(&user, &key, &entries);
        let mut changes = self.store.begin().await?;
        let holds = match &before {
            Some(_) => rows::change_user(&mut *changes, &user, revision).await?,
            None => rows::add_user(&mut *changes, &user).await?,
        };
        if !holds {
            return Ok(false);
        }
        for row in &changed {
            rows::put_credential(&mut *changes, &user.name, row).await?;
        }
        for provider in &removed {
            rows::remove_credential(&mut *changes, &user.name, provider).await?;
        }
        for record in &records {
            audit_rows::add(&mut *changes, record).await?;
        }
        // From here on the database may or may not have it, until it says so.
        self.cache().forget(&user.name);
        changes.commit().await?;
        self.audit.note_written(records.len());
        let mut credentials = before.map(|stored| stored.credentials.clone()).unwrap_or_default();
        credentials.retain(|row| {
            !removed.contains(&row.provider) && !changed.iter().any(|other| other.provider == row.provider)
        });
        credentials.extend(changed);
        credentials.sort_by(|a, b| a.provider.cmp(&b.provider));
        if self.store.is_exclusive() {
            self.cache().put(Arc::new(Stored { user, credentials }));
        }
        Ok(true)
    }
}

impl Draft {
    /// The secret of a record.
    pub(super) fn opened(&self, row: &Credential) -> Result<Credentials, VaultError> {
        seal::open_record(&self.user.name, row, &self.key, &self.entries)
    }
}

/// An id for a user's key.
pub(super) fn new_key_id() -> String {
    format!("k-{}", ulid::Ulid::new().to_string().to_lowercase())
}

/// The row of a new secret, which [`Draft::put`] completes.
pub(super) fn renewed(
    before: Option<Credential>,
    provider: &str,
    credentials: &Credentials,
    facts: Facts,
    refreshed_at_ms: Option<i64>,
) -> Credential {
    let now = now_ms();
    let is_login = facts.kind == CredentialKind::Login;
    Credential {
        provider: provider.to_owned(),
        version: 0,
        key_id: String::new(),
        names: Names::of(credentials),
        sealed: Vec::new(),
        facts,
        refused: None,
        renewed_by: None,
        created_at_ms: before.as_ref().map_or(now, |row| row.created_at_ms),
        updated_at_ms: now,
        used_at_ms: before.as_ref().and_then(|row| row.used_at_ms),
        refreshed_at_ms: refreshed_at_ms.filter(|_| is_login).or(before.and_then(|row| row.refreshed_at_ms)),
    }
}
