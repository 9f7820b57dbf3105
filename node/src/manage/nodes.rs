//! `/v1/nodes`: asking one node of the cluster to leave.

use super::{Shared, auth::Caller, problem::ApiError};
use crate::cluster::DrainError;
use axum::{
    extract::{Path, State},
    http::StatusCode,
};
use hearth_model::{Problem, ProblemKind};
use hearth_placement::NodeName;

/// Asks a node to leave: it tells the routers, finishes what runs, and ends. 202 when it has begun; operators only.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "cluster", params(("node" = String, Path)), security(("bearer" = [])), responses(
    (status = 202), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn drain(State(api): State<Shared>, caller: Caller, Path(node): Path<String>) -> Result<StatusCode, ApiError> {
    caller.require_admin()?;
    let name: NodeName = node.parse().map_err(|_| ApiError::not_found("node"))?;
    let peers = api.deps.peers.as_ref().ok_or_else(|| ApiError::not_found("node"))?;
    match peers.drain(&name).await {
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(DrainError::Unknown(_)) => Err(ApiError::not_found("node")),
        Err(error @ DrainError::Call { .. }) => Err(ApiError::new(ProblemKind::DependencyUnavailable, error.to_string())),
    }
}
