//! The container handler: gives each tenant's container a Docker container for life out of a pool of pre-warmed ones, loads functions
//! into it, freezes and destroys it when it is idle, replaces it when it dies, and adopts it when this process restarts.
//!
//! The warm path ([`Handler::try_acquire`]) is a map look-up and three atomics. Everything else happens once for all who wait.

mod adopt;
mod apart;
mod busy;
mod claim;
mod container;
mod control;
mod flight;
mod idle;
mod inbound;
mod metering;
mod pool;
mod report;
mod restarts;
mod slot;
mod status;

pub use container::{ColdTimings, Lease, LiveContainer, Start};
pub use report::ContainerLoad;
pub use status::{ContainerStatus, HandlerStatus};

use crate::{logs::LogHub, modules::ModuleCache, usage::UsageBook};
use bytesize::ByteSize;
use container::Registered;
use flight::Flights;
use hearth_model::{ContainerPath, FunctionName, ProblemKind, VersionNumber};
use hearth_sandbox::{CpuSplit, Cpus, Sandbox, SandboxError};
use hearth_store::{ArtifactStore, FunctionStore, Keyring, Servable};
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Containers and the pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Containers that wait, claimed by nobody.
    pub pool_size: usize,
    /// What the pool may grow to while claims come fast.
    pub pool_max: usize,
    /// Containers of the pool that may have popular modules loaded already.
    pub preloaded_max: usize,
    /// Containers that are created at the same time.
    pub refill_concurrency: usize,
    /// Containers on this node, the pool included.
    pub containers_max: u32,
    /// Requests that wait for one container or one load; more get a 503.
    pub wait_queue_max: u32,
    /// How long a request waits for a container.
    #[serde(with = "humantime_serde")]
    pub claim_timeout: Duration,
    /// How long a container may take from its creation to being ready.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
    /// How long a function's code may take to load.
    #[serde(with = "humantime_serde")]
    pub load_timeout: Duration,
    /// How long a suspected container may take to say that its event loop is alive.
    #[serde(with = "humantime_serde")]
    pub ping_timeout: Duration,
    /// Idle time after which a container is frozen. What it does in the background stops then.
    #[serde(with = "humantime_serde")]
    pub freeze_after: Duration,
    /// Idle time after which a container is destroyed.
    #[serde(with = "humantime_serde")]
    pub destroy_after: Duration,
    /// Memory of all containers above which idle ones are destroyed, the oldest and cheapest to bring back first; 0 means six tenths
    /// of the machine's.
    pub memory_limit: ByteSize,
    /// CPU of one container, in thousandths of a core.
    pub cpu_millis: u32,
    /// Processes and threads of one container.
    pub pids_max: u32,
    /// Size of a container's `/tmp`, which counts as its memory.
    pub tmp_size: ByteSize,
    /// Output of one container per second; what is more is dropped and counted.
    pub log_rate: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pool_size: 4,
            pool_max: 16,
            preloaded_max: 2,
            refill_concurrency: 2,
            containers_max: 2_000,
            wait_queue_max: 2_048,
            claim_timeout: Duration::from_secs(15),
            start_timeout: Duration::from_secs(20),
            load_timeout: Duration::from_secs(30),
            ping_timeout: Duration::from_millis(250),
            freeze_after: Duration::from_secs(60),
            destroy_after: Duration::from_secs(1_800),
            memory_limit: ByteSize::b(0),
            cpu_millis: 1_000,
            pids_max: 256,
            tmp_size: ByteSize::mib(64),
            log_rate: ByteSize::mib(1),
        }
    }
}

/// What the handler needs.
pub struct Deps {
    /// Containers.
    pub sandbox: Arc<dyn Sandbox>,
    /// Modules on this machine.
    pub modules: Arc<ModuleCache>,
    /// Functions' storage documents.
    pub functions: Arc<dyn FunctionStore>,
    /// Code that is too large for its record.
    pub bundles: Arc<dyn ArtifactStore>,
    /// Opens secrets.
    pub keyring: Arc<dyn Keyring>,
    /// Takes functions' output.
    pub logs: Arc<LogHub>,
    /// Counts what tenants use.
    pub usage: Arc<UsageBook>,
    /// This node's files.
    pub data_dir: PathBuf,
    /// The runtime's program.
    pub runtime_dir: PathBuf,
    /// Which CPUs are set aside for background work, if any are.
    pub cpu_split: Option<CpuSplit>,
}

/// Why the handler did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The slots' directory cannot be used.
    #[error("preparing {path}: {source}")]
    Slots {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The engine does not answer.
    #[error("asking the container engine")]
    Sandbox(#[from] SandboxError),
}

/// Why there is no container for a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcquireError {
    /// The container serves as many requests as it may.
    #[error("the container serves {limit} requests already")]
    Concurrency {
        /// Its limit.
        limit: u32,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait for this container already")]
    QueueFull {
        /// How many.
        waiting: u32,
    },
    /// No container could be had in time.
    #[error("no container: {detail}")]
    NoCapacity {
        /// Why, for the operator.
        detail: String,
    },
    /// The function did not load.
    #[error("the function did not load: {message}")]
    Load {
        /// The error's text, for the tenant.
        message: String,
    },
    /// The container ended while the function loaded.
    #[error("the container ended while the function loaded")]
    Crashed {
        /// Whether for memory.
        out_of_memory: bool,
    },
    /// This container, or its tenant's together, ended by their own fault too often.
    #[error(
        "the function's container, or others of its tenant, have crashed, run out of memory, been stuck or not loaded too often in a row; a fresh one starts in {:.1} s",
        wait.as_secs_f32()
    )]
    CrashLoop {
        /// Until the next may start.
        wait: Duration,
    },
    /// Loading took too long.
    #[error("the function did not load within {limit:?}")]
    LoadTimeout {
        /// The limit.
        limit: Duration,
    },
    /// Something that is needed cannot be reached.
    #[error("{what}: {detail}")]
    Unavailable {
        /// What is needed, for the caller.
        what: &'static str,
        /// Why it cannot be had, for the operator.
        detail: String,
    },
    /// This node is leaving.
    #[error("this node is leaving")]
    Draining,
}

impl AcquireError {
    /// The one mapping from these errors to answers.
    #[must_use]
    pub fn problem_kind(&self) -> ProblemKind {
        match self {
            Self::Concurrency { .. } => ProblemKind::ConcurrencyLimited,
            Self::QueueFull { .. } | Self::NoCapacity { .. } => ProblemKind::NoCapacity,
            Self::Load { .. } => ProblemKind::FunctionLoadFailed,
            Self::Crashed { out_of_memory: true } => ProblemKind::FunctionOutOfMemory,
            Self::Crashed { out_of_memory: false } => ProblemKind::FunctionCrashed,
            Self::CrashLoop { .. } => ProblemKind::FunctionCrashLoop,
            Self::LoadTimeout { .. } => ProblemKind::FunctionTimeout,
            Self::Unavailable { .. } => ProblemKind::DependencyUnavailable,
            Self::Draining => ProblemKind::Draining,
        }
    }

    /// What a caller may read; the operator's part goes to the log.
    #[must_use]
    pub fn public_detail(&self) -> String {
        match self {
            Self::NoCapacity { .. } => {
                "no container could be had in time; the node is busy or its container engine does not answer".into()
            }
            Self::Unavailable { what, .. } => format!("{what} cannot be had now, and this start needs it"),
            other => other.to_string(),
        }
    }
}

/// The handler of one node.
pub struct Handler {
    config: Config,
    deps: Deps,
    slots: slot::Slots,
    containers: Registered,
    claims: Flights<ContainerPath, Arc<LiveContainer>>,
    loads: Flights<(u64, FunctionName, VersionNumber), LoadTimes>,
    pool: pool::Pool,
    restarts: restarts::Restarts,
    counters: status::Counters,
    /// Those who serve requests are kept to the CPUs that are not for background work.
    requests_apart: Arc<AtomicBool>,
    started: Instant,
    leaving: CancellationToken,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Clone, Copy, Default)]
struct LoadTimes {
    modules_ms: f32,
    load_ms: f32,
}

/// Rounds of a request that finds its container gone each time; then the node says that it has no capacity.
const ACQUIRE_ROUNDS_MAX: usize = 5;

impl Handler {
    /// Adopts the living containers of an earlier process, removes what belongs to nobody, and starts filling the pool.
    ///
    /// # Errors
    /// [`StartError`] when the engine or the slots' directory cannot be used.
    pub async fn start(config: Config, deps: Deps) -> Result<Arc<Self>, StartError> {
        let slots = slot::Slots::open(&deps.data_dir, config.containers_max)?;
        let handler = Arc::new(Self {
            pool: pool::Pool::new(&config),
            restarts: restarts::Restarts::default(),
            config,
            deps,
            slots,
            containers: Registered::default(),
            claims: Flights::default(),
            loads: Flights::default(),
            counters: status::Counters::default(),
            requests_apart: Arc::default(),
            started: Instant::now(),
            leaving: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
        });
        handler.adopt().await?;
        handler.tasks.spawn(pool::keep_full(Arc::clone(&handler)));
        handler.tasks.spawn(idle::watch(Arc::clone(&handler)));
        handler.tasks.spawn(idle::trim(Arc::clone(&handler)));
        handler.tasks.spawn(metering::watch(Arc::clone(&handler)));
        handler.tasks.spawn(busy::watch(Arc::clone(&handler)));
        Ok(handler)
    }

    /// A lease on the running container with the live version loaded, if there is one: the path of nearly every request.
    ///
    /// # Errors
    /// [`AcquireError::Concurrency`] when the container is full.
    pub fn try_acquire(&self, servable: &Arc<Servable>) -> Result<Option<Lease>, AcquireError> {
        let Some(version) = &servable.live else { return Ok(None) };
        let Some(container) = self.containers.get(&servable.container.path()) else { return Ok(None) };
        if !container.fits(servable) || !container.serves(version) {
            return Ok(None);
        }
        Lease::take(container, servable.container.concurrency, self.now_ms())
    }

    /// A lease, whatever it takes: a claim, a thaw, a load. Those who need the same wait for the same.
    ///
    /// # Errors
    /// [`AcquireError`] says who can mend it.
    pub async fn acquire(self: &Arc<Self>, servable: &Arc<Servable>) -> Result<Lease, AcquireError> {
        let began = Instant::now();
        let version = servable.live.as_ref().ok_or(AcquireError::Load { message: "no live version".into() })?;
        let mut timings = ColdTimings::default();
        let mut start = Start::Warm;
        for _ in 0..ACQUIRE_ROUNDS_MAX {
            if self.leaving.is_cancelled() {
                return Err(AcquireError::Draining);
            }
            let path = servable.container.path();
            let container = match self.containers.get(&path).filter(|c| c.is_alive()) {
                Some(container) if container.fits(servable) && container.can_load(version) => container,
                Some(outdated) => {
                    self.retire(&outdated);
                    continue;
                }
                None => {
                    start = Start::Cold;
                    if let Some(wait) = self.restarts.wait(&path, Instant::now()) {
                        return Err(AcquireError::CrashLoop { wait });
                    }
                    let container = self.claim(servable).await?;
                    timings.claim_ms = began.elapsed().as_secs_f32() * 1_000.0;
                    container
                }
            };
            if let Err(error) = self.thaw(&container).await {
                tracing::warn!(container = %path, %error, "a frozen container does not thaw; replacing it");
                self.kill(&container, "did not thaw");
                continue;
            }
            if !container.serves(version) {
                start = Start::Cold;
                match self.load(&container, servable).await {
                    Ok(times) => (timings.modules_ms, timings.load_ms) = (times.modules_ms, times.load_ms),
                    // Somebody else's function may have ended the container meanwhile: a fresh one may do better.
                    Err(AcquireError::Crashed { out_of_memory: false }) if container.exit().is_none() => continue,
                    Err(error) => return Err(error),
                }
                // The load that was joined may have been of a version deleted since, whose number this one has.
                if !container.can_load(version) {
                    continue;
                }
            }
            match Lease::take(container, servable.container.concurrency, self.now_ms())? {
                Some(lease) => return Ok(lease.cold(start, timings)),
                None => continue,
            }
        }
        Err(AcquireError::NoCapacity { detail: "containers of this tenant end as soon as they start".into() })
    }

    /// A request to this container timed out or could not be sent: if its event loop does not answer, it is killed, and the next
    /// request gets a fresh one.
    pub fn suspect(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        if !container.is_alive() || !container.begin_check() {
            return;
        }
        let (handler, container) = (Arc::clone(self), Arc::clone(container));
        let timeout = self.config.ping_timeout;
        self.tasks.spawn_on(
            async move {
                if container.ping(timeout).await.is_err() {
                    handler.counters.stuck.fetch_add(1, Relaxed);
                    // One that was leaving when it was asked did nothing wrong.
                    if handler.kill(&container, "its event loop is stuck") {
                        handler.restarts.note(container.path(), Instant::now());
                    }
                }
                container.end_check();
            },
            &self.runtime,
        );
    }

    /// The container's settings changed or it was deleted: what runs is finished, new requests get another one.
    pub fn evict(self: &Arc<Self>, path: &ContainerPath) {
        if let Some(container) = self.containers.get(path) {
            self.retire(&container);
        }
    }

    /// Stops refilling and taking requests. With `keep_containers` those with a tenant live on, for the next process to adopt.
    pub async fn shutdown(self: &Arc<Self>, keep_containers: bool) {
        self.leaving.cancel();
        self.pool.drain(self).await;
        if !keep_containers {
            for container in self.containers.all() {
                self.kill(&container, "shutting down");
                let _ = tokio::time::timeout(Duration::from_secs(5), container.gone()).await;
            }
        }
        self.tasks.close();
        // A container that is being made now is removed when it is there; on a busy machine that takes a while.
        let _ = tokio::time::timeout(self.config.start_timeout, self.tasks.wait()).await;
    }

    /// Where somebody who answers quickly runs at the moment.
    fn cpus_for_requests(&self) -> Cpus {
        if self.requests_apart.load(Relaxed) { Cpus::Foreground } else { Cpus::Any }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
