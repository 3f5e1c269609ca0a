//! Taking over another image.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::types::Stage;

/// Body of `POST /v1/images/use`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageUse {
    /// Name of an image that providers have, see `image` of `GET /v1/providers`.
    pub image: String,
}

/// What became of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolRenewal {
    /// Provider whose pool it is.
    pub provider: String,
    /// How far its containers are taken.
    pub stage: Stage,
    /// The one model that its containers serve, if it is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it is made from now.
    pub outcome: Renewal,
}

/// What a pool's containers are made from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Renewal {
    /// The new image: one container of it has come to rest, and the old ones are replaced one by one.
    Renewed,
    /// The same as before: there is no other image.
    Unchanged,
    /// It could not create any before; the image is unpacked now, as at a start.
    Beginning,
}
