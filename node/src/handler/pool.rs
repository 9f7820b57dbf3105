//! The pool: containers that run the runtime and belong to nobody. A container leaves it once, for one tenant, and never comes back.
//!
//! Refilling is concurrent but paced: creating a container costs as much CPU as thousands of requests, so while requests run only one
//! is made at a time, with a pause as long as the making took, and none is begun while a request that has just claimed one is still
//! starting, unless the pool runs low. The target follows demand: it grows while claims find the pool
//! empty and shrinks again afterwards. A runtime is ready as soon as it can be; once the pool is full each is told to prepare itself, which
//! takes memory (some 15 MB until its first tenant has been idle for a while) and makes loads quicker. Part of the pool may have the modules loaded that are most in demand here; such a container goes
//! only to a function that depends on all of them, so that nobody meets code that it did not ask for.
//!
//! A container that has ended by its own fault is replaced behind everybody else: for up to five seconds it waits for one that can be
//! spared; then it is like the others.

use super::{AcquireError, Config, Handler, control, control::Control, slot::Slot};
use hearth_model::{
    BuildKey, ContainerPath, ResolvedModule, function::NodeVersion, limits::MEMORY_MB_DEFAULT, protocol::ToRuntime,
};
use hearth_sandbox::{Cpus, Limits, Purpose, Running, SandboxError, SandboxSpec};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet};

/// Directory of a pre-loaded container's links; no function can have this name.
const PRELOAD_DIR: &str = "f/.preload";
/// Waits after a failed creation: doubled each time up to the second.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How often demand is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOKS_PER_S: usize = 4;
/// How long a pool that is over its target keeps what is too much, in case demand comes again.
const SURPLUS_KEPT: Duration = Duration::from_secs(30);
/// How long a refill waits after a claim, so that the request that claimed has the machine for itself while its function loads.
const AFTER_CLAIM: Duration = Duration::from_millis(40);
/// The same while functions load, which modules can make long.
const WHILE_LOADING_MAX: Duration = Duration::from_millis(250);
/// How long a container that has ended by its own fault waits for one that can be spared.
const SPARE_WAIT: Duration = Duration::from_secs(5);
/// Requests per look, beyond those that claimed, from which this node counts as busy.
const BUSY_FROM: u64 = 5;
/// A container with less memory gives back what preparing has taken, before its function is loaded.
const PREPARED_FROM_MB: u64 = 128;
/// How long a runtime has for getting prepared before the next container's is told; one takes 10 to 15 ms.
const PREPARING: Duration = Duration::from_millis(25);
/// Weight of a waiting container against those with a tenant (1024).
const WAITING_CPU_SHARES: u32 = 128;
/// The same of one with a tenant.
pub(super) const CLAIMED_CPU_SHARES: u32 = 1_024;
/// How long Node.js may take to start again in place; normally it takes a tenth of a second.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// Node.js takes half of the memory that it finds when it starts for its heap, but not less than this.
const HEAP_MB_MIN: u64 = 256;

/// A container that waits.
pub(super) struct Waiting {
    pub running: Running,
    pub slot: Slot,
    pub control: Control,
    pub node: NodeVersion,
    /// Builds that are loaded in it already.
    pub preloaded: BTreeSet<BuildKey>,
    /// What its container had when Node.js started in it.
    pub memory_mb: u64,
    /// When its runtime was told to prepare itself.
    pub prepared: Option<Instant>,
}

impl Waiting {
    fn is_prepared(&self) -> bool {
        readiness(self.prepared, Instant::now()) == 2
    }
}

/// How soon a container would begin to load: one that is just being prepared comes last.
fn readiness(prepared: Option<Instant>, now: Instant) -> u8 {
    match prepared {
        Some(since) if now.saturating_duration_since(since) >= PREPARING => 2,
        None => 1,
        Some(_) => 0,
    }
}

/// Whether one of `plain` containers, which fit everybody, can be spared, where so many `others` make up the pool with them and so many
/// claims wait: others keep half of them.
fn can_spare(plain: usize, others: usize, target: usize, hurried: usize) -> bool {
    hurried == 0 && plain > target.saturating_sub(others) / 2
}

/// What was claimed lately.
struct Demand {
    /// Claims of each look in the last second.
    recent: [usize; LOOKS_PER_S],
    /// Requests that the containers of the last look had served.
    served: u64,
    /// Since when the pool has had no more than its target to keep.
    calm_since: Instant,
}

pub(super) struct Pool {
    waiting: Mutex<Vec<Waiting>>,
    creating: AtomicUsize,
    target: AtomicUsize,
    changed: Notify,
    /// Told to all claims that wait when a container has come.
    arrived: Notify,
    /// Claims since the last look.
    claimed: AtomicUsize,
    last_claim: Mutex<Option<Instant>>,
    /// Claims that found none and wait for the next.
    hurried: AtomicUsize,
    /// Whether requests came between the last two looks.
    busy: AtomicBool,
    demand: Mutex<Demand>,
    /// Creations on demand and by refill together.
    permits: tokio::sync::Semaphore,
}

impl Pool {
    pub fn new(config: &Config) -> Self {
        Self {
            waiting: Mutex::default(),
            creating: AtomicUsize::new(0),
            target: AtomicUsize::new(config.pool_size),
            changed: Notify::new(),
            arrived: Notify::new(),
            claimed: AtomicUsize::new(0),
            last_claim: Mutex::new(None),
            hurried: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            demand: Mutex::new(Demand { recent: [0; LOOKS_PER_S], served: 0, calm_since: Instant::now() }),
            permits: tokio::sync::Semaphore::new(config.refill_concurrency.max(1) * 2),
        }
    }

    /// Takes the container that saves most: one whose pre-loaded modules are all among `wanted`, the more the better; among equals one
    /// that is prepared.
    pub fn take(&self, node: NodeVersion, wanted: &BTreeSet<BuildKey>) -> Option<Waiting> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        let fitting = waiting.iter().enumerate().filter(|(_, w)| w.node == node && w.preloaded.is_subset(wanted));
        let (at, _) = fitting.max_by_key(|(_, w)| (w.preloaded.len(), readiness(w.prepared, now)))?;
        let taken = waiting.swap_remove(at);
        drop(waiting);
        self.claimed.fetch_add(1, Relaxed);
        *self.last_claim.lock() = Some(Instant::now());
        self.changed.notify_one();
        Some(taken)
    }

    /// Takes one that fits everybody, of those that others would take last, where they keep half of what there should be and none of
    /// them waits. It counts as no demand.
    fn take_spare(&self) -> Option<Waiting> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        let plain = || waiting.iter().enumerate().filter(|(_, w)| w.preloaded.is_empty() && w.node == NodeVersion::default());
        let count = plain().count();
        if !can_spare(count, waiting.len() - count, self.target(), self.hurried.load(Relaxed)) {
            return None;
        }
        let (at, _) = plain().min_by_key(|(_, w)| readiness(w.prepared, now))?;
        let taken = waiting.swap_remove(at);
        drop(waiting);
        self.changed.notify_one();
        Some(taken)
    }

    /// From when on the next container may be made, as far as claims have a say. `loading` says whether functions are being loaded.
    fn after_claims(&self, missing: usize, loading: bool) -> Option<Instant> {
        let low = missing * 2 >= self.target().max(1);
        let pause = if loading { WHILE_LOADING_MAX } else { AFTER_CLAIM };
        if low { None } else { self.last_claim.lock().map(|at| at + pause) }
    }

    pub fn level(&self) -> usize {
        self.waiting.lock().len()
    }

    pub fn preloaded(&self) -> usize {
        self.waiting.lock().iter().filter(|w| !w.preloaded.is_empty()).count()
    }

    pub fn prepared(&self) -> usize {
        self.waiting.lock().iter().filter(|w| w.is_prepared()).count()
    }

    pub fn creating(&self) -> usize {
        self.creating.load(Relaxed)
    }

    pub fn target(&self) -> usize {
        self.target.load(Relaxed)
    }

    /// Lets one more container get prepared; returns whether there was one.
    fn prepare_one(&self) -> bool {
        let mut waiting = self.waiting.lock();
        let Some(next) = waiting.iter_mut().find(|w| w.prepared.is_none()) else { return false };
        next.control.tell(&ToRuntime::Prepare);
        next.prepared = Some(Instant::now());
        true
    }

    /// Destroys what waits.
    pub async fn drain(&self, handler: &Arc<Handler>) {
        loop {
            let Some(waiting) = self.waiting.lock().pop() else { return };
            discard(handler, waiting.running, waiting.slot).await;
        }
    }
}

/// Removes a container that has no tenant, with its mounts and its files.
pub(super) async fn discard(handler: &Arc<Handler>, running: Running, slot: Slot) {
    if let Err(error) = handler.deps.sandbox.destroy(&running.id).await {
        tracing::warn!(slot = slot.number, %error, "a container could not be removed; its slot stays in use until it is");
        let handler = Arc::clone(handler);
        handler.clone().tasks.spawn(async move {
            let mut wait = RETRY_AFTER.0;
            while handler.deps.sandbox.destroy(&running.id).await.is_err() {
                tokio::select! {
                    // The next process finds it by its label, and removes it.
                    () = handler.leaving.cancelled() => return std::mem::forget(slot),
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_AFTER.1),
                }
            }
            free(&handler, slot).await;
        });
        return;
    }
    free(handler, slot).await;
}

/// Gives a slot back whose container is gone for certain.
async fn free(handler: &Handler, slot: Slot) {
    handler.deps.modules.detach_slot(slot.number, &slot.tree()).await;
    if let Err(error) = slot.clear() {
        tracing::warn!(slot = slot.number, %error, "a slot's files could not be removed");
    }
}

/// For a container that has ended by its own fault lately: waits until one can be spared. None when its kind is not kept, and when it
/// owes nothing any more or has waited long enough: then it is like everybody else.
pub(super) async fn take_spare(
    handler: &Handler,
    path: &ContainerPath,
    node: NodeVersion,
) -> Result<Option<Waiting>, AcquireError> {
    let until = Instant::now() + SPARE_WAIT.min(handler.config.claim_timeout / 2);
    let is_kept = || node == NodeVersion::default() && handler.pool.target() > 0;
    while is_kept() && handler.restarts.owes(path, Instant::now()) && Instant::now() < until {
        if handler.leaving.is_cancelled() {
            return Err(AcquireError::Draining);
        }
        let arrived = handler.pool.arrived.notified();
        tokio::pin!(arrived);
        // From here on no arrival is missed.
        arrived.as_mut().enable();
        if let Some(taken) = handler.pool.take_spare() {
            return Ok(Some(taken));
        }
        let _ = tokio::time::timeout(LOOK_EVERY, arrived).await;
    }
    Ok(None)
}

/// For a claim that found the pool empty: makes one more container, and gives the claim the one that is ready first, be it another
/// that was begun before.
pub(super) async fn take_when_ready(
    handler: &Arc<Handler>,
    node: NodeVersion,
    wanted: &BTreeSet<BuildKey>,
) -> Result<Waiting, AcquireError> {
    let pool = &handler.pool;
    // What the pool has is of no use to the others.
    let _hurried = (node == NodeVersion::default()).then(|| Hurried::new(&pool.hurried));
    while !handler.leaving.is_cancelled() {
        // In a task of its own, since it goes on when another container comes first.
        let mut making = handler.tasks.spawn_on(make_for_claim(Arc::clone(handler), node), &handler.runtime);
        loop {
            let arrived = pool.arrived.notified();
            tokio::pin!(arrived);
            // From here on no arrival is missed.
            arrived.as_mut().enable();
            if let Some(taken) = pool.take(node, wanted) {
                return Ok(taken);
            }
            tokio::select! {
                made = &mut making => match made {
                    Ok(Ok(())) => match pool.take(node, wanted) {
                        Some(taken) => return Ok(taken),
                        // Another claim was quicker; its own container may come to nothing, so this one makes another.
                        None => break,
                    },
                    Ok(Err(error)) => return Err(error),
                    Err(_) => return Err(AcquireError::NoCapacity { detail: "making a container failed".into() }),
                },
                () = arrived => {}
            }
        }
    }
    Err(AcquireError::Draining)
}

/// Counts a claim that waits for a container for as long as it lives.
struct Hurried<'a>(&'a AtomicUsize);

impl<'a> Hurried<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Hurried<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn make_for_claim(handler: Arc<Handler>, node: NodeVersion) -> Result<(), AcquireError> {
    handler.pool.creating.fetch_add(1, Relaxed);
    let made = create(&handler, node, None, MEMORY_MB_DEFAULT, Cpus::Any).await;
    handler.pool.creating.fetch_sub(1, Relaxed);
    add(&handler, made?).await;
    Ok(())
}

/// Puts a container into the pool, or away when this node is leaving and nobody would come for it.
async fn add(handler: &Arc<Handler>, waiting: Waiting) {
    if handler.leaving.is_cancelled() {
        return discard(handler, waiting.running, waiting.slot).await;
    }
    handler.pool.waiting.lock().push(waiting);
    handler.pool.arrived.notify_waiters();
}

/// Creates one container and waits until its runtime is ready; it is kept to these `cpus`.
pub(super) async fn create(
    handler: &Arc<Handler>,
    node: NodeVersion,
    oci_runtime: Option<String>,
    memory_mb: u64,
    cpus: Cpus,
) -> Result<Waiting, AcquireError> {
    let _permit = handler.pool.permits.acquire().await.map_err(|_| AcquireError::Draining)?;
    let capacity = |detail: String| AcquireError::NoCapacity { detail };
    let slot = match handler.slots.take() {
        Ok(Some(slot)) => slot,
        Ok(None) => return Err(capacity(format!("all {} slots are in use", handler.config.containers_max))),
        Err(error) => return Err(capacity(format!("preparing a slot: {error}"))),
    };
    let spec = SandboxSpec {
        slot: slot.number,
        purpose: Purpose::Runtime,
        node,
        oci_runtime,
        slot_dir: slot.dir.clone(),
        runtime_dir: handler.deps.runtime_dir.clone(),
        limits: limits(&handler.config, memory_mb, WAITING_CPU_SHARES, cpus),
        args: Vec::new(),
    };
    let running = handler.deps.sandbox.create(&spec).await.map_err(|e| capacity(e.to_string()))?;
    match control::open_when_ready(&slot.run(), control::new_secret(), handler.config.start_timeout).await {
        Ok(control) => Ok(Waiting { running, slot, control, node, preloaded: BTreeSet::new(), memory_mb, prepared: None }),
        Err(error) => {
            let output = handler.deps.sandbox.output(&running.id).await.unwrap_or_default();
            tracing::error!(slot = slot.number, error, output, "a container's runtime did not come up");
            discard(handler, running, slot).await;
            Err(capacity(error))
        }
    }
}

/// Whether Node.js in a container of the pool must start again to make use of so much memory.
pub(super) fn outgrows_pool(memory_mb: u64) -> bool {
    memory_mb > MEMORY_MB_DEFAULT.max(2 * HEAP_MB_MIN)
}

/// Gives a container its tenant's share of the machine, and Node.js in it a heap that fits its memory: by starting Node.js again in
/// place, or where that fails, by another container.
pub(super) async fn apply_limits(
    handler: &Arc<Handler>,
    waiting: Waiting,
    memory_mb: u64,
    cpus: Cpus,
) -> Result<Waiting, AcquireError> {
    if memory_mb < PREPARED_FROM_MB && waiting.prepared.is_some() {
        // Before the load, which comes over the same connection.
        waiting.control.tell(&ToRuntime::Trim);
    }
    let waiting = resize(handler, waiting, memory_mb, cpus).await?;
    if memory_mb <= waiting.memory_mb || !outgrows_pool(memory_mb) {
        return Ok(waiting);
    }
    let Waiting { running, slot, control, node, .. } = waiting;
    match control.restart(&slot.run(), RESTART_TIMEOUT).await {
        Ok(control) => Ok(Waiting { running, slot, control, node, preloaded: BTreeSet::new(), memory_mb, prepared: None }),
        Err(error) => {
            tracing::warn!(slot = slot.number, error, "a container could not be given a larger heap; making another");
            discard(handler, running, slot).await;
            resize(handler, create(handler, node, None, memory_mb, cpus).await?, memory_mb, cpus).await
        }
    }
}

async fn resize(handler: &Arc<Handler>, waiting: Waiting, memory_mb: u64, cpus: Cpus) -> Result<Waiting, AcquireError> {
    let limits = limits(&handler.config, memory_mb, CLAIMED_CPU_SHARES, cpus);
    let mut resized = handler.deps.sandbox.resize(&waiting.running.id, &limits).await;
    if let Err(error) = &resized
        && cpus == Cpus::Foreground
        && !matches!(error, SandboxError::NotFound { .. })
    {
        // That is for speed alone.
        tracing::warn!(%error, "a container could not be kept to the foreground CPUs");
        resized = handler.deps.sandbox.resize(&waiting.running.id, &Limits { cpus: Cpus::Any, ..limits }).await;
    }
    if let Err(error) = resized {
        discard(handler, waiting.running, waiting.slot).await;
        return Err(AcquireError::NoCapacity { detail: format!("setting the container's limits: {error}") });
    }
    Ok(waiting)
}

pub(super) fn limits(config: &Config, memory_mb: u64, cpu_shares: u32, cpus: Cpus) -> Limits {
    Limits {
        memory_mb,
        cpu_millis: config.cpu_millis,
        cpu_shares,
        cpus,
        pids: config.pids_max,
        nofile: 4_096,
        tmp_mb: config.tmp_size.as_u64() / (1024 * 1024),
    }
}

/// Keeps the pool at its target until this node leaves.
pub(super) async fn keep_full(handler: Arc<Handler>) {
    let pool = &handler.pool;
    let mut making: JoinSet<(Duration, bool)> = JoinSet::new();
    let mut failures = 0_u32;
    let mut not_before = Instant::now();
    let mut looked = Instant::now();
    loop {
        if looked.elapsed() >= LOOK_EVERY {
            follow_demand(&handler);
            looked = Instant::now();
        }
        let missing = pool.target().saturating_sub(pool.level() + making.len());
        let loading = !handler.loads.is_empty();
        let from = pool.after_claims(missing, loading).map_or(not_before, |at| at.max(not_before));
        if missing > 0 && making.len() < concurrency(&handler) && Instant::now() >= from {
            let handler = Arc::clone(&handler);
            let preload = wanted_preload(&handler);
            // A start at full speed is for who waits, or where there is nobody to be slowed.
            let cpus = if busy(&handler) && pool.level() > 0 { Cpus::Background } else { Cpus::Any };
            pool.creating.fetch_add(1, Relaxed);
            making.spawn(async move {
                let began = Instant::now();
                let made = add_one(&handler, preload, cpus).await;
                handler.pool.creating.fetch_sub(1, Relaxed);
                (began.elapsed(), made)
            });
            continue;
        }
        let mut pause =
            if missing > 0 { from.saturating_duration_since(Instant::now()).max(Duration::from_millis(2)) } else { LOOK_EVERY };
        if loading {
            pause = pause.min(AFTER_CLAIM);
        } else if missing == 0 && making.is_empty() && pool.prepare_one() && !busy(&handler) {
            pause = PREPARING;
        }
        tokio::select! {
            () = handler.leaving.cancelled() => break,
            () = pool.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
            Some(made) = making.join_next() => {
                let (took, made) = made.unwrap_or((Duration::ZERO, false));
                if made {
                    failures = 0;
                    // While requests run, as much time is left to them as the making took.
                    if busy(&handler) {
                        not_before = Instant::now() + took;
                    }
                } else {
                    failures = (failures + 1).min(10);
                    let wait = (RETRY_AFTER.0 * 2_u32.pow(failures - 1)).min(RETRY_AFTER.1);
                    not_before = Instant::now() + wait.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                }
            }
        }
    }
    while making.join_next().await.is_some() {}
    pool.drain(&handler).await;
}

/// Whether requests run on this node now, or came at the last look.
fn busy(handler: &Handler) -> bool {
    handler.pool.busy.load(Relaxed) || handler.containers.all().iter().any(|c| c.in_flight() > 0)
}

fn concurrency(handler: &Handler) -> usize {
    if busy(handler) { 1 } else { handler.config.refill_concurrency.max(1) }
}

/// The target is what one second may claim: it rises at once with the claims and falls by one a look. What is too much when demand has
/// been low for long is destroyed, one a look.
fn follow_demand(handler: &Arc<Handler>) {
    let (pool, config) = (&handler.pool, &handler.config);
    let mut demand = pool.demand.lock();
    demand.recent.rotate_left(1);
    let claimed = pool.claimed.swap(0, Relaxed);
    demand.recent[LOOKS_PER_S - 1] = claimed;
    // What left meanwhile took its count along; then the next look sees more.
    let served = handler.containers.all().iter().map(|c| c.served()).sum::<u64>();
    let came = served.saturating_sub(std::mem::replace(&mut demand.served, served));
    pool.busy.store(came >= claimed as u64 + BUSY_FROM, Relaxed);
    let target = next_target(pool.target(), demand.recent.iter().sum(), config.pool_size, config.pool_max);
    pool.target.store(target, Relaxed);
    if target > config.pool_size || pool.level() <= target {
        demand.calm_since = Instant::now();
    } else if demand.calm_since.elapsed() >= SURPLUS_KEPT {
        let surplus = pool.waiting.lock().pop();
        if let Some(Waiting { running, slot, .. }) = surplus {
            let handler = Arc::clone(handler);
            handler.clone().tasks.spawn(async move { discard(&handler, running, slot).await });
        }
    }
}

fn next_target(target: usize, claims_per_s: usize, size: usize, max: usize) -> usize {
    let wanted = claims_per_s.clamp(size, max.max(size));
    if wanted > target { wanted } else { target.saturating_sub(1).max(wanted) }
}

/// A popular set of modules that no waiting container has yet, while plain ones are not short.
fn wanted_preload(handler: &Arc<Handler>) -> Option<Vec<ResolvedModule>> {
    let pool = &handler.pool;
    let room = handler.config.preloaded_max.min(pool.target() / 2);
    let plain = pool.level() - pool.preloaded().min(pool.level());
    if room == 0 || plain == 0 {
        return None;
    }
    // The second half is what is not popular enough to be made, and too popular to be removed: sets that are wanted alike take no turns.
    let popular = handler.deps.modules.popular(2 * room);
    let keys = |set: &[ResolvedModule]| set.iter().map(|m| m.build.clone()).collect::<BTreeSet<_>>();
    let mut waiting = pool.waiting.lock();
    let missing = popular.iter().take(room).find(|set| !waiting.iter().any(|w| w.preloaded == keys(set)))?.clone();
    if waiting.iter().filter(|w| !w.preloaded.is_empty()).count() >= room {
        // One of those has what was popular before.
        let stale = waiting.iter().position(|w| !w.preloaded.is_empty() && !popular.iter().any(|set| w.preloaded == keys(set)))?;
        let Waiting { running, slot, .. } = waiting.swap_remove(stale);
        let handler = Arc::clone(handler);
        handler.clone().tasks.spawn(async move { discard(&handler, running, slot).await });
    }
    Some(missing)
}

async fn add_one(handler: &Arc<Handler>, preload: Option<Vec<ResolvedModule>>, cpus: Cpus) -> bool {
    let mut waiting = match create(handler, NodeVersion::default(), None, MEMORY_MB_DEFAULT, cpus).await {
        Ok(waiting) => waiting,
        Err(error) => {
            handler.counters.refill_failures.fetch_add(1, Relaxed);
            tracing::warn!(%error, "the pool could not be refilled; trying again later");
            return false;
        }
    };
    if let Some(set) = preload
        && let Err(error) = preload_into(handler, &mut waiting, &set).await
    {
        tracing::warn!(%error, "modules could not be loaded ahead");
        handler.counters.refill_failures.fetch_add(1, Relaxed);
        discard(handler, waiting.running, waiting.slot).await;
        return false;
    }
    handler.counters.refills.fetch_add(1, Relaxed);
    add(handler, waiting).await;
    true
}

async fn preload_into(handler: &Handler, waiting: &mut Waiting, set: &[ResolvedModule]) -> Result<(), String> {
    let tree = waiting.slot.tree();
    let attached =
        handler.deps.modules.attach(waiting.slot.number, &tree, Path::new(PRELOAD_DIR), set).await.map_err(|e| e.to_string())?;
    let failed = waiting.control.preload(handler.config.load_timeout, attached.packages).await.map_err(|e| e.to_string())?;
    if !failed.is_empty() {
        tracing::debug!(?failed, "modules that do not load ahead");
    }
    waiting.preloaded = set.iter().map(|m| m.build.clone()).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(pool_size: usize, at: Instant) -> Pool {
        let pool = Pool::new(&Config { pool_size, ..Config::default() });
        *pool.last_claim.lock() = Some(at);
        pool
    }

    #[test]
    fn a_container_that_is_being_prepared_is_taken_last() {
        let now = Instant::now();
        let ranks = [Some(now), None, Some(now - PREPARING)].map(|prepared| readiness(prepared, now));
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn what_can_be_spared_is_above_half_of_what_fits_everybody() {
        for (plain, others, target, spare) in [
            (4, 0, 4, true),
            (3, 0, 4, true),
            (2, 0, 4, false),
            (2, 2, 4, true),
            (1, 2, 4, false),
            (2, 0, 3, true),
            (1, 0, 1, true),
        ] {
            assert_eq!(can_spare(plain, others, target, 0), spare, "{plain} and {others} of {target}");
            assert!(!can_spare(plain, others, target, 1), "somebody waits");
        }
        assert!(!can_spare(0, 0, 0, 0) && !can_spare(0, 4, 4, 0));
    }

    #[test]
    fn a_refill_leaves_the_machine_to_who_has_just_claimed_unless_the_pool_runs_low() {
        let now = Instant::now();
        assert_eq!(claimed(8, now).after_claims(1, false), Some(now + AFTER_CLAIM));
        assert_eq!(claimed(8, now).after_claims(1, true), Some(now + WHILE_LOADING_MAX));
        assert_eq!(claimed(8, now).after_claims(3, false), Some(now + AFTER_CLAIM));
        assert_eq!(claimed(8, now).after_claims(4, true), None, "half of it is gone");
        assert_eq!(claimed(1, now).after_claims(1, true), None, "the only one is gone");
        assert_eq!(Pool::new(&Config::default()).after_claims(1, true), None, "nobody has claimed yet");
    }

    #[test]
    fn the_target_rises_at_once_and_falls_slowly_within_its_bounds() {
        assert_eq!(next_target(4, 1, 4, 16), 4, "one claim is no burst");
        assert_eq!(next_target(4, 9, 4, 16), 9);
        assert_eq!(next_target(9, 1_000, 4, 16), 16);
        assert_eq!(next_target(16, 0, 4, 16), 15);
        assert_eq!(next_target(5, 0, 4, 16), 4);
        assert_eq!(next_target(4, 0, 4, 16), 4);
        assert_eq!(next_target(8, 20, 8, 2), 8, "a maximum below the size means the size");
    }
}
