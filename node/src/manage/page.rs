//! Lists, entity tags and `Prefer`.

use super::problem::ApiError;
use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use hearth_model::limits;
use hearth_store::{Page, Precondition};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `?limit=&cursor=`.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Paging {
    /// Things per page, 1 to 1000; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl Paging {
    pub fn limit(&self) -> Result<usize, ApiError> {
        match self.limit {
            None => Ok(limits::PAGE_DEFAULT),
            Some(limit) if (1..=limits::PAGE_MAX).contains(&limit) => Ok(limit),
            Some(limit) => Err(ApiError::invalid("limit", format!("{limit} is not between 1 and {}", limits::PAGE_MAX))),
        }
    }

    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct List<T> {
    /// The things, in the order of their names.
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> List<T> {
    pub fn of<S>(page: Page<S>, view: impl Fn(S) -> T) -> Self {
        Self { items: page.items.into_iter().map(view).collect(), next: page.next }
    }
}

/// `If-Match` and `If-None-Match: *`.
pub(crate) struct IfMatch(pub Precondition);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let bad =
            |name: &str| ApiError::invalid(name.to_owned(), format!("{name} takes one entity tag as a GET gave it, such as \"3\""));
        if let Some(value) = parts.headers.get(header::IF_NONE_MATCH) {
            return if value == "*" { Ok(Self(Precondition::Absent)) } else { Err(bad("if-none-match")) };
        }
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(Precondition::None)) };
        let tag = value.to_str().ok().map(str::trim);
        let generation = tag.and_then(|t| t.strip_prefix('"')?.strip_suffix('"')?.parse().ok());
        generation.map(|g| Self(Precondition::Generation(g))).ok_or_else(|| bad("if-match"))
    }
}

/// The entity tag of a generation.
pub(crate) fn etag(generation: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("\"{generation}\"")) {
        headers.insert(header::ETAG, value);
    }
    headers
}

/// `Prefer: wait=N` (RFC 7240), in seconds.
pub(crate) struct Wait(pub Option<Duration>);

impl<S: Sync> FromRequestParts<S> for Wait {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let prefer = parts.headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok());
        let wait = prefer.flat_map(|v| v.split(',')).find_map(|p| p.trim().strip_prefix("wait=")?.trim().parse().ok());
        Ok(Self(wait.map(Duration::from_secs)))
    }
}
