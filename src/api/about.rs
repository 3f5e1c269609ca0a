//! `/v1/version`: what this daemon is, can and allows.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::filter::{MAX_PAGE, MAX_WAIT};
use thaw_client::types::{DaemonVersion, LimitsInForce, MAX_USER};

/// What came to `/v1` since its beginning. Names stay; see docs/compatibility.md.
const FEATURES: [&str; 13] = [
    "collected_files",
    "daemon_events",
    "delete_execution",
    "event_times",
    "execution_filters",
    "execution_stats",
    "execution_wait",
    "idempotency_key",
    "image_use",
    "image_verbs",
    "sandboxes",
    "user_names_of_identity_systems",
    "vault",
];

/// Says what this daemon is, what it can and what it allows.
#[utoipa::path(get, path = "/v1/version", operation_id = "getVersion", tag = "daemon",
    responses((status = 200, description = "version, features and limits", body = DaemonVersion)))]
pub async fn version(State(state): State<Arc<super::State>>) -> Json<DaemonVersion> {
    let settings = state.executions.settings();
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Json(DaemonVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("THAWD_COMMIT").filter(|commit| !commit.is_empty()).map(str::to_owned),
        features: FEATURES.map(str::to_owned).to_vec(),
        limits: LimitsInForce {
            max_body_bytes: state.max_body_bytes,
            max_containers: state.containers.limit().0,
            max_executions_per_user: settings.max_per_user,
            max_timeout_ms: ms(settings.max_timeout),
            queue_timeout_ms: ms(settings.queue_timeout),
            max_queue_timeout_ms: ms(settings.max_queue_timeout),
            output_bytes: settings.output_bytes,
            retention_seconds: settings.retention.as_secs(),
            max_retained: settings.retained,
            max_page: MAX_PAGE,
            max_wait_ms: ms(MAX_WAIT),
            max_user_characters: MAX_USER,
        },
    })
}
