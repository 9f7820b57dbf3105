//! Modules on this machine: each artifact is fetched once, checked, unpacked once, and mounted read-only into every container whose
//! functions depend on it.
//!
//! `{data_dir}/modules/{sha256}` holds the unpacked files; nothing appears under such a name before it is whole and on disk. A
//! read-only view of that directory (`modules-ro`) is what containers' mounts are made from, so that they are read-only from their
//! first moment, also where they propagate to.

mod attach;
mod demand;
mod fetch;
mod share;
#[cfg(test)]
mod tests;
mod unpack;

pub use attach::{AttachError, Attached};
pub use unpack::{UnpackError, unpack};

use bytesize::ByteSize;
use demand::Demand;
use hearth_model::{ArtifactRef, BuildKey, ResolvedModule};
use hearth_store::{ArtifactStore, FunctionStore};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What was found to be popular is believed for so many times as long as finding it took.
const POPULAR_TIMES: u32 = 20;

/// What was popular at one moment.
struct Popular {
    at: Instant,
    took: Duration,
    max: usize,
    sets: Vec<Vec<ResolvedModule>>,
}

/// The module cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Unpacked modules on this machine, in bytes on the disk, each as if it were alone there. Those that no container uses make room for
    /// others, the one unused longest first; where all are in use, no new ones come.
    pub disk_limit: ByteSize,
    /// How long fetching one artifact may take.
    #[serde(with = "humantime_serde")]
    pub fetch_timeout: Duration,
    /// Artifacts that are fetched at the same time.
    pub fetch_concurrency: usize,
    /// Largest set of modules, unpacked, that is loaded ahead into waiting containers.
    pub preload_max: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            disk_limit: ByteSize::gib(20),
            fetch_timeout: Duration::from_secs(300),
            fetch_concurrency: 4,
            preload_max: ByteSize::mib(64),
        }
    }
}

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{call} {path}: {source}")]
pub struct OpenError {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// One artifact on this machine.
#[derive(Debug)]
struct Present {
    bytes: u64,
    /// Slots that have it mounted.
    slots: BTreeSet<u32>,
    last_used: Instant,
}

type FetchCell = Arc<tokio::sync::OnceCell<()>>;

/// Modules on this machine.
pub struct ModuleCache {
    config: Config,
    dir: PathBuf,
    /// The read-only view; none where this process may not mount, and files are linked instead.
    read_only: Option<PathBuf>,
    functions: Arc<dyn FunctionStore>,
    artifacts: Arc<dyn ArtifactStore>,
    /// Builds that are ready never change.
    ready: Cache<BuildKey, Arc<ArtifactRef>>,
    present: Mutex<HashMap<String, Present>>,
    /// Room that fetches under way have taken; changed only under the lock of `present`.
    reserved: AtomicU64,
    fetching: Mutex<HashMap<String, FetchCell>>,
    fetch_permits: tokio::sync::Semaphore,
    /// Contexts by slot, with the artifact each was made from.
    slots: tokio::sync::Mutex<HashMap<u32, BTreeMap<String, String>>>,
    demand: Mutex<Demand>,
    popular: Mutex<Option<Popular>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    fetches: AtomicU64,
    fetch_us: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    evictions: AtomicU64,
    attaches: AtomicU64,
    attach_us: AtomicU64,
}

/// The cache at one moment.
#[derive(Debug, Serialize)]
pub struct ModuleCacheStatus {
    /// `mount` where modules are mounted into containers, `links` where this process may not mount and links every file instead.
    pub mode: &'static str,
    /// Artifacts on this machine.
    pub artifacts: usize,
    /// Their size, unpacked; files that several hold are counted with each, although they lie on the disk once.
    pub bytes: u64,
    /// What they may take.
    pub bytes_max: u64,
    /// Mounts in containers.
    pub mounts: usize,
    /// Artifacts fetched since the start.
    pub fetches: u64,
    /// What fetching, checking and unpacking them took altogether, in microseconds.
    pub fetch_us: u64,
    /// Artifacts refused since the start, since they were not what their name says.
    pub refused: u64,
    /// Fetches since the start that failed for other reasons: the store was away, the disk was full.
    pub failed: u64,
    /// Mounts made since the start.
    pub attaches: u64,
    /// What making them took altogether, in microseconds.
    pub attach_us: u64,
    /// Artifacts removed to make room since the start.
    pub evictions: u64,
}

impl ModuleCache {
    /// Opens the cache of this node and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`OpenError`] when the directory cannot be used.
    pub async fn open(
        config: Config,
        data_dir: &Path,
        functions: Arc<dyn FunctionStore>,
        artifacts: Arc<dyn ArtifactStore>,
    ) -> Result<Arc<Self>, OpenError> {
        let dir = data_dir.join("modules");
        let fail = |call, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError { call, path, source }
        };
        let temp = dir.join("tmp");
        match fs::remove_dir_all(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("clearing", &temp)(e)),
            _ => {}
        }
        fs::create_dir_all(&temp).map_err(fail("creating", &temp))?;
        let dir = dir.canonicalize().map_err(fail("finding", &dir))?;
        let read_only = attach::read_only_view(&dir).map_err(fail("mounting a read-only view of", &dir))?;
        let mut present = HashMap::new();
        for entry in fs::read_dir(&dir).map_err(fail("reading", &dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(bytes) = fetch::size_of(&entry.path()) {
                present.insert(name, Present { bytes, slots: BTreeSet::new(), last_used: Instant::now() });
            }
        }
        // What an earlier process left; not waited for, since it looks at every file.
        let index = dir.join(fetch::FILES_DIR);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = share::sweep(&index) {
                tracing::warn!(%error, "files that belong to no module could not be removed; the next start removes them");
            }
        });
        Ok(Arc::new(Self {
            fetch_permits: tokio::sync::Semaphore::new(config.fetch_concurrency.max(1)),
            config,
            dir,
            read_only,
            functions,
            artifacts,
            ready: Cache::new(20_000),
            present: Mutex::new(present),
            reserved: AtomicU64::new(0),
            fetching: Mutex::default(),
            slots: tokio::sync::Mutex::default(),
            demand: Mutex::default(),
            popular: Mutex::default(),
            counters: Counters::default(),
        }))
    }

    /// Counts one use of a set of modules.
    pub fn note_demand(&self, modules: &[ResolvedModule]) {
        if !modules.is_empty() {
            self.demand.lock().note(modules, Instant::now());
        }
    }

    /// The sets most in demand on this node, best first; only those small enough to be loaded ahead.
    #[must_use]
    pub fn popular(&self, max: usize) -> Vec<Vec<ResolvedModule>> {
        let limit = self.config.preload_max.as_u64();
        let small = |set: &[ResolvedModule]| {
            let sizes = set.iter().map(|m| self.ready.get(&m.build).map(|a| a.unpacked_bytes));
            sizes.sum::<Option<u64>>().is_some_and(|bytes| bytes <= limit)
        };
        let now = Instant::now();
        let mut popular = self.popular.lock();
        if popular.as_ref().is_none_or(|p| p.max < max || now.duration_since(p.at) >= p.took * POPULAR_TIMES) {
            let starts = self.demand.lock().starts(now);
            let sets = demand::popular(&starts, max, small);
            *popular = Some(Popular { at: now, took: now.elapsed(), max, sets });
        }
        popular.iter().flat_map(|p| &p.sets).take(max).cloned().collect()
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> ModuleCacheStatus {
        let present = self.present.lock();
        ModuleCacheStatus {
            mode: if self.read_only.is_some() { "mount" } else { "links" },
            artifacts: present.len(),
            bytes: present.values().map(|p| p.bytes).sum(),
            bytes_max: self.config.disk_limit.as_u64(),
            mounts: present.values().map(|p| p.slots.len()).sum(),
            fetches: self.counters.fetches.load(Relaxed),
            fetch_us: self.counters.fetch_us.load(Relaxed),
            refused: self.counters.refused.load(Relaxed),
            failed: self.counters.failed.load(Relaxed),
            attaches: self.counters.attaches.load(Relaxed),
            attach_us: self.counters.attach_us.load(Relaxed),
            evictions: self.counters.evictions.load(Relaxed),
        }
    }
}
