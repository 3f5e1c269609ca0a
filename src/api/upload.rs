//! Bodies that are passed on piece by piece, of any size.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt;

use super::ApiError;
use crate::sandbox::Upload;

/// Passes a body on to where it goes, and gives what came of it. What was refused before is answered at once, and what its
/// client still sends is read for a while.
///
/// # Errors
/// What is wrong with it, or with what it is made into.
pub async fn receive<T: Send + 'static>(
    begun: Result<Upload<T>, ApiError>,
    mut content: Body,
    patience: Duration,
) -> Result<T, ApiError> {
    let upload = begun?;
    loop {
        let frame = tokio::time::timeout(patience, content.frame()).await.map_err(|_| {
            let seconds = patience.as_secs();
            let detail = format!("nothing came for {seconds} s (`api.connections.body_timeout_seconds`)");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body did not arrive whole"))?;
        let Ok(piece) = frame.into_data() else { continue };
        if !upload.send(piece).await {
            // It is known already what is wrong.
            break;
        }
    }
    Ok(upload.finish().await?)
}
