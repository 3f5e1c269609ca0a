//! Images that providers have.

use std::time::Duration;

use reqwest::Method;

use super::{Client, ClientError};
use crate::renewal::{ImageUse, PoolRenewal};
use crate::types::List;

/// Longest wait for an image to be taken over: it is unpacked, and for each pool a container is started, with its CLI if
/// those wait already started.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(600);

impl Client {
    /// Lets the providers of an image take over what it is now.
    ///
    /// # Errors
    /// Those of [`ClientError`]; the old image serves on then.
    pub async fn use_image(&self, image: &str) -> Result<Vec<PoolRenewal>, ClientError> {
        let body = ImageUse { image: image.to_owned() };
        let request = self.request(Method::POST, "/v1/images/use").timeout(RENEWAL_TIMEOUT).json(&body);
        self.json::<List<PoolRenewal>>(request).await.map(|list| list.items)
    }
}
