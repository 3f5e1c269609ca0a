//! Egress identities, and who has which. Answers are `T`, so that a caller can have them as the daemon wrote them.

use reqwest::Method;
use serde::de::DeserializeOwned;

use super::credentials::segment;
use super::{ANSWER_TIMEOUT, Client, ClientError, is_id};
use crate::types::{EgressRequest, List};

fn path(user: &str) -> Result<String, ClientError> {
    Ok(format!("/v1/users/{}/egress", segment(user)?))
}

impl Client {
    /// All identities.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn egress_identities<T: DeserializeOwned>(&self) -> Result<Vec<T>, ClientError> {
        self.get::<List<T>>("/v1/egress/identities").await.map(|list| list.items)
    }

    /// One identity.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn egress_identity<T: DeserializeOwned>(&self, name: &str) -> Result<T, ClientError> {
        if !is_id(name) {
            let problem = format!("{name:?} is no name of an identity: it consists of a-z, 0-9 and '-'");
            return Err(ClientError::Protocol(problem));
        }
        self.get(&format!("/v1/egress/identities/{name}")).await
    }

    /// What a user has.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn user_egress<T: DeserializeOwned>(&self, user: &str) -> Result<T, ClientError> {
        self.get(&path(user)?).await
    }

    /// Gives a user an identity: that of this name, or the one with the fewest users.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn allocate_egress<T: DeserializeOwned>(
        &self,
        user: &str,
        identity: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = EgressRequest { identity: identity.map(str::to_owned) };
        self.json(self.request(Method::PUT, &path(user)?).timeout(ANSWER_TIMEOUT).json(&body)).await
    }

    /// Takes a user's identity back.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn release_egress(&self, user: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &path(user)?).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }
}
