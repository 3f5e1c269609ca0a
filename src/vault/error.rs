//! What can be wrong with the vault, or with what it is given. Never contains a secret.

use super::master::MasterKeyError;
use crate::store::StoreError;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The key that users' keys were wrapped with is not there.
    #[error(
        "{users} users' keys are wrapped with the master key {id}, which is not among those that thawd was given; give it \
         that key too (behind the new one), or restore it from where it was backed up"
    )]
    UnknownMasterKey {
        /// Which one.
        id: String,
        /// How many users.
        users: u64,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored is not what was stored.
    #[error("the credential of user {user:?} for {provider:?} cannot be used: {problem}; store it anew")]
    Broken {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The same of what belongs to all credentials of a user.
    #[error("the credentials of user {user:?} cannot be used: {problem}; remove them (DELETE) and store them anew")]
    BrokenUser {
        /// Whose.
        user: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No CLI could use it.
    #[error("`{field}` {problem}")]
    Invalid {
        /// Which part of the request or file.
        field: String,
        /// What is wrong, and what has to be there.
        problem: String,
    },
    /// The provider refused to renew it.
    #[error(
        "the credential of user {user:?} for {provider:?} was refused by the provider ({reason}); log in again and store it"
    )]
    Refused {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
        /// Why.
        reason: String,
    },
    /// It is over and cannot be renewed.
    #[error(
        "the credential of user {user:?} for {provider:?} has expired and has nothing to be renewed with; log in again and store it"
    )]
    Expired {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
    },
    /// Another execution has it, whose CLI is about to renew it.
    #[error(
        "the login of user {user:?} for {provider:?} is about to be renewed by another execution, for which this one has \
         waited as long as it may (`queue_timeout_ms`)"
    )]
    Busy {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
    },
    /// The provider could not be asked to renew it, and it is over.
    #[error(
        "the login of user {user:?} for {provider:?} is over or was refused, and could not be renewed: {reason}; it is tried again, and \
         `thawctl credentials audit` tells since when"
    )]
    NotRenewed {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
        /// Why.
        reason: String,
    },
    /// Somebody else changed the same user's credentials again and again.
    #[error("the credentials of user {0:?} are being changed by others; try again")]
    Contended(String),
}

impl VaultError {
    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Contended(_) | Self::Busy { .. } | Self::NotRenewed { .. } => true,
            _ => false,
        }
    }
}

impl From<sqlx::Error> for VaultError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}
