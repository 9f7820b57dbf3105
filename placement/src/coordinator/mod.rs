//! The little that Hearth needs of a coordination service: compare-and-set, prefixes, leases and watches, all on one line of
//! revisions. etcd has it; [`local`] models it, with the ways in which it goes wrong.
//!
//! Each write states its precondition. No call waits longer than its deadline. A watch never reconnects by itself: whoever
//! watches decides what a gap means.

pub mod conformance;
pub mod etcd;
pub mod local;

use async_trait::async_trait;
use std::{fmt, time::Duration};

/// A lease's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: the last writer wins.
    Any,
    /// There is no such key.
    Absent,
    /// The key was last written at this revision.
    ModRevision(i64),
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision of the last write.
    pub mod_revision: i64,
    /// The revision at which the key came to be.
    pub create_revision: i64,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.key, self.mod_revision, self.value.len())
    }
}

/// Everything below a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The revision of the store when it was read.
    pub revision: i64,
    /// By key.
    pub items: Vec<KeyValue>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A key was written.
    Put(KeyValue),
    /// A key is gone.
    Delete {
        /// The key.
        key: String,
        /// When.
        revision: i64,
    },
}

/// What a watch gives: changes up to a revision, or none, which is a sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// All changes up to here have been given, except that a progress notice of etcd before 3.4.25 may be ahead of them.
    pub revision: i64,
    /// In order.
    pub events: Vec<Event>,
}

/// Why a call to the coordinator failed.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The precondition did not hold; nothing was written.
    #[error("{key} is not as expected")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The lease has expired or was revoked.
    #[error("the lease is gone")]
    LeaseGone,
    /// No answer in time. A write may or may not have happened.
    #[error("{attempt}: no answer within {deadline:?}")]
    Deadline {
        /// What was attempted.
        attempt: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// No connection, or the other side could not serve. A write may or may not have happened.
    #[error("{attempt}: {reason}")]
    Unavailable {
        /// What was attempted.
        attempt: &'static str,
        /// The last reason known.
        reason: String,
    },
    /// Refused for good: a key or value that it will never take, or no right to.
    #[error("{attempt} was refused: {reason}")]
    Refused {
        /// What was attempted.
        attempt: &'static str,
        /// Why.
        reason: String,
    },
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The revisions that it should begin with are no longer kept: list again.
    #[error("revisions before {oldest} are compacted")]
    Compacted {
        /// The oldest that is kept.
        oldest: i64,
    },
    /// The stream ended: watch again from the last revision.
    #[error("the watch broke: {0}")]
    Broken(String),
}

/// A running watch. Dropping it ends it.
#[async_trait]
pub trait Watch: Send {
    /// The next batch. Cancel-safe. Waits for ever when nothing happens, or when the connection died silently: the caller
    /// asks for progress and keeps a deadline.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is over then.
    async fn next(&mut self) -> Result<Batch, WatchError>;

    /// Asks for a batch, which may be empty, that says up to where all has been given.
    ///
    /// # Errors
    /// [`WatchError::Broken`] when the request could not even be sent.
    async fn request_progress(&mut self) -> Result<(), WatchError>;
}

/// A coordination service.
#[async_trait]
pub trait Coordinator: Send + Sync + 'static {
    /// One key.
    ///
    /// # Errors
    /// [`CoordinatorError::Unavailable`] or [`CoordinatorError::Deadline`].
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, CoordinatorError>;

    /// All keys that begin with `prefix`, read at one revision, not older than any write that was acknowledged before.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn list(&self, prefix: &str) -> Result<Listing, CoordinatorError>;

    /// Writes, if the precondition holds; the key goes when the lease does. Gives the revision of the write.
    ///
    /// # Errors
    /// [`CoordinatorError::Conflict`], [`CoordinatorError::LeaseGone`], or as [`Self::get`].
    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        precondition: Precondition,
        lease: Option<LeaseId>,
    ) -> Result<i64, CoordinatorError>;

    /// Deletes, if the precondition holds. Deleting what is absent succeeds under [`Precondition::Any`].
    ///
    /// # Errors
    /// As [`Self::put`].
    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(), CoordinatorError>;

    /// A new lease. The service may round `ttl` up.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, CoordinatorError>;

    /// Renews a lease; gives how long it now lasts.
    ///
    /// # Errors
    /// [`CoordinatorError::LeaseGone`] when it was too late, or as [`Self::get`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CoordinatorError>;

    /// Ends a lease and deletes its keys. One that is gone already is no error.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn revoke(&self, lease: LeaseId) -> Result<(), CoordinatorError>;

    /// Changes below `prefix`, beginning with revision `from`.
    ///
    /// # Errors
    /// As [`Self::get`]; compaction is told by the watch itself.
    async fn watch(&self, prefix: &str, from: i64) -> Result<Box<dyn Watch>, CoordinatorError>;

    /// Forgets revisions before `revision`; a watch cannot begin there any more.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn compact(&self, revision: i64) -> Result<(), CoordinatorError>;
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete { key, .. } => key,
        }
    }
}
