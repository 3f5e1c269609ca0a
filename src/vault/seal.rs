//! From rows to secrets and back.

use thaw_client::types::Credentials;

use super::content;
use super::crypto::{self, Context, Key};
use super::entries::Entries;
use super::error::VaultError;
use super::master::MasterKeys;
use super::rows::{Credential, Stored, User};

fn record_context(user: &str, row: &Credential) -> Context {
    let version = row.version.to_string();
    Context::new("record", &[user, &row.provider, row.names.as_str(), &version, &row.key_id])
}

fn entries_context(user: &User) -> Context {
    Context::new("entries", &[&user.name, &user.key_id, &user.revision.to_string()])
}

fn key_context(user: &User) -> Context {
    Context::new("user key", &[&user.name, &user.key_id, &user.master_key])
}

/// Wraps a user's key with the master key that `user` names.
pub fn wrap(keys: &MasterKeys, user: &User, key: &Key) -> Result<Vec<u8>, VaultError> {
    let master = keys.get(&user.master_key).ok_or_else(|| unknown(user))?;
    Ok(crypto::seal(master, &key_context(user), key.as_slice()))
}

fn unknown(user: &User) -> VaultError {
    VaultError::UnknownMasterKey { id: user.master_key.clone(), users: 1 }
}

/// The key of a user, for as long as it is needed.
pub fn unwrap(keys: &MasterKeys, user: &User) -> Result<Key, VaultError> {
    let broken = |problem| VaultError::BrokenUser { user: user.name.clone(), problem };
    let master = keys.get(&user.master_key).ok_or_else(|| unknown(user))?;
    let opened = crypto::open(master, &key_context(user), &user.wrapped_key);
    let opened = opened.map_err(|_| broken("the user's key is not what was stored"))?;
    let mut key = Key::default();
    if opened.len() != key.len() {
        return Err(broken("the user's key has another length than a key"));
    }
    key.copy_from_slice(&opened);
    Ok(key)
}

/// Seals the list of what a user has.
pub fn seal_entries(user: &User, key: &Key, entries: &Entries) -> Vec<u8> {
    let json = serde_json::to_vec(entries).expect("strings and numbers always serialize");
    crypto::seal(key, &entries_context(user), &json)
}

/// The list of what a user has.
pub fn open_entries(user: &User, key: &Key) -> Result<Entries, VaultError> {
    let broken = |problem| VaultError::BrokenUser { user: user.name.clone(), problem };
    let json = crypto::open(key, &entries_context(user), &user.entries);
    let json = json.map_err(|_| broken("the list of them is not what was stored, or is of another revision"))?;
    serde_json::from_slice(&json).map_err(|_| broken("the list of them cannot be read"))
}

/// Seals a secret as `row` describes it.
pub fn seal_record(user: &str, row: &Credential, key: &Key, credentials: &Credentials) -> Vec<u8> {
    crypto::seal(key, &record_context(user, row), &content::encode(credentials))
}

/// The secret of a record, which has to be the one that is listed.
pub fn open_record(user: &str, row: &Credential, key: &Key, entries: &Entries) -> Result<Credentials, VaultError> {
    let broken = |problem| VaultError::Broken { user: user.to_owned(), provider: row.provider.clone(), problem };
    match entries.version(&row.provider) {
        None => return Err(broken("it was removed, and has come back from elsewhere")),
        Some(version) if row.version < version => {
            return Err(broken("it is an earlier one than the last that was stored"));
        }
        Some(_) => {}
    }
    if !entries.lists(&row.provider, row.version, &row.sealed) {
        return Err(broken("it is not the one that was stored last"));
    }
    let opened = crypto::open(key, &record_context(user, row), &row.sealed);
    let opened = opened.map_err(|_| broken("it is not what was stored, or belongs to something else"))?;
    content::decode(&opened).map_err(|_| broken("its content cannot be read"))
}

/// The secret of a user for a provider, with its row; none if the user has none.
pub fn open<'a>(
    keys: &MasterKeys,
    stored: &'a Stored,
    provider: &str,
) -> Result<Option<(Credentials, &'a Credential)>, VaultError> {
    let user = &stored.user;
    let key = unwrap(keys, user)?;
    let entries = open_entries(user, &key)?;
    let Some(row) = stored.credential(provider) else {
        if entries.has(provider) {
            let problem = "it is listed, but its record is gone";
            return Err(VaultError::Broken { user: user.name.clone(), provider: provider.to_owned(), problem });
        }
        return Ok(None);
    };
    Ok(Some((open_record(&user.name, row, &key, &entries)?, row)))
}
