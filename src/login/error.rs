//! Why a login cannot be begun, or is not answered.

use crate::container::{CommandError, ContainerError};
use crate::pool::ClaimError;
use thaw_client::types::LoginMethod;

/// Why something cannot be done with a login. Contains nothing that the user has brought back.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The value of a field is invalid.
    #[error("`{field}` {problem}")]
    InvalidField {
        /// Which field.
        field: &'static str,
        /// What the value must be.
        problem: String,
    },
    /// The provider does not exist.
    #[error("there is no provider {name:?}; there is {known}")]
    UnknownProvider {
        /// Name given.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// The provider has no way to log in.
    #[error(
        "the manifest of {0:?} has no `[[login]]`: log in with its CLI elsewhere, and store what that wrote (`thawctl credentials put`)"
    )]
    NoLogin(String),
    /// The provider has other ways.
    #[error("there is no way {:?} to log in; there is {ways}", method.unwrap_or_default())]
    UnknownMethod {
        /// What was asked for.
        method: Option<&'static str>,
        /// What there is.
        ways: String,
    },
    /// No browser runs beside the CLI.
    #[error(
        "`method` cannot be \"browser\": thawd runs no browser; leave it out, and open the address that the answer has"
    )]
    NoBrowser,
    /// The user is logging in already.
    #[error(
        "user {user:?} is logging in to {provider:?} already, with {id}: finish that, or cancel it with DELETE /v1/logins/{id}"
    )]
    Pending {
        /// Whose.
        user: String,
        /// For which provider.
        provider: String,
        /// The other one.
        id: String,
    },
    /// There are as many as there may be.
    #[error("{0} logins are under way, the most that there may be (`login.max`)")]
    Limit(usize),
    /// No container was available.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The container could not be used.
    #[error("the login's container: {0}")]
    Container(#[from] ContainerError),
    /// The manifest's command cannot be started.
    #[error("the login's command: {0}")]
    Command(#[from] CommandError),
    /// A descriptor could not be made.
    #[error("the login could not be begun: {0}")]
    Io(#[from] std::io::Error),
    /// The CLI ended, or said nothing that is understood.
    #[error("the provider's CLI did not begin to log in: {0}")]
    NotBegun(String),
    /// It was cancelled before it began.
    #[error("the login was cancelled")]
    Cancelled,
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    Stopped,
    /// It takes no callback.
    #[error("this login takes no callback and no code: the user enters the code at the provider's page")]
    TakesNothing,
    /// It is not the user's turn.
    #[error("the login is {0}: it takes one callback, while it is \"code\"")]
    NotNow(&'static str),
    /// The callback is of another login.
    #[error("the callback's `state` is not that of this login: it was not passed on, and the login goes on")]
    State,
    /// The callback cannot be one.
    #[error("that is no callback: {0}")]
    NoCallback(&'static str),
}

/// A method as the API writes it.
pub fn word(method: LoginMethod) -> &'static str {
    match method {
        LoginMethod::Callback => "callback",
        LoginMethod::Device => "device",
        LoginMethod::Browser => "browser",
    }
}
