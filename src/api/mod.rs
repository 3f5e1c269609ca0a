//! The HTTP surface: verifies, converts, calls. It owns nothing; what a request does is decided in the rooms below.

mod about;
mod accept;
mod binary;
mod body;
mod credential_check;
mod credentials;
mod egress;
mod events;
mod executions;
mod feed;
mod files;
mod filter;
mod idempotency;
mod image_pull;
mod image_use;
mod image_verbs;
mod lists;
mod logins;
mod lookup;
mod metrics;
mod metrics_server;
mod openapi;
mod output;
mod pools;
mod problem;
mod process;
mod query;
mod request_id;
mod sandbox_archive;
mod sandbox_files;
mod sandboxes;
mod server;
mod stall;
mod status;
mod stdin;
mod strict;
mod text_format;
mod unread;
mod upload;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post};
use prometheus_client::registry::Registry;

use crate::container::Containers;
use crate::execution::Executions;
use crate::feed::Feed;
use crate::identity::Identities;
use crate::jobs::Jobs;
use crate::login::Logins;
use crate::sandbox::Sandboxes;
use crate::vault::Vault;
use thaw_image::Store;

pub use body::json as read_body;
pub use openapi::document;
pub use problem::ApiError;
pub use server::{PeerCredentials, bind, serve};

/// What the handlers call.
#[derive(Debug)]
pub struct State {
    /// Executions, and through them providers and pools.
    pub executions: Arc<Executions>,
    /// Sandboxes.
    pub sandboxes: Arc<Sandboxes>,
    /// Containers.
    pub containers: Arc<Containers>,
    /// Images.
    pub images: Arc<Store>,
    /// Who goes out with which identity.
    pub identities: Arc<Identities>,
    /// Credentials of users; none without a master key.
    pub vault: Option<Arc<Vault>>,
    /// Logins that are captured; none without a vault.
    pub logins: Option<Arc<Logins>>,
    /// What happens.
    pub feed: Arc<Feed>,
    /// Work on images that takes longer than a request should.
    pub jobs: Jobs,
    /// Users besides root who may change images, by uid.
    pub image_uids: Vec<u32>,
    /// Limits of an image.
    pub image_limits: thaw_image::Limits,
    /// Where archives that were uploaded, and layouts that are pulled, are until they are unpacked.
    pub uploads: PathBuf,
    /// Largest of those, bytes.
    pub max_archive_bytes: u64,
    /// Whether each of them has to be signed.
    pub require_signature: bool,
    /// Public keys whose signatures count.
    pub public_keys: Vec<String>,
    /// Metrics of every room.
    pub registry: Registry,
    /// Gauges that are read off at each scrape.
    pub gauges: Mutex<Gauges>,
    /// Whether the metrics show each execution that runs.
    pub per_execution: bool,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// Time in which a request's body has to arrive.
    pub body_timeout: Duration,
    /// Time between heartbeats on an event stream.
    pub heartbeat: Duration,
}

pub use image_verbs::prepare_uploads;
pub use metrics::Gauges;
pub use metrics_server::{MetricsLimits, serve_metrics};
pub use status::is_healthy;

/// All routes.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/executions", post(executions::create).get(executions::list))
        .route("/v1/executions/{id}", get(executions::get).delete(executions::delete))
        .route("/v1/executions/{id}/stats", get(executions::stats))
        .route("/v1/executions/{id}/events", get(executions::events))
        .route("/v1/executions/{id}/stdout", get(output::stdout))
        .route("/v1/executions/{id}/stderr", get(output::stderr))
        .route("/v1/executions/{id}/files", get(files::files))
        .route("/v1/executions/{id}/archive", get(files::archive))
        .route("/v1/executions/{id}/stdin", post(stdin::send))
        .route("/v1/executions/{id}/cancel", post(executions::cancel))
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).patch(sandboxes::change).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/freeze", post(sandboxes::freeze))
        .route("/v1/sandboxes/{id}/stop", post(sandboxes::stop))
        .route("/v1/sandboxes/{id}/wake", post(sandboxes::wake))
        .route("/v1/sandboxes/{id}/files", get(sandbox_files::read).put(sandbox_files::put))
        .route("/v1/sandboxes/{id}/files", delete(sandbox_files::remove))
        .route("/v1/sandboxes/{id}/files/list", get(sandbox_files::list))
        .route("/v1/sandboxes/{id}/files/stat", get(sandbox_files::stat))
        .route("/v1/sandboxes/{id}/files/mkdir", post(sandbox_files::make_directory))
        .route("/v1/sandboxes/{id}/files/move", post(sandbox_files::rename))
        .route("/v1/sandboxes/{id}/archive", get(sandbox_archive::read).put(sandbox_archive::put))
        .route("/v1/users/{user}/sandboxes/{name}", get(sandboxes::named).put(sandboxes::put))
        .route("/v1/events", get(feed::stream))
        .route("/v1/version", get(about::version))
        .route("/v1/pools", get(pools::list))
        .route("/v1/pools/{provider}", get(pools::get).put(pools::change))
        .route("/v1/containers", get(lists::containers))
        .route("/v1/providers", get(lists::providers))
        .route("/v1/images", get(lists::images))
        .route("/v1/users/{user}/credentials", get(credentials::list).delete(credentials::remove_all))
        .route("/v1/users/{user}/credentials/{provider}", get(credentials::get).put(credentials::put))
        .route("/v1/users/{user}/credentials/{provider}", delete(credentials::remove))
        .route("/v1/users/{user}/credentials/{provider}/check", post(credential_check::check))
        .route("/v1/users/{user}/egress", get(egress::of_user).put(egress::allocate).delete(egress::release))
        .route("/v1/egress/identities", get(egress::identities))
        .route("/v1/egress/identities/{name}", get(egress::identity))
        .route("/v1/users/{user}/audit", get(credentials::audit))
        .route("/v1/users/{user}/rotate-key", post(credentials::rotate_user_key))
        .route("/v1/logins", post(logins::create).get(logins::list))
        .route("/v1/logins/{id}", get(logins::get).delete(logins::cancel))
        .route("/v1/logins/{id}/events", get(logins::stream))
        .route("/v1/logins/{id}/callback", get(logins::callback))
        .route("/v1/logins/{id}/code", post(logins::code))
        .route("/v1/vault", get(credentials::status))
        .route("/v1/vault/rotate-key", post(credentials::rotate_master_key))
        .route("/v1/images/use", post(image_use::use_image))
        .route("/v1/images/import", post(image_verbs::import))
        .route("/v1/images/pull", post(image_pull::pull))
        .route("/v1/images/prune", post(image_verbs::prune))
        .route("/v1/images/verify", post(image_verbs::verify))
        .route("/v1/images/{name}", delete(image_verbs::delete))
        .route("/v1/jobs", get(image_verbs::jobs))
        .route("/v1/jobs/{id}", get(image_verbs::job))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::serve))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(image_verbs::delete_like_a_verb)
        .layer(axum::middleware::from_fn(query::check))
        .layer(axum::middleware::from_fn(unread::read_on))
        .layer(axum::middleware::from_fn(request_id::name))
        .with_state(state)
}
