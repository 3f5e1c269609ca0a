//! Files of sandboxes. Content comes and goes in pieces, so that it may be larger than memory.

use std::io;

use bytes::Bytes;
use reqwest::header::{ETAG, IF_MATCH};
use reqwest::{Body, Method, RequestBuilder, Response};
use tokio::sync::mpsc;

use super::sandboxes::path as sandbox;
use super::{ANSWER_TIMEOUT, Client, ClientError};
use crate::types::{FileMove, NewDirectory, Page, SandboxFile, Unpacked};

/// Header with how many things an archive leaves out.
pub const LEFT_OUT: &str = "thawd-left-out";

/// Most that a list gives at once.
const PAGE: &str = "1000";

/// Content that comes, piece by piece.
#[derive(Debug)]
pub struct Download {
    response: Response,
    client: Client,
}

impl Download {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// It broke off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.response.chunk().await.map_err(|error| self.client.error(error))
    }

    /// All of it.
    ///
    /// # Errors
    /// It broke off.
    pub async fn whole(mut self) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// Tag of the file that it is.
    pub fn etag(&self) -> Option<&str> {
        self.response.headers().get(ETAG)?.to_str().ok()
    }

    /// How many things the archive leaves out.
    pub fn left_out(&self) -> u64 {
        let header = self.response.headers().get(LEFT_OUT);
        header.and_then(|number| number.to_str().ok()?.parse().ok()).unwrap_or(0)
    }
}

/// Content that goes: as it is, or piece by piece. A sender that is dropped ends it; an error breaks it off.
#[derive(Debug)]
pub enum Upload {
    /// All of it.
    Whole(Vec<u8>),
    /// Pieces that are sent.
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
}

impl From<Upload> for Body {
    fn from(upload: Upload) -> Self {
        match upload {
            Upload::Whole(bytes) => bytes.into(),
            Upload::Pieces(mut pieces) => {
                Self::wrap_stream(futures_util::stream::poll_fn(move |context| pieces.poll_recv(context)))
            }
        }
    }
}

impl Client {
    fn about(
        &self,
        method: Method,
        id: &str,
        rest: &str,
        query: &[(&str, &str)],
    ) -> Result<RequestBuilder, ClientError> {
        Ok(self.request(method, &format!("{}/{rest}", sandbox(id)?)).query(query))
    }

    /// The content of a file, to be read piece by piece.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn read_sandbox_file(&self, id: &str, path: &str) -> Result<Download, ClientError> {
        let response = self.send(self.about(Method::GET, id, "files", &[("path", path)])?).await?;
        Ok(Download { response, client: self.clone() })
    }

    /// Makes a file, or puts it in the place of one; with an `etag` only of the one that has it.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn put_sandbox_file(
        &self,
        id: &str,
        path: &str,
        content: Upload,
        etag: Option<&str>,
    ) -> Result<SandboxFile, ClientError> {
        let request = self.patient()?.about(Method::PUT, id, "files", &[("path", path)])?.body(content);
        self.json(etag.into_iter().fold(request, |request, etag| request.header(IF_MATCH, etag))).await
    }

    /// Removes a file, or a directory, with everything in it if that is meant.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn remove_sandbox_file(&self, id: &str, path: &str, recursive: bool) -> Result<(), ClientError> {
        let recursive = if recursive { "true" } else { "false" };
        let request = self.about(Method::DELETE, id, "files", &[("path", path), ("recursive", recursive)])?;
        self.send(request).await.map(drop)
    }

    /// Everything in a directory, by name.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn sandbox_files(&self, id: &str, path: &str) -> Result<Vec<SandboxFile>, ClientError> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("path", path), ("limit", PAGE)];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let request = self.about(Method::GET, id, "files/list", &query)?.timeout(ANSWER_TIMEOUT);
            let page: Page<SandboxFile> = self.json(request).await?;
            all.extend(page.items);
            match page.next_cursor {
                None => return Ok(all),
                next => cursor = next,
            }
        }
    }

    /// What is known of a file.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn stat_sandbox_file(&self, id: &str, path: &str) -> Result<SandboxFile, ClientError> {
        self.json(self.about(Method::GET, id, "files/stat", &[("path", path)])?.timeout(ANSWER_TIMEOUT)).await
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn make_sandbox_directory(&self, id: &str, new: &NewDirectory) -> Result<SandboxFile, ClientError> {
        self.json(self.about(Method::POST, id, "files/mkdir", &[])?.timeout(ANSWER_TIMEOUT).json(new)).await
    }

    /// Gives a file another path.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn move_sandbox_file(&self, id: &str, what: &FileMove) -> Result<SandboxFile, ClientError> {
        self.json(self.about(Method::POST, id, "files/move", &[])?.timeout(ANSWER_TIMEOUT).json(what)).await
    }

    /// What has this path as a tar archive, to be read piece by piece.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn read_sandbox_archive(&self, id: &str, path: &str) -> Result<Download, ClientError> {
        let response = self.send(self.about(Method::GET, id, "archive", &[("path", path)])?).await?;
        Ok(Download { response, client: self.clone() })
    }

    /// Unpacks a tar archive into a directory.
    ///
    /// # Errors
    /// Those of [`ClientError`].
    pub async fn put_sandbox_archive(&self, id: &str, path: &str, archive: Upload) -> Result<Unpacked, ClientError> {
        self.json(self.patient()?.about(Method::PUT, id, "archive", &[("path", path)])?.body(archive)).await
    }
}
