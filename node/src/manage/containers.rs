//! `/v1/tenants/{tenant}/containers`.

use super::{
    Api, Shared,
    auth::Caller,
    page::{IfMatch, List, Paging, etag},
    problem::ApiError,
    spec,
    tenants::Deletion,
    view::ContainerView,
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
};
use hearth_model::{
    Container, ContainerName, ContainerPath, Problem, ProblemKind, Scope, TenantName, Timestamp, function::NodeVersion, limits,
    object::Object,
};
use hearth_store::{Precondition, StoreError};
use serde::Deserialize;

/// What can be set about a container; what is absent has its default.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContainerSpec {
    /// Memory, in MiB: 64 to what the tenant may use.
    #[serde(default)]
    memory_mb: Option<u64>,
    /// Requests at once, 1 to 10000. Of those whose bodies have more than 16 KiB or come in chunks, half may have them still on their way (one
    /// at least).
    #[serde(default)]
    concurrency: Option<u32>,
    /// Which Node.js.
    #[serde(default)]
    node: Option<NodeVersion>,
}

fn path(tenant: &str, container: &str) -> Result<ContainerPath, ApiError> {
    Ok(ContainerPath { tenant: tenant.parse()?, container: container.parse()? })
}

/// A tenant's containers.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers", tag = "containers", params(("tenant" = TenantName, Path), Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<ContainerView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Path(tenant): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<List<ContainerView>>, ApiError> {
    let tenant: TenantName = tenant.parse()?;
    caller.require(&tenant, Scope::Read)?;
    if api.deps.functions.get_tenant(&tenant).await?.is_none() {
        return Err(ApiError::not_found("tenant"));
    }
    Ok(Json(List::of(api.deps.functions.list_containers(&tenant, paging.cursor(), paging.limit()?).await?, ContainerView::of)))
}

/// One container.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}", tag = "containers", params(("tenant" = TenantName, Path), ("container" = ContainerName, Path)), security(("bearer" = [])), responses(
    (status = 200, body = ContainerView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container)): Path<(String, String)>,
) -> Result<(HeaderMap, Json<ContainerView>), ApiError> {
    let path = path(&tenant, &container)?;
    caller.require(&path.tenant, Scope::Read)?;
    let container = api.deps.functions.get_container(&path).await?.ok_or_else(|| ApiError::not_found("container"))?;
    Ok((etag(container.generation), Json(ContainerView::of(container))))
}

/// Creates or changes a container. A running one with another memory or Node.js finishes its requests and is replaced.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/containers/{container}", tag = "containers", params(("tenant" = TenantName, Path), ("container" = ContainerName, Path)), request_body = ContainerSpec, security(("bearer" = [])), responses(
    (status = 200, body = ContainerView), (status = 201, body = ContainerView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn put(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container)): Path<(String, String)>,
    IfMatch(precondition): IfMatch,
    Json(Object(wanted)): Json<Object<ContainerSpec>>,
) -> Result<(StatusCode, HeaderMap, Json<ContainerView>), ApiError> {
    let path = path(&tenant, &container)?;
    caller.require(&path.tenant, Scope::Write)?;
    let changes = Settings { memory_mb: wanted.memory_mb, concurrency: wanted.concurrency, node: wanted.node };
    let container = api.write_container(&path, changes, precondition, true).await?;
    let status = if container.generation == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, etag(container.generation), Json(ContainerView::of(container))))
}

/// Deletes a container.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/containers/{container}", tag = "containers", params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), Deletion), security(("bearer" = [])), responses(
    (status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container)): Path<(String, String)>,
    Query(deletion): Query<Deletion>,
    IfMatch(precondition): IfMatch,
) -> Result<StatusCode, ApiError> {
    let path = path(&tenant, &container)?;
    caller.require(&path.tenant, Scope::Write)?;
    if deletion.recursive {
        delete_whole(&api, &path, precondition).await?;
    } else {
        api.deps.functions.delete_container(&path, precondition).await?;
    }
    (api.deps.handler_evict)(&path);
    api.deps.catalog.invalidate_container(&path);
    Ok(StatusCode::NO_CONTENT)
}

/// With all its functions.
pub(super) async fn delete_whole(api: &Api, path: &ContainerPath, precondition: Precondition) -> Result<(), ApiError> {
    loop {
        let page = api.deps.functions.list_functions(path, None, 100).await?;
        if page.items.is_empty() {
            break;
        }
        for function in page.items {
            match api.deps.functions.delete_function(&function.path, Precondition::None).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    api.deps.functions.delete_container(path, precondition).await?;
    (api.deps.handler_evict)(path);
    api.deps.catalog.invalidate_container(path);
    Ok(())
}

/// What is to change about a container.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Settings {
    pub memory_mb: Option<u64>,
    pub concurrency: Option<u32>,
    pub node: Option<NodeVersion>,
}

impl Api {
    /// Makes a container with these settings, or changes it. With `reset` what is absent gets its default, without it stays.
    pub(super) async fn write_container(
        &self,
        path: &ContainerPath,
        changes: Settings,
        precondition: Precondition,
        reset: bool,
    ) -> Result<Container, ApiError> {
        let functions = &self.deps.functions;
        let tenant = self.tenant(&path.tenant).await?.ok_or_else(|| ApiError::not_found("tenant"))?;
        spec::check_settings(&changes, &tenant.limits)?;
        let existing = functions.get_container(path).await?;
        if existing.is_none() && functions.count_tenant(&path.tenant).await?.containers >= u64::from(tenant.limits.containers_max) {
            return Err(ApiError::new(
                ProblemKind::QuotaExceeded,
                format!(
                    "this tenant may keep {} containers; delete one, or ask the operator for more",
                    tenant.limits.containers_max
                ),
            ));
        }
        let base = match &existing {
            Some(existing) if !reset => existing.clone(),
            _ => Container::with_defaults(path, Timestamp(0)),
        };
        let wanted = Container {
            memory_mb: changes.memory_mb.unwrap_or(base.memory_mb.min(tenant.limits.memory_mb_max.max(limits::MEMORY_MB_MIN))),
            concurrency: changes.concurrency.unwrap_or(base.concurrency),
            node: changes.node.unwrap_or(base.node),
            ..base
        };
        if precondition == Precondition::None
            && let Some(existing) = &existing
            && (existing.memory_mb, existing.concurrency, existing.node) == (wanted.memory_mb, wanted.concurrency, wanted.node)
        {
            return Ok(existing.clone());
        }
        let container = functions.put_container(wanted, precondition).await?;
        self.deps.catalog.invalidate_container(path);
        if existing.is_some_and(|e| (e.memory_mb, e.node) != (container.memory_mb, container.node)) {
            (self.deps.handler_evict)(path);
        }
        Ok(container)
    }
}
