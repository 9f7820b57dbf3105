//! `/v1/modules`: what is built, being built, or cannot be.

use super::{
    Shared,
    auth::Caller,
    page::{List, Paging},
    problem::ApiError,
    view::ModuleView,
};
use axum::{
    Json,
    extract::{Path, Query, State},
};
use hearth_model::{ModuleSpec, Problem, Scope};

fn check(caller: &Caller) -> Result<(), ApiError> {
    match caller.tenant() {
        Some(own) => caller.require(own, Scope::Read),
        None => caller.require_admin(),
    }
}

/// All modules. They are shared, so every tenant may see them.
#[utoipa::path(get, path = "/v1/modules", tag = "modules", params(Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<ModuleView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<List<ModuleView>>, ApiError> {
    check(&caller)?;
    let page = api.deps.functions.list_modules(paging.cursor(), paging.limit()?).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for record in page.items {
        let users = api.deps.functions.count_users(&record.key).await?;
        items.push(ModuleView::of(record, users, false));
    }
    Ok(Json(List { items, next: page.next }))
}

/// One module at one version: every build of it, with its log.
#[utoipa::path(get, path = "/v1/modules/{module}", tag = "modules", params(("module" = String, Path, description = "`name@version`; a scoped name's slash may stand as it is")), security(("bearer" = [])), responses(
    (status = 200, body = Vec<ModuleView>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn get(
    State(api): State<Shared>,
    caller: Caller,
    Path(module): Path<String>,
) -> Result<Json<Vec<ModuleView>>, ApiError> {
    check(&caller)?;
    let spec: ModuleSpec =
        module.parse().map_err(|e: hearth_model::module::ModuleError| ApiError::invalid("module", e.to_string()))?;
    let records = api.deps.functions.find_modules(spec.name.as_str(), &spec.version).await?;
    if records.is_empty() {
        return Err(ApiError::not_found("module"));
    }
    let mut builds = Vec::with_capacity(records.len());
    for record in records {
        let users = api.deps.functions.count_users(&record.key).await?;
        builds.push(ModuleView::of(record, users, true));
    }
    Ok(Json(builds))
}
