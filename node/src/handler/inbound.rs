//! What a claimed container says unasked: log lines and storage calls. It may speak only for the functions that the node gave it, only
//! so fast, and only so much at once.

use super::{budget::Budget, control::Control, status::Counters};
use crate::logs::{LogHub, LogLine};
use hearth_model::{
    ContainerPath, FunctionName, Timestamp, VersionNumber,
    limits::STORAGE_DOCUMENT_BYTES_MAX,
    protocol::{FromRuntime, LogLevel, ToRuntime},
};
use hearth_store::{FunctionStore, Precondition, StoreError};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::{sync::Semaphore, time::Instant};

/// Longest request id that is kept with a line.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// What a line costs beside its text.
const LINE_OVERHEAD_BYTES: usize = 64;

/// What all containers' owners use.
pub(super) struct Services {
    pub functions: Arc<dyn FunctionStore>,
    pub logs: Arc<LogHub>,
    pub counters: Arc<Counters>,
    pub log_rate: f64,
    pub log_burst: f64,
    pub storage_calls_max: usize,
    pub storage_timeout: Duration,
}

/// The tenant's container that a runtime speaks for, set once in the life of a runtime.
pub(super) struct Owner {
    pub path: ContainerPath,
    services: Arc<Services>,
    /// To answer with; weak in effect, since the container drops it when it ends.
    control: Mutex<Option<Control>>,
    functions: RwLock<HashSet<(FunctionName, VersionNumber)>>,
    meter: Mutex<LogMeter>,
    calls: Arc<Semaphore>,
    lines_dropped: AtomicU64,
}

struct LogMeter {
    budget: Budget,
    /// Lines since the last one that was kept.
    dropped: u64,
}

impl Owner {
    pub(super) fn new(path: ContainerPath, services: Arc<Services>, control: Control) -> Arc<Self> {
        let budget = Budget::new(services.log_burst, services.log_rate, Instant::now());
        Arc::new(Self {
            path,
            calls: Arc::new(Semaphore::new(services.storage_calls_max)),
            services,
            control: Mutex::new(Some(control)),
            functions: RwLock::default(),
            meter: Mutex::new(LogMeter { budget, dropped: 0 }),
            lines_dropped: AtomicU64::new(0),
        })
    }

    /// From now on the container may speak for this version.
    pub(super) fn admit(&self, function: &FunctionName, version: VersionNumber) {
        self.functions.write().insert((function.clone(), version));
    }

    /// The version is not this container's any more.
    pub(super) fn dismiss(&self, function: &FunctionName, version: VersionNumber) {
        self.functions.write().remove(&(function.clone(), version));
    }

    /// The container is over: it gets no more answers.
    pub(super) fn close(&self) {
        self.control.lock().take();
    }

    /// Lines of log that were too many.
    pub(super) fn lines_dropped(&self) -> u64 {
        self.lines_dropped.load(Relaxed)
    }

    /// The node's own words in the container's log.
    pub(super) fn note(&self, level: LogLevel, line: String) {
        let at = Timestamp::from_system(SystemTime::now());
        self.services.logs.publish(&self.path, LogLine { at, function: None, version: None, request_id: None, level, line });
    }

    /// The runtime sent what is no message.
    pub(super) fn nonsense(&self) {
        self.services.counters.control_nonsense.fetch_add(1, Relaxed);
    }

    /// The runtime said something unasked.
    pub(super) fn receive(self: &Arc<Self>, message: FromRuntime) {
        match message {
            FromRuntime::Log { function, version, request_id, level, line, .. } => self.log(function, version, request_id, level, line),
            FromRuntime::StorageGet { id, function } => self.serve_storage(id, function, None),
            FromRuntime::StorageSet { id, function, data, etag, force } => self.serve_storage(id, function, Some(Write { data, etag, force })),
            _ => self.nonsense(),
        }
    }

    fn log(&self, function: Option<FunctionName>, version: Option<VersionNumber>, request_id: Option<String>, level: LogLevel, line: String) {
        let dropped = {
            let mut meter = self.meter.lock();
            if !meter.budget.take((line.len() + LINE_OVERHEAD_BYTES) as f64, Instant::now()) {
                meter.dropped += 1;
                self.lines_dropped.fetch_add(1, Relaxed);
                self.services.counters.log_lines_dropped.fetch_add(1, Relaxed);
                return;
            }
            std::mem::take(&mut meter.dropped)
        };
        if dropped > 0 {
            self.note(LogLevel::Warn, format!("{dropped} lines were dropped here, because there were too many"));
        }
        self.services.counters.log_lines.fetch_add(1, Relaxed);
        let (function, version) = self.attribute(function, version);
        let request_id = request_id.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic()));
        // The container's own clock is the tenant's to set; the node's is not.
        let at = Timestamp::from_system(SystemTime::now());
        self.services.logs.publish(&self.path, LogLine { at, function, version, request_id, level, line });
    }

    /// What the runtime says of a line's origin, as far as it can be true.
    fn attribute(&self, function: Option<FunctionName>, version: Option<VersionNumber>) -> (Option<FunctionName>, Option<VersionNumber>) {
        let functions = self.functions.read();
        match (function, version) {
            (Some(function), Some(version)) if functions.contains(&(function.clone(), version)) => (Some(function), Some(version)),
            (Some(function), _) if functions.iter().any(|(f, _)| *f == function) => (Some(function), None),
            _ => (None, None),
        }
    }

    fn serve_storage(self: &Arc<Self>, id: u64, function: FunctionName, write: Option<Write>) {
        self.services.counters.storage_calls.fetch_add(1, Relaxed);
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            // Without a place in the line there is no answer either, but for this one, and only if it can be sent at once.
            self.answer_now(id, "too many storage calls run at once");
            return;
        };
        let owner = Arc::clone(self);
        // At most `storage_calls_max` per container, each with a deadline: nobody needs to own it beyond that.
        tokio::spawn(async move {
            let answered = tokio::time::timeout(owner.services.storage_timeout, owner.storage(id, function, write)).await;
            let answer = answered.unwrap_or_else(|_| failed(id, "the storage did not answer in time"));
            let control = owner.control.lock().clone();
            if let Some(control) = control {
                let _ = control.send(answer).await;
            }
            drop(permit);
        });
    }

    fn answer_now(self: &Arc<Self>, id: u64, error: &str) {
        let control = self.control.lock().clone();
        if let Some(control) = control {
            control.try_send(failed(id, error));
        }
    }

    async fn storage(&self, id: u64, function: FunctionName, write: Option<Write>) -> ToRuntime {
        if !self.functions.read().iter().any(|(f, _)| *f == function) {
            return failed(id, "the function is not one of this container");
        }
        let path = self.path.function(function);
        let store = &self.services.functions;
        let Some(Write { data, etag, force }) = write else {
            return match store.get_document(&path).await {
                Ok(found) => {
                    let (data, etag) = found.map(|(data, etag)| (data, etag.to_string())).unzip();
                    ToRuntime::Storage { id, data, etag, conflict: false, error: None }
                }
                Err(error) => storage_failed(id, &path, &error),
            };
        };
        if serde_json::to_string(&data).map_or(usize::MAX, |text| text.len()) > STORAGE_DOCUMENT_BYTES_MAX {
            return failed(id, &format!("the document is larger than {STORAGE_DOCUMENT_BYTES_MAX} bytes"));
        }
        let precondition = match (force, etag) {
            (true, _) => Precondition::None,
            (false, Some(etag)) => match etag.parse() {
                Ok(etag) => Precondition::Generation(etag),
                Err(_) => return conflict(id, None),
            },
            // Who has read nothing may delete, or write the first document.
            (false, None) if data.is_null() => Precondition::None,
            (false, None) => Precondition::Absent,
        };
        let deletes = data.is_null();
        match store.put_document(&path, data, precondition).await {
            // Who has deleted the document writes the next one as if there had never been any.
            Ok(etag) => ToRuntime::Storage { id, data: None, etag: (!deletes).then(|| etag.to_string()), conflict: false, error: None },
            Err(StoreError::Precondition { .. }) => conflict(id, store.get_document(&path).await.ok().flatten().map(|(data, _)| data)),
            Err(error) => storage_failed(id, &path, &error),
        }
    }
}

/// A `storage.set`.
struct Write {
    data: serde_json::Value,
    etag: Option<String>,
    force: bool,
}

fn failed(id: u64, error: &str) -> ToRuntime {
    ToRuntime::Storage { id, data: None, etag: None, conflict: false, error: Some(error.to_owned()) }
}

fn conflict(id: u64, data: Option<serde_json::Value>) -> ToRuntime {
    ToRuntime::Storage { id, data, etag: None, conflict: true, error: None }
}

/// The tenant learns that it failed; why is the operator's.
fn storage_failed(id: u64, path: &hearth_model::FunctionPath, error: &StoreError) -> ToRuntime {
    tracing::warn!(function = %path, %error, "a storage call failed");
    failed(id, "the storage does not answer at the moment")
}
