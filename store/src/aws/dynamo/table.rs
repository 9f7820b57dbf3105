//! Items in and out of the table: strongly consistent reads, queries within one partition, and transactions that happen at most once
//! however often they are sent.
//!
//! Every transaction carries a marker item named by its request id, with the condition that it does not exist. When an answer is lost, the
//! marker is read back: if it is there the write has happened. A write that is sent again and had happened fails on its own marker, and
//! is known to be done. Markers expire by the table's time to live. The stand-in of the tests knows no client request tokens, AWS does;
//! the marker does not depend on them.

use crate::StoreError;
use crate::aws::{
    call::{CallError, Caller, Class, Deadlines, Pauses},
    design::{PK, SCHEMA, SK, TTL, WRITE_MARKER_S},
};
use aws_sdk_dynamodb::{
    Client,
    error::ProvideErrorMetadata,
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, ConditionCheck, Delete, DeleteRequest, KeysAndAttributes, Put, PutRequest, Select, TransactWriteItem,
        Update, WriteRequest,
    },
};
use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// Name of the sort key.
pub(super) const SORT: &str = SK;

pub(super) type Item = HashMap<String, AttributeValue>;

/// Keys of one `BatchGetItem`.
const BATCH_GET_MAX: usize = 100;
/// Requests of one `BatchWriteItem`.
const BATCH_WRITE_MAX: usize = 25;
/// Items of one transaction, its marker included.
pub(super) const TRANSACTION_MAX: usize = 100;

/// Where an item is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub pk: String,
    pub sk: String,
}

impl Key {
    pub fn new(pk: impl Into<String>, sk: impl Into<String>) -> Self {
        Self { pk: pk.into(), sk: sk.into() }
    }

    fn attributes(&self) -> Item {
        HashMap::from([(PK.into(), s(&self.pk)), (SK.into(), s(&self.sk))])
    }

    fn of(item: &Item) -> Self {
        let text = |name| item.get(name).and_then(|v: &AttributeValue| v.as_s().ok()).cloned().unwrap_or_default();
        Self { pk: text(PK), sk: text(SK) }
    }
}

pub(super) fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn n(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// A number of an item; zero where it has none.
pub(super) fn number(item: &Item, name: &str) -> u64 {
    item.get(name).and_then(|v| v.as_n().ok()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A text of an item.
pub(super) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name).and_then(|v| v.as_s().ok()).map(String::as_str)
}

/// A new item with key and schema.
pub(super) fn item(key: &Key) -> Item {
    let mut item = key.attributes();
    item.insert("schema".into(), n(SCHEMA));
    item
}

/// What must hold for one item of a transaction.
#[derive(Debug, Clone)]
pub(super) enum Cond {
    Always,
    Absent,
    Exists,
    /// The item exists and this attribute has this value.
    Equals(&'static str, AttributeValue),
}

type Expression = (Option<String>, Option<HashMap<String, String>>, Option<Item>);

impl Cond {
    fn expression(self) -> Expression {
        match self {
            Self::Always => (None, None, None),
            Self::Absent => (Some(format!("attribute_not_exists({PK})")), None, None),
            Self::Exists => (Some(format!("attribute_exists({PK})")), None, None),
            Self::Equals(name, value) => (
                Some("#c = :c".into()),
                Some(HashMap::from([("#c".into(), name.to_owned())])),
                Some(HashMap::from([(":c".into(), value)])),
            ),
        }
    }
}

/// Writes that happen together or not at all.
#[derive(Debug, Clone)]
pub(super) struct Tx {
    table: String,
    items: Vec<TransactWriteItem>,
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// Conditions of the items at these places (as they were added) do not hold; nothing was written.
    Conflict(Vec<usize>),
}

// The builders below get all their required fields, so that building cannot fail; `expect` would be a panic all the same.
impl Tx {
    pub fn put(&mut self, item: Item, cond: Cond) -> &mut Self {
        let (expression, names, values) = cond.expression();
        let put = Put::builder()
            .table_name(&self.table)
            .set_item(Some(item))
            .set_condition_expression(expression)
            .set_expression_attribute_names(names)
            .set_expression_attribute_values(values);
        self.items.extend(put.build().ok().map(|put| TransactWriteItem::builder().put(put).build()));
        self
    }

    pub fn delete(&mut self, key: &Key, cond: Cond) -> &mut Self {
        let (expression, names, values) = cond.expression();
        let delete = Delete::builder()
            .table_name(&self.table)
            .set_key(Some(key.attributes()))
            .set_condition_expression(expression)
            .set_expression_attribute_names(names)
            .set_expression_attribute_values(values);
        self.items.extend(delete.build().ok().map(|delete| TransactWriteItem::builder().delete(delete).build()));
        self
    }

    /// Only checks that the item is there.
    pub fn exists(&mut self, key: &Key) -> &mut Self {
        let check = ConditionCheck::builder()
            .table_name(&self.table)
            .set_key(Some(key.attributes()))
            .condition_expression(format!("attribute_exists({PK})"));
        self.items.extend(check.build().ok().map(|check| TransactWriteItem::builder().condition_check(check).build()));
        self
    }

    /// Adds to a number of an existing item, and counts the change in its `rev`.
    pub fn add(&mut self, key: &Key, attribute: &'static str, change: i64) -> &mut Self {
        let update = Update::builder()
            .table_name(&self.table)
            .set_key(Some(key.attributes()))
            .update_expression("ADD #a :a, rev :one")
            .condition_expression(format!("attribute_exists({PK})"))
            .expression_attribute_names("#a", attribute)
            .expression_attribute_values(":a", AttributeValue::N(change.to_string()))
            .expression_attribute_values(":one", n(1));
        self.items.extend(update.build().ok().map(|update| TransactWriteItem::builder().update(update).build()));
        self
    }

    /// How many more items it can take.
    pub fn room(&self) -> usize {
        TRANSACTION_MAX - 1 - self.items.len()
    }
}

/// One table.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub client: Client,
    pub name: String,
    pub caller: Caller,
    pub read: Deadlines,
    pub write: Deadlines,
}

impl Table {
    pub fn resource(&self) -> String {
        format!("table {}", self.name)
    }

    pub fn failed<E>(&self, call: &'static str, error: &CallError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let resource = self.resource();
        let detail = error.explain("dynamodb", call, &resource);
        StoreError::Unavailable { call, resource, detail }
    }

    /// Refuses what a newer Hearth has written.
    pub fn known(&self, item: Item) -> Result<Item, StoreError> {
        let found = number(&item, "schema");
        if found > SCHEMA {
            let key = Key::of(&item);
            let what = format!("item {} / {} of table {}", key.pk, key.sk, self.name);
            return Err(StoreError::NewerSchema { what, found, known: SCHEMA });
        }
        Ok(item)
    }

    pub async fn get(&self, key: &Key) -> Result<Option<Item>, StoreError> {
        let request = || self.client.get_item().table_name(&self.name).set_key(Some(key.attributes())).consistent_read(true).send();
        let answer = self.caller.repeat("GetItem", self.read, request).await.map_err(|e| self.failed("GetItem", &e))?;
        answer.item.map(|item| self.known(item)).transpose()
    }

    /// All of these that exist, in one call for up to a hundred, each read strongly consistent.
    pub async fn get_many(&self, keys: &[Key]) -> Result<HashMap<Key, Item>, StoreError> {
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(BATCH_GET_MAX) {
            let mut left: Vec<Item> = chunk.iter().map(Key::attributes).collect();
            let mut pauses = Pauses::within(self.read.total);
            while !left.is_empty() {
                let wanted = KeysAndAttributes::builder().set_keys(Some(left)).consistent_read(true).build();
                let wanted = wanted.map_err(|e| self.unclear("BatchGetItem", &e))?;
                let request = || self.client.batch_get_item().request_items(&self.name, wanted.clone()).send();
                let answer = self.caller.repeat("BatchGetItem", self.read, request).await;
                let answer = answer.map_err(|e| self.failed("BatchGetItem", &e))?;
                for item in answer.responses.unwrap_or_default().remove(&self.name).unwrap_or_default() {
                    let item = self.known(item)?;
                    found.insert(Key::of(&item), item);
                }
                left = answer.unprocessed_keys.unwrap_or_default().remove(&self.name).map(|k| k.keys).unwrap_or_default();
                if !left.is_empty() {
                    self.caller.throttled("BatchGetItem");
                    if !pauses.wait().await {
                        return Err(
                            self.unclear("BatchGetItem", &"the table did not give all items in time: its capacity is used up")
                        );
                    }
                }
            }
        }
        Ok(found)
    }

    pub fn unclear(&self, call: &'static str, detail: &dyn std::fmt::Display) -> StoreError {
        StoreError::Unavailable { call, resource: self.resource(), detail: detail.to_string() }
    }

    /// Items of one partition in the order of their sort keys, from `low` to `high` inclusive; at most `limit`.
    pub async fn query(&self, pk: &str, low: &str, high: &str, limit: usize) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        let mut start: Option<Item> = None;
        loop {
            let left = i32::try_from(limit - items.len()).unwrap_or(i32::MAX);
            let request = || {
                self.client
                    .query()
                    .table_name(&self.name)
                    .consistent_read(true)
                    .key_condition_expression(format!("{PK} = :pk AND {SK} BETWEEN :low AND :high"))
                    .expression_attribute_values(":pk", s(pk))
                    .expression_attribute_values(":low", s(low))
                    .expression_attribute_values(":high", s(high))
                    .set_exclusive_start_key(start.clone())
                    .limit(left)
                    .send()
            };
            let answer = self.caller.repeat("Query", self.read, request).await.map_err(|e| self.failed("Query", &e))?;
            for item in answer.items.unwrap_or_default() {
                items.push(self.known(item)?);
            }
            start = answer.last_evaluated_key;
            if start.is_none() || items.len() >= limit {
                return Ok(items);
            }
        }
    }

    /// How many items a range of one partition has.
    pub async fn count(&self, pk: &str, low: &str, high: &str) -> Result<u64, StoreError> {
        let mut count = 0;
        let mut start: Option<Item> = None;
        loop {
            let request = || {
                self.client
                    .query()
                    .table_name(&self.name)
                    .consistent_read(true)
                    .select(Select::Count)
                    .key_condition_expression(format!("{PK} = :pk AND {SK} BETWEEN :low AND :high"))
                    .expression_attribute_values(":pk", s(pk))
                    .expression_attribute_values(":low", s(low))
                    .expression_attribute_values(":high", s(high))
                    .set_exclusive_start_key(start.clone())
                    .send()
            };
            let answer = self.caller.repeat("Query", self.read, request).await.map_err(|e| self.failed("Query", &e))?;
            count += u64::from(answer.count.unsigned_abs());
            start = answer.last_evaluated_key;
            if start.is_none() {
                return Ok(count);
            }
        }
    }

    /// Puts and deletes that need no condition and may be repeated.
    pub async fn write_many(&self, puts: Vec<Item>, deletes: &[Key]) -> Result<(), StoreError> {
        let put = |item| PutRequest::builder().set_item(Some(item)).build().map(|r| WriteRequest::builder().put_request(r).build());
        let delete = |key: &Key| {
            let request = DeleteRequest::builder().set_key(Some(key.attributes())).build();
            request.map(|r| WriteRequest::builder().delete_request(r).build())
        };
        let requests: Result<Vec<_>, _> = puts.into_iter().map(put).chain(deletes.iter().map(delete)).collect();
        let requests = requests.map_err(|e| self.unclear("BatchWriteItem", &e))?;
        for chunk in requests.chunks(BATCH_WRITE_MAX) {
            let mut left = chunk.to_vec();
            let mut pauses = Pauses::within(self.write.total);
            while !left.is_empty() {
                let request = || self.client.batch_write_item().request_items(&self.name, left.clone()).send();
                let answer = self.caller.repeat("BatchWriteItem", self.write, request).await;
                let answer = answer.map_err(|e| self.failed("BatchWriteItem", &e))?;
                left = answer.unprocessed_items.unwrap_or_default().remove(&self.name).unwrap_or_default();
                if !left.is_empty() {
                    self.caller.throttled("BatchWriteItem");
                    if !pauses.wait().await {
                        return Err(
                            self.unclear("BatchWriteItem", &"the table did not take all items in time: its capacity is used up")
                        );
                    }
                }
            }
        }
        Ok(())
    }

    pub fn tx(&self) -> Tx {
        Tx { table: self.name.clone(), items: Vec::new() }
    }

    /// Does the transaction once, or tells which conditions do not hold, or fails without knowing.
    pub async fn commit(&self, tx: Tx) -> Result<Written, StoreError> {
        const CALL: &str = "TransactWriteItems";
        let request_id = hex::encode(rand::random::<[u8; 16]>());
        let marker = Key::new(format!("R#{request_id}"), "#");
        let marker_at = tx.items.len();
        let items = with_marker(tx, &marker);
        let mut pauses = Pauses::within(self.write.total);
        loop {
            let request =
                self.client.transact_write_items().client_request_token(&request_id).set_transact_items(Some(items.clone())).send();
            let error = match self.caller.once(CALL, self.write.attempt.min(pauses.left()), request).await {
                Ok(_) => return Ok(Written::Yes),
                Err(error) => error,
            };
            match cancelled(&error) {
                // Our own marker is there: an earlier sending, whose answer was lost, has done it.
                Some(failed) if failed.conditions.contains(&marker_at) => return Ok(Written::Yes),
                Some(failed) if !failed.conditions.is_empty() => return Ok(Written::Conflict(failed.conditions)),
                // Another transaction touched the same items at this moment, or the table was too busy; nothing was written.
                Some(failed) if failed.passing => {}
                Some(_) => return Err(self.failed(CALL, &error)),
                None if error.class() == Class::Refused => return Err(self.failed(CALL, &error)),
                None => {
                    if self.get(&marker).await.is_ok_and(|found| found.is_some()) {
                        return Ok(Written::Yes);
                    }
                }
            }
            if !pauses.wait().await {
                return Err(self.failed(CALL, &error));
            }
            self.caller.repeated(CALL);
        }
    }
}

fn with_marker(mut tx: Tx, marker: &Key) -> Vec<TransactWriteItem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut marker = item(marker);
    marker.insert(TTL.into(), n(now + WRITE_MARKER_S));
    tx.put(marker, Cond::Absent);
    tx.items
}

struct Cancelled {
    /// Places of items whose condition does not hold.
    conditions: Vec<usize>,
    /// All other reasons pass by themselves.
    passing: bool,
}

fn cancelled(error: &CallError<TransactWriteItemsError>) -> Option<Cancelled> {
    let CallError::Sdk(error) = error else { return None };
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error.as_service_error()? else { return None };
    let reasons = cancelled.cancellation_reasons();
    let code = |reason: &aws_sdk_dynamodb::types::CancellationReason| reason.code().unwrap_or("None").to_owned();
    let conditions = reasons.iter().enumerate().filter(|(_, r)| code(r) == "ConditionalCheckFailed").map(|(i, _)| i).collect();
    let passing = reasons.iter().all(|r| {
        matches!(
            code(r).as_str(),
            "None" | "ConditionalCheckFailed" | "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded"
        )
    });
    Some(Cancelled { conditions, passing })
}
