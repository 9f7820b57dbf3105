//! What a runtime sends of its own accord: output of functions, calls of their storage, the news that it exits. All of it is bounded
//! and attributed only to functions that are loaded there.

use super::control::{Shared, encode};
use crate::{
    logs::{LogHub, LogLine},
    usage::Usage,
};
use hearth_model::{
    ContainerPath, FunctionName, FunctionPath, Timestamp, limits,
    protocol::{FromRuntime, LogLevel, ToRuntime},
};
use hearth_store::{FunctionStore, Precondition, StoreError};
use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// Deadline of one storage call.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who the container belongs to; set once, at the claim.
pub(super) struct Owner {
    pub path: ContainerPath,
    pub container: Weak<super::LiveContainer>,
    pub logs: Arc<LogHub>,
    pub functions: Arc<dyn FunctionStore>,
    pub usage: Arc<Usage>,
    pub log_bytes_per_s: u64,
}

/// How a runtime begins a line of output.
const LOG_PREFIX: &[u8] = b"{\"t\":\"log\",";
/// After a line that was over the rate, how long output is dropped without being read: reading costs more than all else of it.
const UNREAD: Duration = Duration::from_millis(50);

/// A token bucket over bytes of output.
pub(super) struct Allowance {
    used: f64,
    since: Instant,
    dropped: u64,
    unread_until: Option<Instant>,
}

impl Allowance {
    pub fn new() -> Self {
        Self { used: 0.0, since: Instant::now(), dropped: 0, unread_until: None }
    }

    /// Four seconds' worth may come at once.
    fn admit(&mut self, bytes: usize, per_s: u64) -> bool {
        let now = Instant::now();
        self.used = (self.used - (now - self.since).as_secs_f64() * per_s as f64).max(0.0);
        self.since = now;
        if self.used + bytes as f64 > per_s as f64 * 4.0 {
            self.dropped += 1;
            self.unread_until = Some(now + UNREAD);
            return false;
        }
        self.used += bytes as f64;
        true
    }

    /// Drops output for a moment after some was over the rate.
    fn is_over(&mut self, line: &[u8]) -> bool {
        let over = self.unread_until.is_some_and(|until| Instant::now() < until);
        if !over {
            self.unread_until = None;
        }
        let dropped = over && line.starts_with(LOG_PREFIX);
        self.dropped += u64::from(dropped);
        dropped
    }
}

/// Whether this is a line of output that need not be read to know that it is over the rate.
pub(super) fn is_over(shared: &Shared, allowance: &mut Allowance, line: &[u8]) -> bool {
    let over = allowance.is_over(line);
    if over && let Some(owner) = shared.owner.get() {
        owner.usage.log_lines_dropped.fetch_add(1, Relaxed);
    }
    over
}

/// Takes one message. Before the claim nobody owns what is said, and it is dropped.
pub(super) fn receive(shared: &Arc<Shared>, allowance: &mut Allowance, message: FromRuntime) {
    let Some(owner) = shared.owner.get() else { return };
    match message {
        FromRuntime::Log { .. } => log(owner, allowance, message),
        FromRuntime::StorageGet { id, function } => storage(shared, owner, id, function, None),
        FromRuntime::StorageSet { id, function, data, etag, force } => {
            storage(shared, owner, id, function, Some((data, etag, force)))
        }
        FromRuntime::Exit { code, .. } => {
            if let Some(container) = owner.container.upgrade() {
                container.announce_exit(code);
            }
        }
        _ => {}
    }
}

fn log(owner: &Owner, allowance: &mut Allowance, message: FromRuntime) {
    let FromRuntime::Log { function, version, request_id, level, mut line, .. } = message else { return };
    if !allowance.admit(line.len() + 64, owner.log_bytes_per_s) {
        owner.usage.log_lines_dropped.fetch_add(1, Relaxed);
        return;
    }
    owner.usage.log_bytes.fetch_add(line.len() as u64, Relaxed);
    let publish = |function, version, request_id, level, line| {
        let at = Timestamp::from_system(SystemTime::now());
        owner.logs.publish(&owner.path, LogLine { at, function, version, request_id, level, line });
    };
    if allowance.dropped > 0 {
        let dropped = std::mem::take(&mut allowance.dropped);
        let notice = format!("{dropped} lines of output were dropped: the container prints faster than it may");
        publish(None, None, None, LogLevel::Warn, notice);
    }
    line.truncate(line.floor_char_boundary(limits::LOG_LINE_BYTES_MAX));
    // A version that is still loading prints as well; only a name that this container never had is nobody's.
    let known = function.filter(|f| owner.container.upgrade().is_some_and(|c| c.knows(f)));
    let version = if known.is_some() { version } else { None };
    publish(known, version, request_id.filter(|id| id.len() <= 64), level, line);
}

type Set = (serde_json::Value, Option<String>, bool);

fn failed(id: u64, error: impl Into<String>) -> ToRuntime {
    ToRuntime::Storage { id, data: None, etag: None, conflict: false, error: Some(error.into()) }
}

fn storage(shared: &Arc<Shared>, owner: &Owner, id: u64, function: FunctionName, set: Option<Set>) {
    let Ok(permit) = Arc::clone(&shared.storage_calls).try_acquire_owned() else {
        let _ = shared.to_runtime.try_send(encode(&failed(id, "too many calls of the storage at once")));
        return;
    };
    let (shared, functions, path) = (Arc::clone(shared), Arc::clone(&owner.functions), owner.path.function(function));
    // At most as many as there are permits; each ends at its deadline.
    tokio::spawn(async move {
        let _permit = permit;
        let call = async {
            match set {
                None => get_document(&*functions, &path, id).await,
                Some(set) => set_document(&*functions, &path, id, set).await,
            }
        };
        let message = tokio::time::timeout(STORAGE_TIMEOUT, call).await;
        let message = message.unwrap_or_else(|_| failed(id, "the storage did not answer in time"));
        let _ = shared.to_runtime.send(encode(&message)).await;
    });
}

async fn get_document(functions: &dyn FunctionStore, path: &FunctionPath, id: u64) -> ToRuntime {
    match functions.get_document(path).await {
        Ok(Some((data, etag))) => {
            ToRuntime::Storage { id, data: Some(data), etag: Some(etag.to_string()), conflict: false, error: None }
        }
        Ok(None) => ToRuntime::Storage { id, data: None, etag: None, conflict: false, error: None },
        Err(error) => store_failed(id, path, &error),
    }
}

async fn set_document(functions: &dyn FunctionStore, path: &FunctionPath, id: u64, (data, etag, force): Set) -> ToRuntime {
    if serde_json::to_vec(&data).map_or(usize::MAX, |v| v.len()) > limits::STORAGE_DOCUMENT_BYTES_MAX {
        return failed(id, format!("a storage document may have {} bytes", limits::STORAGE_DOCUMENT_BYTES_MAX));
    }
    let precondition = match (force, etag) {
        (true, _) => Precondition::None,
        // A writer that has read nothing may only create.
        (false, None) => Precondition::Absent,
        (false, Some(etag)) => Precondition::Generation(etag.parse().unwrap_or(u64::MAX)),
    };
    match functions.put_document(path, data, precondition).await {
        Ok(etag) => ToRuntime::Storage { id, data: None, etag: Some(etag.to_string()), conflict: false, error: None },
        Err(StoreError::Precondition { .. }) => ToRuntime::Storage { id, data: None, etag: None, conflict: true, error: None },
        Err(error) => store_failed(id, path, &error),
    }
}

fn store_failed(id: u64, path: &FunctionPath, error: &StoreError) -> ToRuntime {
    tracing::warn!(function = %path, %error, "a storage call failed");
    failed(id, "the storage is not available now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn output_beyond_its_rate_is_dropped_and_counted() {
        let mut allowance = Allowance::new();
        let admitted = (0..100).filter(|_| allowance.admit(100, 1_000)).count();
        assert_eq!((admitted, allowance.dropped), (40, 60));
        // As the runtime's `JSON.stringify` has it.
        let line = br#"{"t":"log","function":"f","level":"info","line":"x","at":1}"#;
        assert!(allowance.is_over(line) && allowance.dropped == 61, "not even read");
        assert!(!allowance.is_over(br#"{"t":"pong","id":1}"#), "all else is");
        tokio::time::advance(UNREAD).await;
        assert!(!allowance.is_over(line) && allowance.dropped == 61);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(allowance.admit(1_000, 1_000));
    }
}
