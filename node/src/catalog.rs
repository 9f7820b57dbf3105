//! What a node knows of functions without asking the store: a bounded cache that serves what it has and looks again in the
//! background, so that the store is never on the path of a warm request and may even be away.

use crate::{
    proxy::admit::{Gate, Gates},
    usage::UsageBook,
};
use hearth_model::{Classes, ContainerPath, FunctionPath, TenantName};
use hearth_store::{FunctionStore, Servable, StoreError};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How the cache behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Functions that are remembered, those that do not exist included.
    pub functions_max: usize,
    /// How old a record may be before the store is asked again, in the background.
    #[serde(with = "humantime_serde")]
    pub revalidate_after: Duration,
    /// How long "no such function" is believed.
    #[serde(with = "humantime_serde")]
    pub absent_for: Duration,
    /// Deadline of one read of the store.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            functions_max: 50_000,
            revalidate_after: Duration::from_secs(5),
            absent_for: Duration::from_secs(1),
            read_timeout: Duration::from_secs(5),
        }
    }
}

/// A function as it is known here.
#[derive(Debug)]
pub struct Known {
    /// The record; none when there is no such function.
    pub servable: Option<Arc<Servable>>,
    /// The tenant's admission; none when there is no such function.
    pub gate: Option<Arc<Gate>>,
    read_at: Instant,
    refreshing: AtomicBool,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads of the store because nothing was known.
    pub misses: AtomicU64,
    /// Reads of the store in the background.
    pub revalidations: AtomicU64,
    /// Reads that failed.
    pub failures: AtomicU64,
}

/// The cache.
pub struct Catalog {
    functions: Arc<dyn FunctionStore>,
    config: Config,
    known: Cache<Box<str>, Arc<Known>>,
    classes: Arc<Classes>,
    gates: Gates,
    /// Reads under way, so that a thousand first requests make one read. A receiver sees the channel close at the end.
    reading: Mutex<HashMap<Box<str>, watch::Receiver<()>>>,
    counters: Counters,
    /// Grows with every invalidation: a read that was under way meanwhile may be older than the change and is not kept.
    epoch: AtomicU64,
    runtime: tokio::runtime::Handle,
}

impl Catalog {
    /// A catalog over `functions`, counting what tenants use in `usage`; background reads run on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(functions: Arc<dyn FunctionStore>, config: Config, classes: Arc<Classes>, usage: Arc<UsageBook>) -> Arc<Self> {
        Arc::new(Self {
            known: Cache::new(config.functions_max),
            functions,
            config,
            classes,
            gates: Gates::new(usage),
            reading: Mutex::default(),
            counters: Counters::default(),
            epoch: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// The record, from here if it is known; none when there is no such function.
    ///
    /// # Errors
    /// [`StoreError`] when nothing is known and the store does not tell.
    pub async fn get(self: &Arc<Self>, path: &FunctionPath) -> Result<Option<Arc<Servable>>, StoreError> {
        let key = path.to_string();
        match self.peek(&key) {
            Some(known) => Ok(known.servable.clone()),
            None => Ok(self.read(&key, path).await?.servable.clone()),
        }
    }

    /// What is known under `tenant/container/function`, without waiting. An old record is returned and looked up again behind
    /// the caller's back.
    #[must_use]
    pub fn peek(self: &Arc<Self>, key: &str) -> Option<Arc<Known>> {
        let known = self.known.get(key)?;
        let age = known.read_at.elapsed();
        if known.servable.is_none() {
            return (age < self.config.absent_for).then_some(known);
        }
        if age >= self.config.revalidate_after && !known.refreshing.swap(true, Relaxed) {
            self.revalidate(key, &known);
        }
        Some(known)
    }

    /// Reads the record from the store; readers of the same function share one read.
    ///
    /// # Errors
    /// [`StoreError`] as the store gives it.
    pub async fn read(self: &Arc<Self>, key: &str, path: &FunctionPath) -> Result<Arc<Known>, StoreError> {
        loop {
            let (turn, mut wait) = {
                let mut reading = self.reading.lock();
                match reading.get(key) {
                    Some(receiver) => (None, receiver.clone()),
                    None => {
                        let (sender, receiver) = watch::channel(());
                        reading.insert(key.into(), receiver.clone());
                        (Some(ReadTurn { catalog: self, key, _sender: sender }), receiver)
                    }
                }
            };
            if turn.is_some() {
                self.counters.misses.fetch_add(1, Relaxed);
                return self.fetch(key, path).await;
            }
            // The channel closes when the reader ahead is done, whatever came of it; a failed read is tried again by the next.
            let _ = wait.changed().await;
            if let Some(known) = self.known.get(key)
                && known.read_at.elapsed() < self.config.absent_for
            {
                return Ok(known);
            }
        }
    }

    async fn fetch(&self, key: &str, path: &FunctionPath) -> Result<Arc<Known>, StoreError> {
        let epoch = self.epoch.load(Acquire);
        let read = tokio::time::timeout(self.config.read_timeout, self.functions.get_servable(path)).await;
        let found = match read {
            Ok(Ok(found)) => found.map(|s| Servable { tenant: self.classes.apply(s.tenant), ..s }),
            Ok(Err(error)) => {
                self.counters.failures.fetch_add(1, Relaxed);
                return Err(error);
            }
            Err(_) => {
                self.counters.failures.fetch_add(1, Relaxed);
                return Err(StoreError::Unavailable {
                    call: "get_servable",
                    resource: "the function store".into(),
                    detail: format!("no answer within {:?}", self.config.read_timeout),
                });
            }
        };
        let gate = found.as_ref().map(|s| self.gates.gate(&s.tenant.name, &s.tenant.limits));
        // An unchanged record keeps its identity, so that whoever compares pointers sees no change.
        let servable = match (found, self.known.peek(key).and_then(|k| k.servable.clone())) {
            (Some(new), Some(old)) if *old == new => Some(old),
            (new, _) => new.map(Arc::new),
        };
        let known = Arc::new(Known { servable, gate, read_at: Instant::now(), refreshing: AtomicBool::new(false) });
        if self.epoch.load(Acquire) == epoch {
            self.known.insert(key.into(), Arc::clone(&known));
        }
        Ok(known)
    }

    fn revalidate(self: &Arc<Self>, key: &str, known: &Arc<Known>) {
        let (catalog, key, known) = (Arc::clone(self), Box::<str>::from(key), Arc::clone(known));
        // One short read per function at a time, bounded by its deadline: nobody needs to own it beyond that.
        self.runtime.spawn(async move {
            catalog.counters.revalidations.fetch_add(1, Relaxed);
            if let Ok(path) = key.parse::<FunctionPath>()
                && let Err(error) = catalog.fetch(&key, &path).await
            {
                tracing::warn!(function = %path, %error, "serving a record that could not be looked up again");
            }
            known.refreshing.store(false, Relaxed);
        });
    }

    /// Forgets one function: the next request reads the store.
    pub fn invalidate(&self, path: &FunctionPath) {
        self.epoch.fetch_add(1, AcqRel);
        self.known.remove(path.to_string().as_str());
    }

    /// Forgets the functions of a container.
    pub fn invalidate_container(&self, path: &ContainerPath) {
        self.forget_below(&format!("{path}/"));
    }

    /// Forgets the functions of a tenant.
    pub fn invalidate_tenant(&self, tenant: &TenantName) {
        self.forget_below(&format!("{tenant}/"));
    }

    fn forget_below(&self, prefix: &str) {
        self.epoch.fetch_add(1, AcqRel);
        self.known.retain(|key, _| !key.starts_with(prefix));
    }

    /// Functions that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// The right to read one function; gives it up when dropped, also when the reader is cancelled.
struct ReadTurn<'a> {
    catalog: &'a Catalog,
    key: &'a str,
    _sender: watch::Sender<()>,
}

impl Drop for ReadTurn<'_> {
    fn drop(&mut self) {
        self.catalog.reading.lock().remove(self.key);
    }
}
