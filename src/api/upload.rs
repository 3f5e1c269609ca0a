//! Bodies that are passed on piece by piece, of any size.

use std::time::Duration;

use axum::body::Body;

use super::{ApiError, body};
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
    while let Some(piece) = body::piece(&mut content, patience).await? {
        if !upload.send(piece).await {
            // It is known already what is wrong.
            break;
        }
    }
    Ok(upload.finish().await?)
}
