//! What the parts of the handler share, and how containers are made and taken away again.

use super::{
    attach::ModuleAttach,
    claim::Entries,
    config::Config,
    container::{LiveContainer, Parts},
    control::{Answer, Control},
    error::AcquireError,
    files::Bundles,
    inbound::Services,
    plan::Kind,
    pool::{Pool, Pooled},
    routes::Routes,
    slot::{Slot, Slots, function_dir, make_dir},
    socket::SocketDir,
    status::{Counters, add},
};
use hearth_model::{ResolvedModule, function::NodeVersion, protocol::ToRuntime};
use hearth_sandbox::{Limits, Purpose, Running, Sandbox, SandboxId, SandboxSpec};
use hearth_store::Keyring;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Stands for a function while modules are loaded ahead; no function can be named so.
const PRELOAD_DIR: (&str, u64) = (".preload", 0);
/// Taking a container away is work for the engine too, and requests do not wait for it.
const REMOVALS_AT_ONCE: usize = 4;
/// What is kept of the output of a runtime that did not come up.
const OUTPUT_KEPT: usize = 2_000;

/// Everything of one handler.
pub(super) struct Shared {
    pub config: Config,
    pub sandbox: Arc<dyn Sandbox>,
    pub modules: Arc<dyn ModuleAttach>,
    pub keyring: Arc<dyn Keyring>,
    pub bundles: Bundles,
    pub services: Arc<Services>,
    pub counters: Arc<Counters>,
    pub runtime_dir: PathBuf,
    pub slots: Slots,
    pub pool: Pool,
    pub routes: Routes,
    pub entries: Entries,
    /// Every claimed container that is not altogether gone.
    pub live: Mutex<HashMap<u64, Arc<LiveContainer>>>,
    /// Slots whose container or files could not be taken away yet.
    pub dirty: Mutex<Vec<Doomed>>,
    /// Slots whose container or files are being taken away, or wait for that.
    pub removing: AtomicUsize,
    /// Containers that are taken away at once.
    removals: Semaphore,
    pub waiting_requests: AtomicUsize,
    /// Memory of all claimed containers as last measured.
    pub memory_bytes: AtomicU64,
    pub memory_limit: u64,
    pub draining: AtomicBool,
    pub freezing: AtomicBool,
    /// Zero of the containers' clocks.
    pub epoch: Instant,
    /// Background work goes here, whichever runtime a request is on.
    runtime: tokio::runtime::Handle,
    pub tasks: TaskTracker,
    /// Ends the tasks that go on for ever.
    pub stop: CancellationToken,
}

/// A slot that is to become free.
#[derive(Debug)]
pub(super) struct Doomed {
    pub sandbox_id: Option<SandboxId>,
    pub slot: Slot,
    pub tries: u32,
    pub not_before: Instant,
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        config: Config,
        sandbox: Arc<dyn Sandbox>,
        modules: Arc<dyn ModuleAttach>,
        keyring: Arc<dyn Keyring>,
        bundles: Bundles,
        services: Arc<Services>,
        slots: Slots,
        runtime_dir: PathBuf,
    ) -> Arc<Self> {
        let now = Instant::now();
        let memory_limit = config.memory_limit.map_or_else(default_memory_limit, |limit| limit.as_u64());
        Arc::new(Self {
            pool: Pool::new(&config, now),
            counters: Arc::clone(&services.counters),
            config,
            sandbox,
            modules,
            keyring,
            bundles,
            services,
            runtime_dir,
            slots,
            routes: Routes::default(),
            entries: Entries::default(),
            live: Mutex::default(),
            dirty: Mutex::default(),
            removing: AtomicUsize::new(0),
            removals: Semaphore::new(REMOVALS_AT_ONCE),
            waiting_requests: AtomicUsize::new(0),
            memory_bytes: AtomicU64::new(0),
            memory_limit,
            draining: AtomicBool::new(false),
            freezing: AtomicBool::new(false),
            epoch: now,
            runtime: tokio::runtime::Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Runs something in the background; a shutdown waits for it.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Limits of a container: while it starts and waits it weighs little.
    pub(super) fn limits(&self, memory_mb: u64, serves: bool) -> Limits {
        let config = &self.config;
        Limits {
            memory_mb,
            cpu_millis: config.cpu_millis,
            cpu_shares: if serves { config.cpu_shares } else { config.pool_cpu_shares },
            pids: config.pids,
            nofile: config.nofile,
            tmp_mb: config.tmp_mb,
        }
    }

    /// Makes a container and puts it into the pool.
    pub(super) async fn fill(self: Arc<Self>, id: u64, kind: Kind, slot: Slot) {
        let parts = match self.make(kind.node(), &slot).await {
            Ok(parts) => parts,
            Err((sandbox_id, error)) => {
                add(&self.counters.create_failures);
                tracing::warn!(slot = slot.number, error, "a container could not be made");
                self.pool.not_made(id, error, Instant::now(), rand::random());
                return self.doom(sandbox_id, slot);
            }
        };
        add(&self.counters.created);
        self.pool.made(id, Instant::now());
        if let Kind::Preloaded(set) = &kind
            && let Err(error) = self.preload(&parts, set).await
        {
            tracing::info!(error, "a set of modules could not be loaded ahead");
            self.pool.bad_set(id, set.clone(), Instant::now());
            return self.discard(parts);
        }
        if let Some(back) = self.pool.put(id, Box::new(Pooled { parts, kind })) {
            self.discard(back.parts);
        }
    }

    async fn make(&self, node: NodeVersion, slot: &Slot) -> Result<Parts, (Option<SandboxId>, String)> {
        let spec = SandboxSpec {
            slot: slot.number,
            purpose: Purpose::Runtime,
            node,
            slot_dir: slot.dir.clone(),
            runtime_dir: self.runtime_dir.clone(),
            limits: self.limits(self.config.pool_memory_mb, false),
            args: Vec::new(),
        };
        let fresh = slot.clone();
        blocking(move || fresh.prepare()).await.map_err(|e| (None, format!("preparing {}: {e}", slot.dir.display())))?;
        // The sandbox keeps its own deadline: cutting it short here could leave half a container behind.
        let running = self.sandbox.create(&spec).await.map_err(|e| (None, e.to_string()))?;
        let secret = secret().map_err(|e| (Some(running.id.clone()), e))?;
        match self.reach(slot, secret.clone(), self.config.create_timeout).await {
            Ok((sockets, control, _)) => {
                let shape = super::container::Shape { memory_mb: self.config.pool_memory_mb, node };
                Ok(Parts { sandbox_id: running.id, slot: slot.clone(), secret, sockets, control, shape })
            }
            Err(error) => {
                let detail = self.last_words(&running).await;
                Err((Some(running.id), format!("the runtime did not come up: {error}{detail}")))
            }
        }
    }

    /// Opens the control connection of a container that runs.
    pub(super) async fn reach(
        &self,
        slot: &Slot,
        secret: String,
        patience: Duration,
    ) -> io::Result<(Arc<SocketDir>, Control, super::control::Greeting)> {
        let sockets = Arc::new(SocketDir::open(&slot.run())?);
        let (control, greeting) = Control::connect(Arc::clone(&sockets), secret, patience, self.stop.child_token()).await?;
        Ok((sockets, control, greeting))
    }

    async fn last_words(&self, running: &Running) -> String {
        let output = self.sandbox.output(&running.id).await.unwrap_or_default();
        let from = (output.len().saturating_sub(OUTPUT_KEPT)..=output.len()).find(|at| output.is_char_boundary(*at)).unwrap_or(0);
        match output[from..].trim() {
            "" => String::new(),
            words => format!("; its output: {words}"),
        }
    }

    async fn preload(&self, parts: &Parts, set: &[ResolvedModule]) -> Result<(), String> {
        let tree = parts.slot.tree();
        let dir = function_dir(PRELOAD_DIR.0, PRELOAD_DIR.1);
        make_dir(&tree.join(&dir)).map_err(|e| e.to_string())?;
        let attached = self.modules.attach(parts.slot.number, &tree, &dir, set).await;
        let packages = attached.map_err(|e| format!("{}: {}", e.module, e.detail))?;
        // The links have served; what stays are the mounts that the tenant's function will have as well.
        let at = tree.join(&dir);
        blocking(move || std::fs::remove_dir_all(at)).await.map_err(|e| e.to_string())?;
        let asked = parts.control.ask(self.config.load_timeout, |id| ToRuntime::Preload { id, modules: packages });
        match asked.await.map_err(|e| e.to_string())? {
            Answer::Preloaded { failed } if failed.is_empty() => Ok(()),
            Answer::Preloaded { failed } => Err(format!("{} did not load", failed.join(", ").chars().take(500).collect::<String>())),
            _ => Err("the runtime answered something else".into()),
        }
    }

    /// Gives up a container that nobody claimed.
    pub(super) fn discard(&self, parts: Parts) {
        add(&self.counters.pool_discarded);
        let Parts { sandbox_id, slot, .. } = parts;
        self.doom(Some(sandbox_id), slot);
    }

    /// Takes a container and its slot away, now or as soon as that works. The slot is free only then.
    pub(super) fn doom(&self, sandbox_id: Option<SandboxId>, slot: Slot) {
        self.removing.fetch_add(1, Relaxed);
        // As many as there are slots.
        self.dirty.lock().push(Doomed { sandbox_id, slot, tries: 0, not_before: Instant::now() });
        self.pool.wake.notify_one();
    }

    /// Takes away what is due. What does not go is tried again, later each time.
    pub(super) async fn clean_up(self: &Arc<Self>, now: Instant) {
        let due = {
            let mut dirty = self.dirty.lock();
            let (due, rest) = dirty.drain(..).partition::<Vec<_>, _>(|d| d.not_before <= now);
            *dirty = rest;
            due
        };
        for doomed in due {
            let shared = Arc::clone(self);
            self.spawn(async move { shared.take_away(doomed).await });
        }
    }

    async fn take_away(&self, mut doomed: Doomed) {
        let Ok(_turn) = self.removals.acquire().await else { return };
        let slot = doomed.slot.clone();
        match self.try_take_away(&doomed).await {
            Ok(()) => {
                self.slots.give_back(&slot);
                self.removing.fetch_sub(1, Relaxed);
                self.pool.wake.notify_one();
            }
            Err(error) => {
                doomed.tries = doomed.tries.saturating_add(1);
                if doomed.tries.is_power_of_two() {
                    tracing::warn!(slot = slot.number, tries = doomed.tries, error, "a slot cannot be cleaned yet");
                }
                let pause = Duration::from_secs(1 << doomed.tries.min(6));
                doomed.not_before = Instant::now() + pause;
                self.dirty.lock().push(doomed);
            }
        }
    }

    async fn try_take_away(&self, doomed: &Doomed) -> Result<(), String> {
        if let Some(id) = &doomed.sandbox_id {
            self.sandbox.destroy(id).await.map_err(|e| e.to_string())?;
        }
        self.modules.detach_slot(doomed.slot.number, &doomed.slot.tree()).await;
        let slot = doomed.slot.clone();
        blocking(move || slot.clean()).await.map_err(|e| e.to_string())
    }

    /// Containers that are claimed, in no order.
    pub(super) fn containers(&self) -> Vec<Arc<LiveContainer>> {
        self.live.lock().values().cloned().collect()
    }

    /// Whether containers together use more than they may.
    pub(super) fn memory_short(&self) -> bool {
        self.memory_bytes.load(Relaxed) > self.memory_limit
    }
}

/// Runs what touches the disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The node's own disk or memory failed.
pub(super) fn host(call: &'static str) -> impl Fn(io::Error) -> AcquireError {
    move |error| AcquireError::Host { call, detail: error.to_string() }
}

/// 32 random bytes in hexadecimal.
fn secret() -> Result<String, String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| format!("no random bytes: {e}"))?;
    Ok(hex::encode(bytes))
}

/// Seven tenths of the machine's memory.
fn default_memory_limit() -> u64 {
    let total = std::fs::read_to_string(Path::new("/proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    total.map_or(u64::MAX, |kib| kib * 1024 / 10 * 7)
}
