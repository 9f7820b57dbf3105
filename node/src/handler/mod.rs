//! The container handler: gives each tenant's container a container for life out of a pool of pre-warmed ones, loads functions into it,
//! and looks after it until it ends. It knows nothing of HTTP; the proxy asks it for a [`Lease`] and talks to the container itself.
//!
//! What is where: [`lifecycle`] the phases of a container and the gate that counts its requests; [`claim`] from a request to its
//! container; [`load`] a version into it; [`end`] out of it again; [`idle`] freezing and ending what nobody calls; [`pool`], [`plan`],
//! [`circuit`], [`refill`] containers made ahead; [`control`], [`inbound`], [`socket`] the hostile other side; [`slot`], [`files`]
//! directories; [`state`], [`adopt`] across restarts.

mod adopt;
mod attach;
mod budget;
mod circuit;
mod claim;
mod config;
mod container;
mod control;
mod end;
mod error;
mod files;
mod idle;
mod inbound;
mod lifecycle;
mod load;
mod plan;
mod pool;
mod refill;
mod routes;
mod shared;
mod slot;
mod socket;
mod state;
mod status;
#[cfg(test)]
mod tests;

pub use config::{Config, SLOTS_MAX};
pub use container::{ColdTimings, Lease, LiveContainer, Start};
pub use error::{AcquireError, StartError};
pub use status::{ContainerStatus, HandlerCounts, HandlerStatus, PoolStatus};

use crate::{logs::LogHub, modules::ModuleCache};
use attach::ModuleAttach;
use container::{EndReason, Shape};
use files::Bundles;
use hearth_model::ContainerPath;
use hearth_sandbox::Sandbox;
use hearth_store::{ArtifactStore, FunctionStore, Keyring, Servable};
use inbound::Services;
use lifecycle::Phase;
use shared::Shared;
use slot::Slots;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// How long a shutdown waits for what is under way in the background.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(30);

/// What a handler works with.
pub struct Deps {
    /// Makes containers.
    pub sandbox: Arc<dyn Sandbox>,
    /// Modules on this machine.
    pub modules: Arc<ModuleCache>,
    /// For functions' storage documents.
    pub functions: Arc<dyn FunctionStore>,
    /// For code that is too large for its record.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// Opens secrets.
    pub keyring: Arc<dyn Keyring>,
    /// Where log lines go.
    pub logs: Arc<LogHub>,
    /// The handler keeps its slots below it.
    pub data_dir: PathBuf,
    /// The runtime's program, mounted into every container.
    pub runtime_dir: PathBuf,
}

/// The containers of one node. Background work runs on the runtime on which it was started; the other calls work from any.
pub struct Handler {
    shared: Arc<Shared>,
}

impl Handler {
    /// Adopts containers of an earlier process, clears away what else it left, and begins to fill the pool.
    ///
    /// # Errors
    /// [`StartError`] when the configuration contradicts itself, a directory cannot be used, or the container engine does not answer.
    pub async fn start(config: Config, deps: Deps) -> Result<Arc<Self>, StartError> {
        let modules: Arc<dyn ModuleAttach> = deps.modules;
        Self::start_with(
            config,
            Parts {
                sandbox: deps.sandbox,
                modules,
                functions: deps.functions,
                artifacts: deps.artifacts,
                keyring: deps.keyring,
                logs: deps.logs,
                data_dir: deps.data_dir,
                runtime_dir: deps.runtime_dir,
            },
        )
        .await
    }

    async fn start_with(config: Config, parts: Parts) -> Result<Arc<Self>, StartError> {
        config.validate().map_err(|remedy| StartError::Config { remedy })?;
        let slots_dir = prepare_slots_dir(&parts.data_dir)?;
        if parts.sandbox.describe().await?.mounts_propagate {
            hearth_sandbox::docker::share_mounts(&slots_dir)?;
        }
        let services = Arc::new(Services {
            functions: parts.functions,
            logs: parts.logs,
            counters: Arc::default(),
            log_rate: config.log_rate.as_u64() as f64,
            log_burst: config.log_burst.as_u64() as f64,
            storage_calls_max: config.storage_calls_max as usize,
            storage_timeout: config.storage_timeout,
        });
        let bundles = Bundles::new(parts.artifacts, config.code_cache.as_u64());
        let slots = Slots::new(slots_dir, config.containers_max);
        let shared = Shared::new(config, parts.sandbox, parts.modules, parts.keyring, bundles, services, slots, parts.runtime_dir);
        shared.adopt_all().await?;
        shared.spawn(Arc::clone(&shared).refill());
        shared.spawn(Arc::clone(&shared).housekeep());
        Ok(Arc::new(Self { shared }))
    }

    /// A place in a running container that has the version loaded: one look-up and a few atomic steps. None where there is no such
    /// container, and [`Handler::acquire`] is to be asked.
    ///
    /// # Errors
    /// [`AcquireError::Concurrency`], [`AcquireError::NotReady`], [`AcquireError::Draining`].
    pub fn try_acquire(&self, servable: &Arc<Servable>) -> Result<Option<Lease>, AcquireError> {
        let Some(version) = &servable.live else { return Err(AcquireError::NotReady) };
        if self.shared.draining.load(Acquire) {
            return Err(AcquireError::Draining);
        }
        let container = &servable.container;
        let shape = Shape { memory_mb: container.memory_mb, node: container.node };
        let found = self.shared.routes.get(&servable.function.path, |route| {
            let loaded = &route.loaded;
            loaded.version == version.version && loaded.created_at == version.created_at && route.container.shape == shape
        });
        match found.and_then(|route| claim::enter(&route, container.concurrency)) {
            Some(lease) => lease.map(Some),
            None => Ok(None),
        }
    }

    /// A place in a container, whatever it takes: a claim (one however many requests wait), a load, a thaw.
    ///
    /// # Errors
    /// [`AcquireError`]; [`AcquireError::problem_kind`] tells whose fault it is.
    pub async fn acquire(&self, servable: &Arc<Servable>) -> Result<Lease, AcquireError> {
        match self.try_acquire(servable)? {
            Some(lease) => Ok(lease),
            None => self.shared.acquire(servable).await,
        }
    }

    /// A request of the container ran past its deadline, or could not be sent: asks the container for a sign of life in the
    /// background, and replaces it when there is none.
    pub fn suspect(&self, container: &Arc<LiveContainer>) {
        self.shared.suspect(container);
    }

    /// The container was deleted, or its settings changed: its requests finish, then it is destroyed. The next request gets another.
    pub fn evict(&self, path: &ContainerPath) {
        if let Some(container) = self.shared.entries.get(path).and_then(|entry| entry.evict()) {
            self.shared.retire(&container, EndReason::Replaced);
        }
    }

    /// The state now.
    #[must_use]
    pub fn status(&self) -> HandlerStatus {
        let shared = &self.shared;
        let now = Instant::now();
        let mut containers = shared.containers();
        let mut by_state: BTreeMap<&'static str, usize> =
            [Phase::Running, Phase::Freezing, Phase::Frozen, Phase::Thawing, Phase::Retired].map(|p| (p.as_str(), 0)).into();
        for container in &containers {
            *by_state.entry(container.gate.phase().as_str()).or_default() += 1;
        }
        containers.sort_by_key(|c| c.idle_for(now));
        HandlerStatus {
            pool: shared.pool.status(&shared.config, now),
            containers_by_state: by_state,
            waiting_requests: shared.waiting_requests.load(Relaxed),
            waiting_claims: shared.pool.waiting(),
            slots_free: shared.slots.free(),
            slots_dirty: shared.removing.load(Relaxed),
            memory_bytes: shared.memory_bytes.load(Relaxed),
            memory_limit_bytes: shared.memory_limit,
            counts: shared.counters.read(),
            containers: containers.iter().take(status::CONTAINERS_LISTED_MAX).map(|c| container_status(c, now)).collect(),
        }
    }

    /// Stops. With `keep_containers` the claimed ones live on for the next process; otherwise all are destroyed.
    pub async fn shutdown(&self, keep_containers: bool) {
        let shared = &self.shared;
        shared.draining.store(true, Relaxed);
        for pooled in shared.pool.close() {
            shared.discard(pooled.parts);
        }
        for container in shared.containers() {
            if !keep_containers || container.gate.phase() == Phase::Retired {
                shared.end(&container, EndReason::Shutdown, None);
            }
        }
        shared.stop.cancel();
        shared.tasks.close();
        let finished = timeout(SHUTDOWN_PATIENCE, async {
            // What is under way may leave slots behind that are to be cleaned as well.
            loop {
                shared.tasks.wait().await;
                shared.clean_up(Instant::now()).await;
                if shared.tasks.is_empty() {
                    break;
                }
            }
        });
        if finished.await.is_err() || shared.removing.load(Relaxed) > 0 {
            let left = shared.removing.load(Relaxed);
            tracing::warn!(slots = left, "some containers could not be taken away; the next start will");
        }
        for container in shared.containers() {
            container.owner.close();
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // Whoever forgot to shut down leaves containers for the next process, but no tasks.
        self.shared.stop.cancel();
    }
}

/// As [`Deps`], with the module cache as the handler sees it.
struct Parts {
    sandbox: Arc<dyn Sandbox>,
    modules: Arc<dyn ModuleAttach>,
    functions: Arc<dyn FunctionStore>,
    artifacts: Arc<dyn ArtifactStore>,
    keyring: Arc<dyn Keyring>,
    logs: Arc<LogHub>,
    data_dir: PathBuf,
    runtime_dir: PathBuf,
}

/// Only this process looks into it. Absolute, because the container engine and the kernel's mount table are.
fn prepare_slots_dir(data_dir: &Path) -> Result<PathBuf, StartError> {
    let dir = data_dir.join("slots");
    let fail = |source| StartError::Directory { path: dir.clone(), source };
    fs::create_dir_all(&dir).map_err(fail)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(fail)?;
    dir.canonicalize().map_err(fail)
}

fn container_status(container: &LiveContainer, now: Instant) -> ContainerStatus {
    let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut versions: Vec<String> = container.versions.lock().loaded().map(|l| format!("{}@{}", l.function, l.version)).collect();
    versions.sort();
    ContainerStatus {
        tenant: container.path().tenant.to_string(),
        container: container.path().container.to_string(),
        slot: container.slot.number,
        sandbox_id: container.sandbox_id.0.clone(),
        node: container.shape.node.as_str(),
        state: container.gate.phase().as_str(),
        requests: container.gate.requests(),
        requests_total: container.leases.load(Relaxed),
        versions,
        idle_ms: milliseconds(container.idle_for(now)),
        age_ms: milliseconds(now.saturating_duration_since(container.claimed_at)),
        memory_bytes: container.memory_bytes.load(Relaxed),
        memory_mb: container.shape.memory_mb,
        log_lines_dropped: container.owner.lines_dropped(),
    }
}
