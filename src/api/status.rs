//! `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use tower::ServiceExt;

use super::{ApiError, pools};
use thaw_client::types::Problem;

/// Says that the daemon runs.
#[utoipa::path(get, path = "/healthz", operation_id = "getHealth", tag = "daemon", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Asks the API how it is without a connection: however many of those clients hold, this way is free.
///
/// # Errors
/// What it answered instead.
pub async fn is_healthy(router: Router) -> Result<(), String> {
    let request = Request::get("/healthz").body(Body::empty()).map_err(|error| error.to_string())?;
    let response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(format!("the API answered {status}")) }
}

/// Says whether executions can be served: every pool that wants containers has some, or serves some, and the others
/// have their image.
#[utoipa::path(get, path = "/readyz", operation_id = "getReadiness", tag = "daemon",
    responses((status = 200, body = String), (status = 503, body = Problem)))]
pub async fn readyz(State(state): State<Arc<super::State>>) -> Result<&'static str, ApiError> {
    let mut waiting = Vec::new();
    for pool in pools::all(&state).await? {
        let ready = if pool.target > 0 {
            pool.warm + pool.claimed > 0
        } else {
            // The list was made from this very map.
            state.executions.served()[&pool.provider].pool.is_prepared().await.unwrap_or(false)
        };
        if !ready {
            waiting.push(match pool.last_error {
                Some(reason) => format!("{} ({reason})", pool.provider),
                None => pool.provider,
            });
        }
    }
    if waiting.is_empty() {
        return Ok("ready\n");
    }
    let detail = format!("no container yet for: {}", waiting.join("; "));
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail))
}
