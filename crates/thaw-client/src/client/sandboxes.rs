//! Sandboxes. Answers are `T`, so that a caller can have them as the daemon wrote them.

use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;

use super::credentials::segment;
use super::{ANSWER_TIMEOUT, Client, ClientError, is_id, with_key};
use crate::types::{NamedSandboxRequest, Page, SandboxChange, SandboxFilter, SandboxRequest};

/// Longest wait until a sandbox is stopped: its processes may take their time for ending.
const STOP_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) fn path(id: &str) -> Result<String, ClientError> {
    if is_id(id) {
        return Ok(format!("/v1/sandboxes/{id}"));
    }
    Err(ClientError::Protocol(format!("{id:?} is no sandbox id: it consists of a-z, 0-9 and '-'")))
}

fn named(user: &str, name: &str) -> Result<String, ClientError> {
    if is_id(name) {
        return Ok(format!("/v1/users/{}/sandboxes/{name}", segment(user)?));
    }
    Err(ClientError::Protocol(format!("{name:?} is no name of a sandbox: it consists of a-z, 0-9 and '-'")))
}

impl Client {
    /// Creates a sandbox; with the same key once more, it is the same.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn create_sandbox<T: DeserializeOwned>(
        &self,
        request: &SandboxRequest,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        self.json(with_key(self.request(Method::POST, "/v1/sandboxes").json(request), key)).await
    }

    /// The user's sandbox of that name, which is created if there is none.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn ensure_sandbox<T: DeserializeOwned>(
        &self,
        user: &str,
        name: &str,
        request: &NamedSandboxRequest,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::PUT, &named(user, name)?).json(request)).await
    }

    /// The sandboxes that fit, newest first: one page of them if the filter has a limit.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn sandboxes_where<T: DeserializeOwned>(&self, filter: &SandboxFilter) -> Result<Page<T>, ClientError> {
        let request = self.request(Method::GET, "/v1/sandboxes").query(&filter.query());
        self.json(request.timeout(ANSWER_TIMEOUT)).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn sandbox<T: DeserializeOwned>(&self, id: &str) -> Result<T, ClientError> {
        self.get(&path(id)?).await
    }

    /// The user's sandbox of that name.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn named_sandbox<T: DeserializeOwned>(&self, user: &str, name: &str) -> Result<T, ClientError> {
        self.get(&named(user, name)?).await
    }

    /// Changes labels and lifecycle.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn change_sandbox<T: DeserializeOwned>(
        &self,
        id: &str,
        change: &SandboxChange,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::PATCH, &path(id)?).timeout(ANSWER_TIMEOUT).json(change)).await
    }

    /// Ends a sandbox; one that is gone is forgotten.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &path(id)?).timeout(ANSWER_TIMEOUT)).await.map(drop)
    }

    /// Freezes a sandbox.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn freeze_sandbox<T: DeserializeOwned>(&self, id: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, &format!("{}/freeze", path(id)?)).timeout(ANSWER_TIMEOUT)).await
    }

    /// Ends the processes of a sandbox and keeps its files. They have some time for it.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn stop_sandbox<T: DeserializeOwned>(&self, id: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, &format!("{}/stop", path(id)?)).timeout(STOP_TIMEOUT)).await
    }

    /// Wakes a sandbox.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn wake_sandbox<T: DeserializeOwned>(&self, id: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, &format!("{}/wake", path(id)?)).timeout(ANSWER_TIMEOUT)).await
    }
}
