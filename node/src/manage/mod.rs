//! The management API under `/v1`: tenants, containers, functions, tokens, modules, logs, status. JSON in and out, problems by RFC 9457,
//! the OpenAPI document generated from the handlers. It decides who may do what in one place (`auth`), writes one audit line per
//! mutating call, and never shows a secret's value.

mod audit;
mod auth;
mod builds;
mod containers;
mod document;
mod functions;
mod logs;
mod modules;
mod nodes;
mod page;
mod problem;
mod spec;
mod tenants;
mod tokens;
mod view;

pub use auth::bootstrap_admin_token;

use crate::{catalog::Catalog, cluster::Peers, logs::LogHub, usage::UsageBook};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::Response,
};
use bytesize::ByteSize;
use hearth_model::{Classes, ContainerPath, Tenant, TenantName, limits};
use hearth_registry::Registry;
use hearth_store::{ArtifactStore, BuildQueue, FunctionStore, Keyring};
use problem::ApiError;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The management API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The audit log; none for `audit.jsonl` in the data directory.
    pub audit_file: Option<PathBuf>,
    /// At this size the audit log is put aside (as `.1`, one older is kept).
    pub audit_size_max: ByteSize,
    /// Longest wait of `Prefer: wait=N`.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// Deadline of a call, beside what it waits for builds.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Wrong tokens that one address may present per minute.
    pub wrong_tokens_per_minute: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            audit_file: None,
            audit_size_max: ByteSize::mib(64),
            wait_max: Duration::from_secs(60),
            call_timeout: Duration::from_secs(30),
            wrong_tokens_per_minute: 60,
        }
    }
}

/// What the API works on.
pub struct Deps {
    /// Records.
    pub functions: Arc<dyn FunctionStore>,
    /// Code that is too large for its record.
    pub bundles: Arc<dyn ArtifactStore>,
    /// Builds to do.
    pub queue: Arc<dyn BuildQueue>,
    /// Seals secrets.
    pub keyring: Arc<dyn Keyring>,
    /// Resolves dependencies.
    pub registry: Arc<Registry>,
    /// Told of every change.
    pub catalog: Arc<Catalog>,
    /// The operator's classes of tenants.
    pub classes: Arc<Classes>,
    /// OCI runtimes that a tenant may be given.
    pub oci_runtimes: Vec<String>,
    /// What tenants use.
    pub usage: Arc<UsageBook>,
    /// Ends containers whose settings changed.
    pub handler_evict: Arc<dyn Fn(&ContainerPath) + Send + Sync>,
    /// Functions' output.
    pub logs: Arc<LogHub>,
    /// The other nodes; none on a machine by itself.
    pub peers: Option<Arc<Peers>>,
    /// What this node says of itself.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Identity of the image that modules are built in.
    pub build_image: String,
    /// `x86_64` or `aarch64`.
    pub arch: &'static str,
    /// This node's files.
    pub data_dir: PathBuf,
}

/// The id that the listener has given to a request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Who called, as the listener saw it.
#[derive(Debug, Clone, Copy)]
pub struct ClientIp(pub IpAddr);

pub(crate) struct Api {
    config: Config,
    deps: Deps,
    audit: audit::Audit,
    guard: auth::Guard,
}

type Shared = Arc<Api>;

impl Api {
    /// The tenant with the limits that hold for it.
    async fn tenant(&self, name: &TenantName) -> Result<Option<Tenant>, ApiError> {
        Ok(self.deps.functions.get_tenant(name).await?.map(|tenant| self.deps.classes.apply(tenant)))
    }
}

#[derive(OpenApi)]
#[openapi(info(title = "Hearth", description = "Management API: tenants, containers, functions, tokens, modules.", license(name = "Apache-2.0")), modifiers(&Bearer))]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The routes, with the OpenAPI document that describes them.
pub(crate) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(tenants::list))
        .routes(routes!(tenants::get, tenants::put, tenants::delete))
        .routes(routes!(tenants::usage))
        .routes(routes!(containers::list))
        .routes(routes!(containers::get, containers::put, containers::delete))
        .routes(routes!(logs::follow))
        .routes(routes!(functions::list))
        .routes(routes!(functions::get, functions::put, functions::delete))
        .routes(routes!(functions::versions))
        .routes(routes!(functions::version))
        .routes(routes!(functions::rollback))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::delete))
        .routes(routes!(modules::list))
        .routes(routes!(modules::get))
        .routes(routes!(nodes::drain))
        .routes(routes!(status))
}

/// The API as a service. Paths outside it and methods that it does not know are answered with problems, too.
pub fn router(config: Config, deps: Deps) -> Router {
    let file = config.audit_file.clone().unwrap_or_else(|| deps.data_dir.join("audit.jsonl"));
    let audit = audit::Audit::new(file, config.audit_size_max.as_u64());
    let guard = auth::Guard::new(config.wrong_tokens_per_minute);
    let api = Arc::new(Api { config, deps, audit, guard });
    let (router, document) = routes().split_for_parts();
    let document = Arc::new(document::complete(document));
    router
        .route("/v1/openapi.json", axum::routing::get(move || async move { Json((*document).clone()) }))
        .fallback(|request: Request| async move { ApiError::unknown_route().answer(request.extensions()) })
        .method_not_allowed_fallback(|request: Request| async move { ApiError::wrong_method().answer(request.extensions()) })
        .layer(DefaultBodyLimit::max(limits::MANAGE_BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), envelope))
        .with_state(api)
}

/// Around every call: a deadline, problems in their final form, and the audit line of a call that changes something.
async fn envelope(axum::extract::State(api): axum::extract::State<Shared>, mut request: Request, next: Next) -> Response {
    let subject = audit::Subject::of(&request);
    let actor = audit::Actor::default();
    request.extensions_mut().insert(actor.clone());
    let extensions = request.extensions().clone();
    let deadline = api.config.call_timeout + api.config.wait_max;
    let streams = request.uri().path().ends_with("/logs");
    let mut response = if streams {
        next.run(request).await
    } else {
        match tokio::time::timeout(deadline, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::too_slow().answer(&extensions),
        }
    };
    // Handlers leave the error beside the response; its form needs the request's id, which only this layer has.
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = error.answer(&extensions);
    } else if response.status().is_client_error() && !problem::is_problem(&response) {
        // The framework's own refusals (a body that is no JSON, too large, of another type).
        response = ApiError::from_framework(response).await.answer(&extensions);
    }
    if subject.mutating {
        api.audit.write(&subject, &actor, response.status().as_u16());
    }
    response
}

/// What this node says of itself, and of its cluster.
#[utoipa::path(get, path = "/v1/status", tag = "status", security(("bearer" = [])), responses(
    (status = 200, description = "Pool, containers, modules, record cache, cluster", body = serde_json::Value),
    (status = "default", description = "A problem", body = hearth_model::Problem, content_type = "application/problem+json")))]
async fn status(
    axum::extract::State(api): axum::extract::State<Shared>,
    caller: auth::Caller,
) -> Result<Json<serde_json::Value>, ApiError> {
    caller.require_admin()?;
    let mut status = (api.deps.status)();
    if let Some(peers) = &api.deps.peers {
        status["cluster"] = peers.status().await;
    }
    Ok(Json(status))
}

#[cfg(test)]
mod tests;
