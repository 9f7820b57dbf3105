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
use tokio::sync::{mpsc, watch};

/// How the cache behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Functions that are remembered, those that do not exist included.
    pub functions_max: usize,
    /// How old a record may be before the store is asked again, in the background, while news of other nodes' changes cannot come.
    #[serde(with = "humantime_serde")]
    pub revalidate_after: Duration,
    /// The same while news comes, which tells of changes sooner; this only finds what no news told. All functions of a tenant ask for the
    /// tenant's item, so that this bounds how busy one item gets.
    #[serde(with = "humantime_serde")]
    pub revalidate_with_news: Duration,
    /// How long "no such function" is believed.
    #[serde(with = "humantime_serde")]
    pub absent_for: Duration,
    /// Deadline of one read of the store.
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// While news of other nodes' changes cannot come, how old a record may be before the store is asked ahead of serving it.
    #[serde(with = "humantime_serde")]
    pub believe_without_news: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            functions_max: 50_000,
            revalidate_after: Duration::from_secs(5),
            revalidate_with_news: Duration::from_secs(60),
            absent_for: Duration::from_secs(1),
            read_timeout: Duration::from_secs(5),
            believe_without_news: Duration::from_secs(8),
        }
    }
}

/// Deadline of a read that has an older record to fall back to.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Changes that wait to be told to other nodes; beyond it one "everything may have changed" takes the place of all.
const TOLD_MAX: usize = 1_024;

/// What a management call or a build has changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// A tenant's limits, or that it is gone.
    Tenant(TenantName),
    /// A container's settings, or that it is gone.
    Container(ContainerPath),
    /// Which version of a function is live, or that it is gone.
    Function(FunctionPath),
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tenant(tenant) => tenant.fmt(f),
            Self::Container(path) => path.fmt(f),
            Self::Function(path) => path.fmt(f),
        }
    }
}

impl std::str::FromStr for Change {
    type Err = hearth_model::NameError;

    /// From `tenant[/container[/function]]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.bytes().filter(|b| *b == b'/').count() {
            0 => text.parse().map(Self::Tenant),
            1 => text.parse().map(Self::Container),
            _ => text.parse().map(Self::Function),
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
    /// When it was last read, or a read that was to check it failed for a while.
    checked_at: Instant,
    refreshing: AtomicBool,
    /// Stretches this record's age limit by chance, so that what was read at once is not looked up again at once.
    patience: f64,
}

/// Shortest and longest patience.
const PATIENCE: std::ops::Range<f64> = 0.75..1.25;

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
    /// Records read before this moment (nanoseconds after `started`) are checked before they are served: news may have been missed.
    doubted_ns: AtomicU64,
    /// Whether news of other nodes' changes cannot come at the moment.
    without_news: AtomicBool,
    /// Takes changes made here, for other nodes.
    tell: Mutex<Option<mpsc::Sender<Change>>>,
    /// Changes that found no room there.
    untold: AtomicBool,
    started: Instant,
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
            doubted_ns: AtomicU64::new(0),
            without_news: AtomicBool::new(false),
            tell: Mutex::default(),
            untold: AtomicBool::new(false),
            started: Instant::now(),
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
        if self.in_doubt(&known) {
            return None;
        }
        if age >= self.revalidate_after().mul_f64(known.patience) && !known.refreshing.swap(true, Relaxed) {
            self.revalidate(key, &known);
        }
        Some(known)
    }

    fn revalidate_after(&self) -> Duration {
        let Config { revalidate_after, revalidate_with_news, .. } = self.config;
        if self.without_news.load(Relaxed) { revalidate_after } else { revalidate_after.max(revalidate_with_news) }
    }

    fn in_doubt(&self, known: &Known) -> bool {
        let doubted = self.started + Duration::from_nanos(self.doubted_ns.load(Relaxed));
        known.checked_at < doubted
            || self.without_news.load(Relaxed) && known.checked_at.elapsed() >= self.config.believe_without_news
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
                // Only a record in doubt is still there: without the store it is better than no answer.
                let doubted = self.known.peek(key).filter(|k| k.servable.is_some());
                let timeout = doubted.as_ref().map_or(self.config.read_timeout, |_| RECHECK_TIMEOUT.min(self.config.read_timeout));
                return match (self.fetch(key, path, timeout).await, doubted) {
                    (Err(error), Some(doubted)) => Ok(self.excuse(key, &doubted, &error)),
                    (result, _) => result,
                };
            }
            // The channel closes when the reader ahead is done, whatever came of it; a failed read is tried again by the next.
            let _ = wait.changed().await;
            if let Some(known) = self.known.get(key)
                && known.checked_at.elapsed() < self.config.absent_for
            {
                return Ok(known);
            }
        }
    }

    /// Keeps a record that could not be checked for a moment, so that not every request waits for a store that is away.
    fn excuse(&self, key: &str, doubted: &Known, error: &StoreError) -> Arc<Known> {
        tracing::warn!(function = key, %error, "serving a record that could not be checked");
        let known = Arc::new(Known {
            servable: doubted.servable.clone(),
            gate: doubted.gate.clone(),
            read_at: doubted.read_at,
            // Its age stays: the background goes on asking.
            checked_at: Instant::now(),
            refreshing: AtomicBool::new(false),
            patience: doubted.patience,
        });
        self.known.insert(key.into(), Arc::clone(&known));
        known
    }

    async fn fetch(&self, key: &str, path: &FunctionPath, timeout: Duration) -> Result<Arc<Known>, StoreError> {
        let now = Instant::now();
        let epoch = self.epoch.load(Acquire);
        let read = tokio::time::timeout(timeout, self.functions.get_servable(path)).await;
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
                    detail: format!("no answer within {timeout:?}"),
                });
            }
        };
        let gate = found.as_ref().map(|s| self.gates.gate(&s.tenant.name, &s.tenant.limits));
        // An unchanged record keeps its identity, so that whoever compares pointers sees no change.
        let servable = match (found, self.known.peek(key).and_then(|k| k.servable.clone())) {
            (Some(new), Some(old)) if *old == new => Some(old),
            (new, _) => new.map(Arc::new),
        };
        let patience = rand::random_range(PATIENCE);
        let refreshing = AtomicBool::new(false);
        let known = Arc::new(Known { servable, gate, read_at: Instant::now(), checked_at: now, refreshing, patience });
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
                && let Err(error) = catalog.fetch(&key, &path, catalog.config.read_timeout).await
            {
                tracing::warn!(function = %path, %error, "serving a record that could not be looked up again");
            }
            known.refreshing.store(false, Relaxed);
        });
    }

    /// A function was changed here: forgets it, so that the next request reads the store, and tells the other nodes.
    pub fn invalidate(&self, path: &FunctionPath) {
        self.changed(Change::Function(path.clone()));
    }

    /// A container was changed here.
    pub fn invalidate_container(&self, path: &ContainerPath) {
        self.changed(Change::Container(path.clone()));
    }

    /// A tenant was changed here.
    pub fn invalidate_tenant(&self, tenant: &TenantName) {
        self.changed(Change::Tenant(tenant.clone()));
    }

    fn changed(&self, change: Change) {
        self.forget(&change);
        if let Some(tell) = &*self.tell.lock()
            && tell.try_send(change).is_err()
        {
            self.untold.store(true, Relaxed);
        }
    }

    /// A change was made, here or elsewhere: forgets what it concerns and tells nobody.
    pub fn forget(&self, change: &Change) {
        self.epoch.fetch_add(1, AcqRel);
        match change {
            Change::Function(path) => {
                self.known.remove(path.to_string().as_str());
            }
            Change::Container(path) => self.forget_below(&format!("{path}/")),
            Change::Tenant(tenant) => self.forget_below(&format!("{tenant}/")),
        }
    }

    fn forget_below(&self, prefix: &str) {
        self.known.retain(|key, _| !key.starts_with(prefix));
    }

    /// Anything may have changed elsewhere: what is known is checked before it is served again.
    pub fn doubt_all(&self) {
        self.epoch.fetch_add(1, AcqRel);
        self.doubted_ns.store(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether news of other nodes' changes can come. While it cannot, records are believed for `believe_without_news` only.
    pub fn set_news(&self, coming: bool) {
        self.without_news.store(!coming, Relaxed);
    }

    /// Changes made here from now on, to be told to other nodes; the latest caller gets them.
    pub fn changes(&self) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel(TOLD_MAX);
        *self.tell.lock() = Some(sender);
        receiver
    }

    /// Whether changes since the last call found no room among those to be told.
    pub fn take_untold(&self) -> bool {
        self.untold.swap(false, Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{CodeRef, Container, Tenant, TenantLimits, Timestamp, VersionNumber, VersionStatus};
    use hearth_store::{NewVersion, Precondition};

    struct Two {
        _dir: tempfile::TempDir,
        store: Arc<dyn FunctionStore>,
        catalog: Arc<Catalog>,
        path: FunctionPath,
    }

    impl Two {
        async fn new(config: Config) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = hearth_store::open(&hearth_store::Config::embedded(dir.path())).await.unwrap().functions;
            let path: FunctionPath = "acme/main/hello".parse().unwrap();
            let (name, limits) = (path.tenant.clone(), TenantLimits::default());
            let tenant = Tenant { limits, ..Tenant::new(name) };
            store.put_tenant(tenant, Precondition::None).await.unwrap();
            let container = Container::with_defaults(&path.container_path(), Timestamp(0));
            store.put_container(container, Precondition::None).await.unwrap();
            let two =
                Self { _dir: dir, catalog: Catalog::new(Arc::clone(&store), config, Arc::default(), Arc::default()), store, path };
            two.changed_elsewhere().await;
            two
        }

        /// As another node does it: in the store, with no word to this catalog.
        async fn changed_elsewhere(&self) {
            let new = NewVersion {
                status: VersionStatus::Ready,
                code: CodeRef::Inline(Default::default()),
                main: "index.js".into(),
                model: None,
                timeout_ms: 1_000,
                dependencies: Default::default(),
                modules: Vec::new(),
                env: Default::default(),
                secrets: Default::default(),
            };
            self.store.create_version(&self.path, new, Precondition::None).await.unwrap();
        }

        async fn live(&self) -> Option<VersionNumber> {
            self.catalog.get(&self.path).await.unwrap().unwrap().function.live
        }
    }

    const NEVER: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn what_was_changed_elsewhere_serves_once_it_is_doubted_or_forgotten() {
        let two = Two::new(Config { revalidate_after: NEVER, ..Config::default() }).await;
        assert_eq!(two.live().await, Some(VersionNumber(1)));
        two.changed_elsewhere().await;
        assert_eq!(two.live().await, Some(VersionNumber(1)), "nobody has told");
        two.catalog.doubt_all();
        assert_eq!(two.live().await, Some(VersionNumber(2)));
        assert!(two.catalog.peek("acme/main/hello").is_some(), "checked once, it is known again");
        for change in ["acme/main/hello", "acme/main", "acme"] {
            two.changed_elsewhere().await;
            let before = two.live().await.unwrap();
            two.catalog.forget(&change.parse().unwrap());
            assert_eq!(two.live().await, Some(VersionNumber(before.0 + 1)), "{change}");
        }
        two.catalog.forget(&"acme/other".parse().unwrap());
        assert!(two.catalog.peek("acme/main/hello").is_some());
    }

    #[tokio::test]
    async fn without_news_a_record_is_believed_for_a_while_only() {
        let believe = Duration::from_millis(200);
        let two = Two::new(Config { revalidate_after: NEVER, believe_without_news: believe, ..Config::default() }).await;
        assert_eq!(two.live().await, Some(VersionNumber(1)));
        two.changed_elsewhere().await;
        tokio::time::sleep(believe).await;
        assert_eq!(two.live().await, Some(VersionNumber(1)), "with news an old record is as good as a young one");
        two.catalog.set_news(false);
        assert_eq!(two.live().await, Some(VersionNumber(2)));
    }

    #[tokio::test]
    async fn with_news_the_store_is_asked_again_more_rarely() {
        let after = Duration::from_millis(20);
        let two = Two::new(Config { revalidate_after: after, revalidate_with_news: NEVER, ..Config::default() }).await;
        let looked = || two.catalog.counters.revalidations.load(Relaxed);
        two.live().await;
        tokio::time::sleep(after * 2).await;
        two.live().await;
        tokio::time::sleep(after).await;
        assert_eq!(looked(), 0, "news tells of changes");
        two.catalog.set_news(false);
        two.changed_elsewhere().await;
        let until = Instant::now() + Duration::from_secs(10);
        while two.live().await != Some(VersionNumber(2)) {
            assert!(Instant::now() < until, "no news tells, and nobody looks");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(looked() > 0);
    }

    #[tokio::test]
    async fn only_changes_made_here_are_told_and_their_number_is_bounded() {
        let two = Two::new(Config::default()).await;
        two.catalog.invalidate(&two.path);
        let mut changes = two.catalog.changes();
        two.catalog.forget(&Change::Function(two.path.clone()));
        two.catalog.invalidate(&two.path);
        assert_eq!(changes.try_recv().unwrap(), Change::Function(two.path.clone()));
        assert!(changes.try_recv().is_err(), "neither what was before anyone listened, nor what came from elsewhere");
        for _ in 0..TOLD_MAX {
            two.catalog.invalidate_container(&two.path.container_path());
        }
        assert!(!two.catalog.take_untold());
        two.catalog.invalidate_tenant(&two.path.tenant);
        assert!(two.catalog.take_untold() && !two.catalog.take_untold());
    }

    #[test]
    fn changes_are_written_as_paths() {
        for text in ["acme", "acme/main", "acme/main/hello"] {
            assert_eq!(text.parse::<Change>().unwrap().to_string(), text);
        }
        for text in ["", "*", "a/b/c/d", "a//b", "A"] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }
}
