//! `/v1/tenants`.

use super::{
    Api, Shared,
    auth::Caller,
    page::{IfMatch, List, Paging, etag},
    problem::ApiError,
    view::TenantView,
};
use crate::usage::UsageView;
use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
};
use hearth_model::{ContainerPath, Problem, Scope, Tenant, TenantLimits, TenantName, object::Object};
use hearth_store::Precondition;
use serde::Deserialize;

/// Of any limit: what the document's `int32` can hold.
const LIMIT_MAX: u32 = i32::MAX as u32;

/// What can be set about a tenant.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantSpec {
    /// What it may use; what is absent has its default. Not together with `class`.
    #[serde(default, deserialize_with = "hearth_model::object::optional_object")]
    limits: Option<TenantLimits>,
    /// The name of one of the operator's classes (`node.classes` of the configuration), which sets the limits.
    class: Option<String>,
}

/// What a deletion takes along.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deletion {
    /// Delete what is inside, too; without it only what is empty is deleted.
    #[serde(default)]
    pub recursive: bool,
}

/// All tenants; a tenant's token sees its own.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<TenantView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<List<TenantView>>, ApiError> {
    let limit = paging.limit()?;
    if let Some(own) = caller.tenant() {
        caller.require(own, Scope::Read)?;
        let tenant = api.tenant(own).await?;
        return Ok(Json(List { items: tenant.into_iter().map(TenantView::of).collect(), next: None }));
    }
    caller.require_admin()?;
    Ok(Json(List::of(api.deps.functions.list_tenants(paging.cursor(), limit).await?, |tenant| {
        TenantView::of(api.deps.classes.apply(tenant))
    })))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = TenantName, Path)), security(("bearer" = [])), responses(
    (status = 200, body = TenantView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(api): State<Shared>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<(HeaderMap, Json<TenantView>), ApiError> {
    let tenant: TenantName = tenant.parse()?;
    caller.require(&tenant, Scope::Read)?;
    let tenant = api.tenant(&tenant).await?.ok_or_else(|| ApiError::not_found("tenant"))?;
    Ok((etag(tenant.generation), Json(TenantView::of(tenant))))
}

/// Creates or changes a tenant; operators only.
#[utoipa::path(put, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = TenantName, Path)), request_body = TenantSpec, security(("bearer" = [])), responses(
    (status = 200, body = TenantView), (status = 201, body = TenantView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn put(
    State(api): State<Shared>,
    caller: Caller,
    Path(tenant): Path<String>,
    IfMatch(precondition): IfMatch,
    Json(Object(spec)): Json<Object<TenantSpec>>,
) -> Result<(StatusCode, HeaderMap, Json<TenantView>), ApiError> {
    let name: TenantName = tenant.parse()?;
    caller.require(&name, Scope::Admin)?;
    let limits = api.limits(&spec)?;
    let rates = [
        ("concurrency", limits.concurrency),
        ("rate_per_s", limits.rate_per_s),
        ("burst", limits.burst),
        ("answer_mb_per_s", limits.answer_mb_per_s),
    ];
    for (field, value) in rates {
        if value == 0 {
            return Err(ApiError::invalid(format!("limits.{field}"), "0 would let nothing pass; use 1 or more"));
        }
    }
    let counts = [
        ("functions_max", limits.functions_max),
        ("containers_max", limits.containers_max),
        ("builds_per_hour", limits.builds_per_hour),
    ];
    if let Some((field, _)) = rates.into_iter().chain(counts).find(|(_, value)| *value > LIMIT_MAX) {
        return Err(ApiError::invalid(format!("limits.{field}"), format!("use {LIMIT_MAX} or less")));
    }
    if limits.memory_mb_max > u64::from(LIMIT_MAX) {
        return Err(ApiError::invalid("limits.memory_mb_max", format!("use {LIMIT_MAX} or less")));
    }
    limits.egress.check().map_err(|detail| ApiError::invalid("limits.egress", detail))?;
    let tenant = Tenant { class: spec.class, limits, ..Tenant::new(name) };
    let tenant = api.deps.functions.put_tenant(tenant, precondition).await?;
    api.deps.catalog.invalidate_tenant(&tenant.name);
    let status = if tenant.generation == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, etag(tenant.generation), Json(TenantView::of(tenant))))
}

impl Api {
    fn limits(&self, spec: &TenantSpec) -> Result<TenantLimits, ApiError> {
        let limits = match (&spec.class, &spec.limits) {
            (Some(_), Some(_)) => return Err(ApiError::invalid("class", "the class sets the limits: leave `limits` out")),
            (Some(class), None) => self.deps.classes.0.get(class).cloned().ok_or_else(|| {
                let known = self.deps.classes.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                ApiError::invalid("class", format!("{class:?} is no class of this installation; `node.classes` has: {known}"))
            })?,
            (None, limits) => limits.clone().unwrap_or_default(),
        };
        if let Some(runtime) = &limits.oci_runtime
            && !self.deps.oci_runtimes.contains(runtime)
        {
            let known = self.deps.oci_runtimes.join(", ");
            let detail = format!("{runtime:?} is no runtime of this installation; `docker.oci_runtimes` has: {known}");
            return Err(ApiError::invalid("limits.oci_runtime", detail));
        }
        Ok(limits)
    }
}

/// What the tenant has used on the node that answers, since its process started.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/usage", tag = "tenants", params(("tenant" = TenantName, Path)), security(("bearer" = [])), responses(
    (status = 200, body = UsageView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn usage(
    State(api): State<Shared>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Result<Json<UsageView>, ApiError> {
    let tenant: TenantName = tenant.parse()?;
    caller.require(&tenant, Scope::Read)?;
    let tenant = api.tenant(&tenant).await?.ok_or_else(|| ApiError::not_found("tenant"))?;
    Ok(Json(api.deps.usage.view(&tenant.name)))
}

/// Deletes a tenant, its tokens included; operators only.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = TenantName, Path), Deletion), security(("bearer" = [])), responses(
    (status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(
    State(api): State<Shared>,
    caller: Caller,
    Path(tenant): Path<String>,
    Query(deletion): Query<Deletion>,
    IfMatch(precondition): IfMatch,
) -> Result<StatusCode, ApiError> {
    let tenant: TenantName = tenant.parse()?;
    caller.require(&tenant, Scope::Admin)?;
    if deletion.recursive {
        loop {
            let page = api.deps.functions.list_containers(&tenant, None, 100).await?;
            if page.items.is_empty() {
                break;
            }
            for container in page.items {
                let path = ContainerPath { tenant: tenant.clone(), container: container.name };
                super::containers::delete_whole(&api, &path, Precondition::None).await?;
            }
        }
    }
    api.deps.functions.delete_tenant(&tenant, precondition).await?;
    api.deps.catalog.invalidate_tenant(&tenant);
    api.guard.forget();
    Ok(StatusCode::NO_CONTENT)
}
