//! `/v1/images/use`: lets providers take over what their image is now.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

use super::image_verbs::check_peer;
use super::{ApiError, PeerCredentials, body};
use crate::pool::{ClaimError, Renewed};
use thaw_client::renewal::{ImageUse, PoolRenewal, Renewal};
use thaw_client::types::{List, Problem, Stage};

/// Lets the providers of an image take over what it is now, while they serve.
///
/// The image is unpacked beside the old one. For each pool one container is made from it; if that comes to rest, as far as
/// the pool takes its containers, new containers are made from it, and each takes the place of an old one. Executions are
/// not touched, and claims go on. The answer comes when that is decided for each pool; replacing the others takes longer,
/// and can be followed in `GET /v1/containers`. With the first pool whose container fails it ends, and the old image serves
/// on there.
#[utoipa::path(post, path = "/v1/images/use", operation_id = "putImageToUse", tag = "images", request_body = ImageUse, responses(
    (status = 200, description = "what became of each pool of these providers", body = List<PoolRenewal>),
    (status = 400, description = "the body is wrong", body = Problem), (status = 403, body = Problem),
    (status = 404, description = "no provider has this image", body = Problem),
    (status = 408, description = "the body did not arrive in time", body = Problem),
    (status = 409, description = "its containers do not start (`image_refused`): the old one serves on", body = Problem),
    (status = 413, description = "the body is too large", body = Problem),
    (status = 503, description = "the daemon is stopping", body = Problem)))]
pub async fn use_image(
    State(state): State<Arc<super::State>>,
    ConnectInfo(peer): ConnectInfo<PeerCredentials>,
    body: Body,
) -> Result<Json<List<PoolRenewal>>, ApiError> {
    check_peer(&state, peer)?;
    let ImageUse { image } = body::json(body, state.max_body_bytes, state.body_timeout).await?;
    let served = state.executions.served().values().filter(|served| served.provider.image == image);
    let pools: Vec<_> = served
        .flat_map(|served| std::iter::once(&served.pool).chain(served.prestarted.iter().map(|(pool, _)| pool)))
        .cloned()
        .collect();
    if pools.is_empty() {
        return Err(ApiError::not_found("provider with the image", &image));
    }
    tracing::info!(image, peer_uid = peer.uid, peer_pid = peer.pid, "an image is to be taken over");
    // To its end, whatever becomes of the client.
    let renewed = tokio::spawn(async move {
        let mut items = Vec::new();
        for pool in pools {
            let renewed = pool.renew().await.map_err(stopped)?;
            let status = pool.status().await.map_err(stopped)?;
            let outcome = match renewed {
                Renewed::Renewed => Renewal::Renewed,
                Renewed::Unchanged => Renewal::Unchanged,
                Renewed::Beginning => Renewal::Beginning,
                Renewed::Refused(reason) => {
                    let what = if status.stage == Stage::Prestarted { "prestarted containers" } else { "containers" };
                    let detail = format!(
                        "{what} of {} cannot be made from it: {reason}; the old one serves on",
                        status.provider
                    );
                    return Err(ApiError::new(StatusCode::CONFLICT, "image_refused", detail));
                }
            };
            items.push(PoolRenewal { provider: status.provider, stage: status.stage, model: status.model, outcome });
        }
        Ok(items)
    });
    let items = renewed
        .await
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "image_use", error.to_string()))??;
    Ok(Json(List { items }))
}

fn stopped(error: ClaimError) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", error.to_string())
}
