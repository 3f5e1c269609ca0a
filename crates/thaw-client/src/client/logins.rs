//! Logins that the daemon captures. Answers are `T`, so that a caller can have them as the daemon wrote them.

use std::fmt;

use futures_util::StreamExt;
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde::de::DeserializeOwned;

use super::stream::{Body, MEDIA_TYPE, body};
use super::{ANSWER_TIMEOUT, Client, ClientError, is_id};
use crate::types::{List, Login, LoginAnswer, LoginRequest};

fn path(id: &str) -> Result<String, ClientError> {
    if is_id(id) {
        return Ok(format!("/v1/logins/{id}"));
    }
    Err(ClientError::Protocol(format!("{id:?} is no login id: it consists of a-z, 0-9 and '-'")))
}

/// How a login goes on.
pub struct LoginEvents {
    body: Option<Body>,
}

impl fmt::Debug for LoginEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginEvents").finish_non_exhaustive()
    }
}

impl LoginEvents {
    /// The login at its next step; `None` after the last one.
    ///
    /// # Errors
    /// The connection broke, or the daemon said something else.
    pub async fn next(&mut self) -> Result<Option<Login>, ClientError> {
        let Some(body) = &mut self.body else { return Ok(None) };
        match body.next().await {
            None => Ok(None),
            Some(Ok(event)) => {
                let login = serde_json::from_str(&event.data);
                login.map(Some).map_err(|error| ClientError::Protocol(format!("an event of a login: {error}")))
            }
            Some(Err(error)) => Err(ClientError::Broken(error.to_string())),
        }
    }
}

impl Client {
    /// Begins a login; answers when the user can act.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn begin_login<T: DeserializeOwned>(&self, request: &LoginRequest) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, "/v1/logins").json(request)).await
    }

    /// The logins that the daemon knows, newest first.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn logins<T: DeserializeOwned>(&self) -> Result<Vec<T>, ClientError> {
        self.get::<List<T>>("/v1/logins").await.map(|list| list.items)
    }

    /// One login.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn login<T: DeserializeOwned>(&self, id: &str) -> Result<T, ClientError> {
        self.get(&path(id)?).await
    }

    /// Follows a login to its end.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn login_events(&self, id: &str) -> Result<LoginEvents, ClientError> {
        let request = self.request(Method::GET, &format!("{}/events", path(id)?)).header(ACCEPT, MEDIA_TYPE);
        Ok(LoginEvents { body: body(self.send(request).await?)? })
    }

    /// Hands over what the user brings back: the address that the browser was sent to, or its query.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn answer_login<T: DeserializeOwned>(&self, id: &str, answer: &LoginAnswer) -> Result<T, ClientError> {
        let request = self.request(Method::POST, &format!("{}/code", path(id)?)).timeout(ANSWER_TIMEOUT);
        self.json(request.json(answer)).await
    }

    /// Cancels a login; one that has ended is forgotten.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn cancel_login(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &path(id)?).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }
}
