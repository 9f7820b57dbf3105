//! Small steps that every backend of [`crate::FunctionStore`] shares: cursors and pages of lists.

use crate::{Page, StoreError};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hearth_model::limits;

/// The key after which a page starts; the empty text comes before all names.
pub(crate) fn after(cursor: Option<&str>) -> Result<String, StoreError> {
    let Some(cursor) = cursor else { return Ok(String::new()) };
    let bad = || StoreError::BadCursor { cursor: cursor.chars().take(80).collect() };
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?).map_err(|_| bad())
}

/// A key as an opaque cursor.
pub(crate) fn cursor(key: &str) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

/// Cuts a list of up to `limit + 1` things into a page.
pub(crate) fn page<T>(mut items: Vec<T>, limit: usize, key: impl Fn(&T) -> String) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(|last| cursor(&key(last))) } else { None };
    Page { items, next }
}

/// A list's limit within its bounds.
pub(crate) fn limit(limit: usize) -> usize {
    limit.clamp(1, limits::PAGE_MAX)
}
