//! `/v1/tenants/{tenant}/containers/{container}/functions`.

use super::{
    Api, Shared,
    auth::Caller,
    containers::Settings,
    page::{IfMatch, List, Paging, Wait, etag},
    problem::ApiError,
    spec,
    view::{FunctionView, VersionView, inline_files},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode},
};
use bytes::Bytes;
use futures_util::StreamExt;
use hearth_model::{
    CodeRef, ContainerName, ContainerPath, Function, FunctionName, FunctionPath, FunctionSpec, FunctionVersion, Problem,
    ProblemKind, Scope, Tenant, TenantName, VersionNumber, VersionStatus, function::SealedSecret, limits, object::Object,
};
use hearth_store::{NewVersion, Precondition, StoreError};
use serde::Deserialize;
use std::collections::BTreeMap;

/// How much of a function to show.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Showing {
    /// Whether to show the files, too.
    #[serde(default)]
    code: bool,
}

/// Which version to make live.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// A version that is ready.
    version: VersionNumber,
}

type Names = (String, String, String);

fn path((tenant, container, function): &Names) -> Result<FunctionPath, ApiError> {
    Ok(FunctionPath { tenant: tenant.parse()?, container: container.parse()?, function: function.parse()? })
}

/// A container's functions.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}/functions", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<FunctionView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container)): Path<(String, String)>,
    Query(paging): Query<Paging>,
) -> Result<Json<List<FunctionView>>, ApiError> {
    let path = ContainerPath { tenant: tenant.parse()?, container: container.parse()? };
    caller.require(&path.tenant, Scope::Read)?;
    if api.deps.functions.get_container(&path).await?.is_none() {
        return Err(ApiError::not_found("container"));
    }
    let page = api.deps.functions.list_functions(&path, paging.cursor(), paging.limit()?).await?;
    Ok(Json(List::of(page, |f| FunctionView::of(f, None))))
}

/// One function with its newest version.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path), Showing), security(("bearer" = [])), responses(
    (status = 200, body = FunctionView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(api): State<Shared>,
    caller: Caller,
    Path(names): Path<Names>,
    Query(showing): Query<Showing>,
) -> Result<(HeaderMap, Json<FunctionView>), ApiError> {
    let path = path(&names)?;
    caller.require(&path.tenant, Scope::Read)?;
    let function = api.deps.functions.get_function(&path).await?.ok_or_else(|| ApiError::not_found("function"))?;
    let version = api.deps.functions.get_version(&path, function.latest).await?;
    let view = match version {
        Some(version) => Some(api.view(version, function.live, showing.code).await?),
        None => None,
    };
    Ok((etag(function.generation), Json(FunctionView::of(function, view))))
}

/// Makes a new version. It goes live when it can run; until then the one before it serves.
///
/// 201 (new function) or 200 when the version is live; 202 while modules build. `Prefer: wait=N` waits up to N seconds for that; a
/// dependency that cannot be built is then a 400 that names it.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path)), request_body = FunctionSpec, security(("bearer" = [])), responses(
    (status = 200, body = FunctionView), (status = 201, body = FunctionView), (status = 202, body = FunctionView),
    (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn put(
    State(api): State<Shared>,
    caller: Caller,
    Path(names): Path<Names>,
    IfMatch(precondition): IfMatch,
    Wait(wait): Wait,
    Json(Object(wanted)): Json<Object<FunctionSpec>>,
) -> Result<(StatusCode, HeaderMap, Json<FunctionView>), ApiError> {
    let path = path(&names)?;
    caller.require(&path.tenant, Scope::Write)?;
    let source = spec::check_source(&wanted)?;
    spec::check_configuration(&wanted)?;
    let (function, version) = api.create(&path, &caller, wanted, source, precondition).await?;
    let is_new = function.latest == VersionNumber(1);
    let wait = wait.map(|w| w.min(api.config.wait_max));
    let (function, version) = match (&version.status, wait) {
        (VersionStatus::Building, Some(wait)) => api.wait_until_settled(&path, version.version, wait).await?,
        _ => (function, version),
    };
    let status = match &version.status {
        VersionStatus::Ready if is_new => StatusCode::CREATED,
        VersionStatus::Ready => StatusCode::OK,
        VersionStatus::Building => StatusCode::ACCEPTED,
        VersionStatus::Failed { reason } => return Err(ApiError::invalid("dependencies", reason.clone())),
    };
    let mut headers = etag(function.generation);
    if let Some(wait) = wait
        && let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs()))
    {
        headers.insert("preference-applied", applied);
    }
    let view = VersionView::of(version, function.live, None);
    Ok((status, headers, Json(FunctionView::of(function, Some(view)))))
}

/// Deletes a function with all its versions and its storage document.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path)), security(("bearer" = [])), responses(
    (status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(
    State(api): State<Shared>,
    caller: Caller,
    Path(names): Path<Names>,
    IfMatch(precondition): IfMatch,
) -> Result<StatusCode, ApiError> {
    let path = path(&names)?;
    caller.require(&path.tenant, Scope::Write)?;
    api.deps.functions.delete_function(&path, precondition).await?;
    api.deps.catalog.invalidate(&path);
    Ok(StatusCode::NO_CONTENT)
}

/// A function's versions, the newest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}/versions", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path), Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<VersionView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn versions(
    State(api): State<Shared>,
    caller: Caller,
    Path(names): Path<Names>,
    Query(paging): Query<Paging>,
) -> Result<Json<List<VersionView>>, ApiError> {
    let path = path(&names)?;
    caller.require(&path.tenant, Scope::Read)?;
    let function = api.deps.functions.get_function(&path).await?.ok_or_else(|| ApiError::not_found("function"))?;
    let page = api.deps.functions.list_versions(&path, paging.cursor(), paging.limit()?).await?;
    Ok(Json(List::of(page, |v| VersionView::of(v, function.live, None))))
}

/// One version with its files.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}/versions/{version}", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path), ("version" = u64, Path)), security(("bearer" = [])), responses(
    (status = 200, body = VersionView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn version(
    State(api): State<Shared>,
    caller: Caller,
    Path((tenant, container, function, version)): Path<(String, String, String, String)>,
) -> Result<Json<VersionView>, ApiError> {
    let path = path(&(tenant, container, function))?;
    caller.require(&path.tenant, Scope::Read)?;
    let number = version.parse().map_err(|_| ApiError::invalid("version", "a version is a number"))?;
    let function = api.deps.functions.get_function(&path).await?.ok_or_else(|| ApiError::not_found("function"))?;
    let version =
        api.deps.functions.get_version(&path, VersionNumber(number)).await?.ok_or_else(|| ApiError::not_found("version"))?;
    Ok(Json(api.view(version, function.live, true).await?))
}

/// Makes an earlier version live again.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/containers/{container}/functions/{function}/rollback", tag = "functions",
    params(("tenant" = TenantName, Path), ("container" = ContainerName, Path), ("function" = FunctionName, Path)), request_body = Rollback, security(("bearer" = [])), responses(
    (status = 200, body = FunctionView), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn rollback(
    State(api): State<Shared>,
    caller: Caller,
    Path(names): Path<Names>,
    IfMatch(precondition): IfMatch,
    Json(Object(rollback)): Json<Object<Rollback>>,
) -> Result<(HeaderMap, Json<FunctionView>), ApiError> {
    let path = path(&names)?;
    caller.require(&path.tenant, Scope::Write)?;
    let function = api.deps.functions.set_live(&path, rollback.version, precondition).await?;
    api.deps.catalog.invalidate(&path);
    Ok((etag(function.generation), Json(FunctionView::of(function, None))))
}

impl Api {
    async fn view(&self, version: FunctionVersion, live: Option<VersionNumber>, with_code: bool) -> Result<VersionView, ApiError> {
        let files = match &version.code {
            _ if !with_code => None,
            CodeRef::Inline(_) => inline_files(&version),
            CodeRef::Artifact { sha256, .. } => {
                let (_, mut chunks) = self.deps.bundles.get(sha256).await?;
                let mut bundle = Vec::new();
                while let Some(chunk) = chunks.next().await {
                    bundle.extend_from_slice(&chunk?);
                }
                serde_json::from_slice(&bundle).ok()
            }
        };
        Ok(VersionView::of(version, live, files))
    }

    /// The tenant; for an operator's call one that is missing is as good as made, so that a first function needs no steps before it.
    async fn tenant_for(&self, path: &FunctionPath, caller: &Caller) -> Result<Tenant, ApiError> {
        match self.tenant(&path.tenant).await? {
            Some(tenant) => Ok(tenant),
            None if caller.is_admin() => Ok(Tenant::new(path.tenant.clone())),
            None => Err(ApiError::not_found("tenant")),
        }
    }

    async fn make_tenant(&self, tenant: Tenant) -> Result<(), ApiError> {
        match self.deps.functions.put_tenant(tenant, Precondition::Absent).await {
            // Somebody else's first call was quicker.
            Ok(_) | Err(StoreError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn create(
        &self,
        path: &FunctionPath,
        caller: &Caller,
        wanted: FunctionSpec,
        source: spec::Source,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), ApiError> {
        let functions = &self.deps.functions;
        let tenant = self.tenant_for(path, caller).await?;
        let settings = Settings { memory_mb: wanted.memory_mb, concurrency: wanted.concurrency, node: None };
        spec::check_settings(&settings, &tenant.limits)?;
        let existing = functions.get_function(path).await?;
        if existing.is_none() && functions.count_tenant(&path.tenant).await?.functions >= u64::from(tenant.limits.functions_max) {
            return Err(ApiError::new(
                ProblemKind::QuotaExceeded,
                format!("this tenant may keep {} functions; delete one, or ask the operator for more", tenant.limits.functions_max),
            ));
        }
        // Everything that can be refused is refused before anything is written. The store checks the precondition again, in one step with
        // the write; here it keeps the container and the tenant as they are.
        precondition.check(&format!("function {path}"), existing.as_ref().map(|f| f.generation))?;
        let modules = self.resolve(&path.container_path(), &source.dependencies).await?;
        let secrets = self.seal(path, existing.as_ref(), wanted.secrets).await?;
        let code = self.store_code(source.files).await?;
        if tenant.generation == 0 {
            self.make_tenant(tenant.clone()).await?;
        }
        self.write_container(&path.container_path(), settings, Precondition::None, false).await?;
        let node = functions.get_container(&path.container_path()).await?.map(|c| c.node).unwrap_or_default();
        let ready = self.request_builds(&tenant, &modules, node).await?;
        let new = NewVersion {
            status: if ready { VersionStatus::Ready } else { VersionStatus::Building },
            code,
            main: source.main,
            model: wanted.model,
            timeout_ms: wanted.timeout_ms.unwrap_or(limits::TIMEOUT_MS_DEFAULT),
            dependencies: source.dependencies,
            modules,
            env: wanted.env,
            secrets,
        };
        let (function, version) = functions.create_version(path, new, precondition).await?;
        self.deps.catalog.invalidate(path);
        if ready {
            return Ok((function, version));
        }
        // What was being built may have been finished between the look and the write; then nobody else settles this version.
        self.settle_if_built(path, version).await
    }

    async fn seal(
        &self,
        path: &FunctionPath,
        existing: Option<&Function>,
        wanted: BTreeMap<String, Option<String>>,
    ) -> Result<BTreeMap<String, SealedSecret>, ApiError> {
        let kept = match existing.and_then(|f| f.live.or(Some(f.latest))) {
            Some(version) if wanted.values().any(Option::is_none) => {
                self.deps.functions.get_version(path, version).await?.map(|v| v.secrets).unwrap_or_default()
            }
            _ => BTreeMap::new(),
        };
        let mut sealed = BTreeMap::new();
        for (name, value) in wanted {
            let secret = match value {
                Some(value) => self.deps.keyring.seal(path, &name, &value).await?,
                None => kept.get(&name).cloned().ok_or_else(|| {
                    ApiError::invalid(
                        format!("secrets.{name}"),
                        "null keeps a secret's value, but there is none under this name: send a value",
                    )
                })?,
            };
            sealed.insert(name, secret);
        }
        Ok(sealed)
    }

    async fn store_code(&self, files: BTreeMap<String, String>) -> Result<CodeRef, ApiError> {
        let bytes: usize = files.iter().map(|(name, text)| name.len() + text.len()).sum();
        if bytes <= limits::CODE_INLINE_BYTES_MAX {
            return Ok(CodeRef::Inline(files));
        }
        let bundle = Bytes::from(serde_json::to_vec(&files).unwrap_or_default());
        let bytes = bundle.len() as u64;
        let (sha256, _) = self.deps.bundles.put_bytes(bundle).await?;
        Ok(CodeRef::Artifact { sha256, bytes })
    }
}
