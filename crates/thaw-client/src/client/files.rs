//! Files that were collected of an execution.

use reqwest::Method;

use super::Upload;
use super::{ANSWER_TIMEOUT, Client, ClientError, execution_path};
use crate::types::{CollectedFile, StdinTaken};

impl Client {
    /// What was collected of an execution's files.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn files(&self, id: &str) -> Result<Vec<CollectedFile>, ClientError> {
        self.list(&format!("{}/files", execution_path(id)?)).await
    }

    /// One file's bytes; `path` is relative to `/workspace`.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn file(&self, id: &str, path: &str) -> Result<Vec<u8>, ClientError> {
        let url = reqwest::Url::parse_with_params("http://localhost/", [("path", path)])
            .map_err(|error| ClientError::Protocol(format!("{path:?} cannot be asked for: {error}")))?;
        let query = url.query().unwrap_or_default();
        self.bytes(self.request(Method::GET, &format!("{}/files?{query}", execution_path(id)?))).await
    }

    /// Sends standard input to an execution that was started with `stdin_open`, from byte `offset` on; with `eof` it ends there.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn send_stdin(
        &self,
        id: &str,
        offset: Option<u64>,
        content: Upload,
        eof: bool,
    ) -> Result<StdinTaken, ClientError> {
        let mut query = vec![("eof", u64::from(eof))];
        query.extend(offset.map(|offset| ("offset", offset)));
        let path = format!("{}/stdin", execution_path(id)?);
        self.json(self.patient()?.request(Method::POST, &path).query(&query).body(content)).await
    }

    /// All of it, as a tar archive.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn archive(&self, id: &str) -> Result<Vec<u8>, ClientError> {
        self.bytes(self.request(Method::GET, &format!("{}/archive", execution_path(id)?))).await
    }

    async fn bytes(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, ClientError> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        Ok(response.bytes().await.map_err(|error| self.error(error))?.into())
    }
}
