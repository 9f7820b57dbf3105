//! Small steps shared by the record calls: documents in and out, preconditions, cursors.

use super::db::Failure;
pub(super) use crate::paging::{after, page};
use crate::{StoreError, paging};
use hearth_model::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params};
use serde::{Serialize, de::DeserializeOwned};
use std::time::SystemTime;

pub(super) fn now() -> Timestamp {
    SystemTime::now().into()
}

pub(super) fn encode<T: Serialize>(what: &str, value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| StoreError::Damaged { what: what.to_owned(), detail: e.to_string() }.into())
}

pub(super) fn decode<T: DeserializeOwned>(what: impl FnOnce() -> String, doc: &str) -> Result<T, Failure> {
    serde_json::from_str(doc).map_err(|e| StoreError::Damaged { what: what(), detail: e.to_string() }.into())
}

/// The document that a query finds, if it finds one.
pub(super) fn get<T: DeserializeOwned>(
    db: &Connection,
    what: impl FnOnce() -> String,
    sql: &str,
    params: impl Params,
) -> Result<Option<T>, Failure> {
    let doc: Option<String> = db.prepare_cached(sql)?.query_row(params, |r| r.get(0)).optional()?;
    doc.map(|doc| decode(what, &doc)).transpose()
}

/// All documents that a query finds.
pub(super) fn get_all<T: DeserializeOwned>(db: &Connection, noun: &str, sql: &str, params: impl Params) -> Result<Vec<T>, Failure> {
    let mut statement = db.prepare_cached(sql)?;
    let docs = statement.query_map(params, |r| r.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    docs.iter().map(|doc| decode(|| noun.to_owned(), doc)).collect()
}

pub(super) fn not_found(what: impl Into<String>) -> Failure {
    StoreError::NotFound { what: what.into() }.into()
}

/// One more than asked for, to see whether there is a next page.
pub(super) fn fetch_count(limit: usize) -> (usize, i64) {
    let limit = paging::limit(limit);
    (limit, i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1)
}

pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
