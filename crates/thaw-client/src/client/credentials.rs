//! Credentials that the daemon keeps for users. Answers are `T`, so that a caller can have them as the daemon wrote them.

use reqwest::Method;
use serde::de::DeserializeOwned;

use super::{ANSWER_TIMEOUT, Client, ClientError, is_id};
use crate::types::{Credentials, List, Page, USER_RULE, is_user};

/// A user as a segment of a path: what has a meaning there is percent-encoded (RFC 3986, section 2.1).
pub(super) fn segment(user: &str) -> Result<String, ClientError> {
    if !is_user(user) {
        return Err(ClientError::Protocol(format!("{user:?} is no user: the name {USER_RULE}")));
    }
    let mut segment = String::new();
    for byte in user.bytes() {
        match byte {
            b'-' | b'_' | b'.' => segment.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => segment.push(char::from(byte)),
            byte => segment += &format!("%{byte:02X}"),
        }
    }
    Ok(segment)
}

fn path(user: &str) -> Result<String, ClientError> {
    Ok(format!("/v1/users/{}/credentials", segment(user)?))
}

fn path_of(user: &str, provider: &str) -> Result<String, ClientError> {
    if !is_id(provider) {
        let problem = format!("{provider:?} is no provider name: it consists of a-z, 0-9 and '-'");
        return Err(ClientError::Protocol(problem));
    }
    Ok(format!("{}/{provider}", path(user)?))
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

    /// Has the provider asked whether a credential is good. That takes as long as a renewal or a short prompt.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn check_credential<T: DeserializeOwned>(&self, user: &str, provider: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, &format!("{}/check", path_of(user, provider)?))).await
    }

    /// What happened to the credentials of a user, newest first: a page of at most `limit`, behind `cursor`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn audit<T: DeserializeOwned>(
        &self,
        user: &str,
        provider: Option<&str>,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Page<T>, ClientError> {
        let mut query = vec![("limit", limit.to_string())];
        query.extend(provider.map(|provider| ("provider", provider.to_owned())));
        query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
        let path = format!("/v1/users/{}/audit", segment(user)?);
        self.json(self.request(Method::GET, &path).timeout(ANSWER_TIMEOUT).query(&query)).await
    }

    /// Gives a user a new key.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn rotate_user_key<T: DeserializeOwned>(&self, user: &str) -> Result<T, ClientError> {
        let path = format!("/v1/users/{}/rotate-key", segment(user)?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_segment_of_a_path() {
        assert_eq!(path("auth0|5f7c").unwrap(), "/v1/users/auth0%7C5f7c/credentials");
        assert_eq!(path_of("spiffe://a.b/c", "openai").unwrap(), "/v1/users/spiffe%3A%2F%2Fa.b%2Fc/credentials/openai");
        assert_eq!(path("user_1-a.b").unwrap(), "/v1/users/user_1-a.b/credentials");
        for (user, provider) in [("..", "openai"), ("a b", "openai"), ("", "openai"), ("a", "../x"), ("a", "")] {
            assert!(path_of(user, provider).is_err(), "{user:?} {provider:?}");
        }
    }
}
