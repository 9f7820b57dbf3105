//! `/v1/tokens`. A token's text is shown once, in the answer to its creation.

use super::{
    Shared, auth,
    auth::Caller,
    page::{List, Paging},
    problem::ApiError,
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use hearth_model::{Problem, ProblemKind, Scope, TenantName, Token, object::Object};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Ten years: longer is said with no expiry at all.
const EXPIRES_IN_S_MAX: u64 = 10 * 365 * 24 * 3_600;
const NOTE_CHARS_MAX: usize = 200;

/// A token to be made.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenSpec {
    /// For which tenant; absent for an operator's token (scope `admin`). A tenant's token makes tokens of its tenant.
    #[serde(default)]
    tenant: Option<TenantName>,
    /// What it allows.
    scope: Scope,
    /// Seconds until it expires; absent for never.
    #[serde(default)]
    expires_in_s: Option<u64>,
    /// For those who read the list.
    #[serde(default)]
    note: String,
}

/// A new token.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct NewToken {
    /// The token itself. It is not kept and cannot be shown again.
    token: String,
    #[serde(flatten)]
    record: Token,
}

/// Makes a token.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenSpec, security(("bearer" = [])), responses(
    (status = 201, body = NewToken), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Json(Object(spec)): Json<Object<TokenSpec>>,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let tenant = spec.tenant.or_else(|| caller.tenant().cloned());
    match (&tenant, spec.scope) {
        (None, Scope::Admin) => caller.require_admin()?,
        (None, _) => {
            caller.require_admin()?;
            return Err(ApiError::invalid("tenant", "a token of this scope belongs to a tenant: name it"));
        }
        (Some(tenant), Scope::Admin) => {
            caller.require(tenant, Scope::Write)?;
            return Err(ApiError::invalid("scope", "an admin token belongs to no tenant; use write, read or invoke"));
        }
        (Some(tenant), scope) => {
            caller.require(tenant, Scope::Write)?;
            if !caller.scope().allows(scope) {
                return Err(ApiError::new(ProblemKind::Forbidden, "a token cannot make one that allows more than itself"));
            }
        }
    }
    if spec.expires_in_s.is_some_and(|s| s == 0 || s > EXPIRES_IN_S_MAX) {
        return Err(ApiError::invalid("expires_in_s", format!("use 1 to {EXPIRES_IN_S_MAX} seconds, or leave it out for never")));
    }
    if spec.note.chars().count() > NOTE_CHARS_MAX {
        return Err(ApiError::invalid("note", format!("a note may have {NOTE_CHARS_MAX} characters")));
    }
    let (text, hash, token) = auth::new_token(tenant, spec.scope, spec.expires_in_s.map(Duration::from_secs), spec.note);
    api.deps.functions.put_token(hash, token.clone()).await?;
    Ok((StatusCode::CREATED, Json(NewToken { token: text, record: token })))
}

/// All tokens, or those of the caller's tenant; never their texts.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", params(Paging), security(("bearer" = [])), responses(
    (status = 200, body = List<Token>), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<List<Token>>, ApiError> {
    match caller.tenant() {
        Some(own) => caller.require(own, Scope::Write)?,
        None => caller.require_admin()?,
    }
    let page = api.deps.functions.list_tokens(caller.tenant(), paging.cursor(), paging.limit()?).await?;
    Ok(Json(List::of(page, |token| token)))
}

/// Deletes a token by its id. It works no longer than three seconds on.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), security(("bearer" = [])), responses(
    (status = 204), (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    if let Some(own) = caller.tenant() {
        caller.require(own, Scope::Write)?;
        // One page holds all tokens of a sensible tenant; what is beyond it an operator can delete.
        let own_tokens = api.deps.functions.list_tokens(Some(own), None, hearth_model::limits::PAGE_MAX).await?;
        if !own_tokens.items.iter().any(|t| t.id == id) {
            return Err(ApiError::not_found("token"));
        }
    } else {
        caller.require_admin()?;
    }
    api.deps.functions.delete_token(&id).await?;
    api.guard.forget();
    Ok(StatusCode::NO_CONTENT)
}
