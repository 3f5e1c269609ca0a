//! New keys for what is stored, while it is used.

use thaw_client::types::{self, AuditAction, UserKey};

use super::crypto;
use super::error::VaultError;
use super::record::{Asker, Record};
use super::rows;
use super::write::new_key_id;
use super::{Vault, seal};

/// Users whose keys are wrapped anew between two looks at the database.
const BATCH: i64 = 100;

impl Vault {
    /// Gives a user a new key and encrypts all credentials with it, in one transaction. None if the user has nothing.
    ///
    /// # Errors
    /// One of the credentials cannot be read: it has to be stored anew or removed first.
    pub async fn rotate_user_key(&self, user: &str, by: Asker) -> Result<Option<UserKey>, VaultError> {
        let done = self
            .change(user, |draft| {
                let rows = draft.credentials();
                let mut opened = Vec::with_capacity(rows.len());
                for row in rows {
                    let credentials = draft.opened(&row)?;
                    opened.push((row, credentials));
                }
                if opened.is_empty() {
                    return Ok(None);
                }
                draft.key = crypto::new_key();
                draft.user.key_id = new_key_id();
                draft.user.wrapped_key = seal::wrap(&self.keys(), &draft.user, &draft.key)?;
                let count = opened.len() as u64;
                for (row, credentials) in opened {
                    draft.put(row, &credentials);
                }
                let detail = format!("the key is {}", draft.user.key_id);
                draft.record(Record::of_user(AuditAction::KeyRotated, user).by(by).detail(detail));
                Ok(Some(UserKey { user: user.to_owned(), key: draft.user.key_id.clone(), credentials: count }))
            })
            .await?;
        if let Some(key) = &done {
            self.store.forget_deleted().await?;
            tracing::info!(user, key = key.key, credentials = key.credentials, "audit: the user has a new key");
        }
        Ok(done)
    }

    /// Reads the master keys anew and wraps every user's key with the first of them. Each user is one change, so that it can
    /// be interrupted at any time and called again; until it is done, the key before has to be given too.
    ///
    /// # Errors
    /// A key that something is wrapped with is not among the new ones, or the database fails.
    pub async fn rotate_master_key(&self) -> Result<types::Vault, VaultError> {
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || source.read()).await;
        let keys = read.map_err(|error| VaultError::Store(crate::store::StoreError::Refused(error.to_string())))??;
        for (id, users) in rows::master_keys(&self.store).await? {
            if !keys.has(&id) {
                return Err(VaultError::UnknownMasterKey { id, users });
            }
        }
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = keys;
        let rewrapped = self.rewrap().await?;
        let status = self.status().await?;
        tracing::info!(
            master_key = status.master_key,
            users = rewrapped,
            "audit: users' keys are wrapped with this master key"
        );
        Ok(status)
    }

    /// Wraps with the current master key what is wrapped with another one; how many users' keys.
    ///
    /// # Errors
    /// The database fails, or a user's key is not what was stored.
    pub async fn rewrap(&self) -> Result<u64, VaultError> {
        let (mut done, mut broken, mut after) = (0, None, String::new());
        loop {
            let current = self.keys().current().to_owned();
            let batch = rows::under_other_master_keys(&self.store, &current, &after, BATCH).await?;
            let Some(last) = batch.last() else { break };
            after.clone_from(&last.name);
            for user in batch {
                let wrapped = {
                    let keys = self.keys();
                    let mut fresh = user.clone();
                    fresh.master_key.clone_from(&current);
                    seal::unwrap(&keys, &user).and_then(|key| seal::wrap(&keys, &fresh, &key))
                };
                match wrapped {
                    Ok(wrapped) => {
                        let _turn = self.writing.lock().await;
                        let changed = rows::rewrap(&self.store, &user, &wrapped, &current).await?;
                        self.cache().forget(&user.name);
                        done += u64::from(changed);
                    }
                    // The others go on; this one stays as it is, and is told at the end.
                    Err(error) => broken = Some(error),
                }
            }
        }
        if done > 0 {
            self.store.forget_deleted().await?;
        }
        broken.map_or(Ok(done), Err)
    }
}
