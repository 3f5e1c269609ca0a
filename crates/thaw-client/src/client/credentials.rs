//! Credentials that the daemon keeps for users. Answers are `T`, so that a caller can have them as the daemon wrote them.

use reqwest::Method;
use serde::de::DeserializeOwned;

use super::{ANSWER_TIMEOUT, Client, ClientError, is_id};
use crate::types::{Credentials, List};

fn checked<'a>(what: &str, name: &'a str) -> Result<&'a str, ClientError> {
    match is_id(name) {
        true => Ok(name),
        false => Err(ClientError::Protocol(format!("{name:?} is no {what}: it consists of a-z, 0-9 and '-'"))),
    }
}

fn path(user: &str) -> Result<String, ClientError> {
    Ok(format!("/v1/users/{}/credentials", checked("user", user)?))
}

fn path_of(user: &str, provider: &str) -> Result<String, ClientError> {
    Ok(format!("{}/{}", path(user)?, checked("provider name", provider)?))
}

impl Client {
    /// What is known of the credentials of a user; none of the secrets.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn credentials<T: DeserializeOwned>(&self, user: &str) -> Result<Vec<T>, ClientError> {
        self.get::<List<T>>(&path(user)?).await.map(|list| list.items)
    }

    /// Stores a credential, instead of the one before.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn put_credential<T: DeserializeOwned>(
        &self,
        user: &str,
        provider: &str,
        credentials: &Credentials,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::PUT, &path_of(user, provider)?).timeout(ANSWER_TIMEOUT);
        self.json(request.json(credentials)).await
    }

    /// Removes a credential, or without a provider everything that is kept of the user.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn remove_credential(&self, user: &str, provider: Option<&str>) -> Result<(), ClientError> {
        let path = provider.map_or_else(|| path(user), |provider| path_of(user, provider))?;
        self.send(self.request(Method::DELETE, &path).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Gives a user a new key.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn rotate_user_key<T: DeserializeOwned>(&self, user: &str) -> Result<T, ClientError> {
        let path = format!("/v1/users/{}/rotate-key", checked("user", user)?);
        self.json(self.request(Method::POST, &path).timeout(ANSWER_TIMEOUT)).await
    }

    /// Has the daemon read its master keys again and wrap every user's key with the first. It answers when that is done,
    /// however long it takes.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn rotate_master_key<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, "/v1/vault/rotate-key")).await
    }
}
