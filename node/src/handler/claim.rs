//! From a request to its container: one claim per container however many requests wait, one load per version. Work that many wait for
//! runs by itself, so that a request which goes away takes nothing from the others.

use super::{
    AcquireError,
    budget::Budget,
    container::{ColdTimings, Edition, EndReason, Lease, LiveContainer, Shape, VersionState},
    inbound::Owner,
    lifecycle::{Enter, Event, Phase},
    pool::{Pooled, Taken},
    routes::Route,
    shared::Shared,
    status::add,
};
use hearth_model::{ContainerPath, FunctionVersion};
use hearth_store::Servable;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};
use tokio::{sync::watch, time::Instant, time::timeout};

/// Steps from nothing to a lease. Normally there are three (claim, load, enter); more when containers end meanwhile.
const STEPS_MAX: usize = 16;
/// Functions and versions of one container.
pub(super) const VERSIONS_MAX: usize = 2_000;

/// The containers that somebody asked for lately.
#[derive(Default)]
pub(super) struct Entries(Mutex<HashMap<ContainerPath, Arc<Entry>>>);

/// One tenant's container, whichever Docker container it is at the moment.
pub(super) struct Entry {
    path: ContainerPath,
    waiting: AtomicU32,
    state: Mutex<EntryState>,
}

struct EntryState {
    current: Option<Arc<LiveContainer>>,
    /// A claim is under way; the channel closes at its end, with the error where there is one.
    claiming: Option<watch::Receiver<Option<AcquireError>>>,
    /// How many containers it may use up.
    claims: Budget,
    /// Grows with every eviction: what was claimed for an older state of the world is not kept.
    evictions: u64,
}

impl Entries {
    pub(super) fn get(&self, path: &ContainerPath) -> Option<Arc<Entry>> {
        self.0.lock().get(path).cloned()
    }

    pub(super) fn get_or_make(&self, path: ContainerPath, burst: u32, per_s: f64) -> Arc<Entry> {
        let mut entries = self.0.lock();
        let entry = entries.entry(path).or_insert_with_key(|path| {
            let claims = Budget::new(f64::from(burst), per_s, Instant::now());
            let state = EntryState { current: None, claiming: None, claims, evictions: 0 };
            Arc::new(Entry { path: path.clone(), waiting: AtomicU32::new(0), state: Mutex::new(state) })
        });
        Arc::clone(entry)
    }

    /// Forgets those without a container that nobody asks for, so that a tenant whom nobody calls costs nothing.
    pub(super) fn forget_idle(&self, now: Instant) {
        self.0.lock().retain(|_, entry| {
            let mut state = entry.state.lock();
            let idle = state.current.is_none() && state.claiming.is_none() && state.claims.is_full(now);
            // Whoever has just taken the entry holds it.
            !idle || Arc::strong_count(entry) > 1
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl Entry {
    /// Notes the container of an earlier process. False when there is one already.
    pub(super) fn adopt(&self, container: Arc<LiveContainer>) -> bool {
        let mut state = self.state.lock();
        let first = state.current.is_none();
        if first {
            state.current = Some(container);
        }
        first
    }

    /// This container is not the entry's any more.
    pub(super) fn leave(&self, container: &LiveContainer) {
        let mut state = self.state.lock();
        if state.current.as_ref().is_some_and(|c| c.id() == container.id()) {
            state.current = None;
        }
    }

    /// Nothing that was claimed before now is to be used again. Returns the container that is in use.
    pub(super) fn evict(&self) -> Option<Arc<LiveContainer>> {
        let mut state = self.state.lock();
        state.evictions += 1;
        state.current.take()
    }
}

/// A place among the requests that wait for a container.
struct Waiting<'a> {
    shared: &'a Shared,
    entry: Arc<Entry>,
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared, entry: Arc<Entry>) -> Result<Self, AcquireError> {
        let most = shared.config.wait_queue_max;
        let more = |n| (n < most).then_some(n + 1);
        if entry.waiting.fetch_update(Relaxed, Relaxed, more).is_err() {
            return Err(AcquireError::QueueFull { waiting: most });
        }
        shared.waiting_requests.fetch_add(1, Relaxed);
        Ok(Self { shared, entry })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.entry.waiting.fetch_sub(1, Relaxed);
        self.shared.waiting_requests.fetch_sub(1, Relaxed);
    }
}

/// What a request has to do next.
enum Step {
    /// Go.
    Enter(Lease),
    /// Wait for the container to be claimed.
    Claim(watch::Receiver<Option<AcquireError>>),
    /// Wait for a version to be loaded or forgotten in this container.
    Load(watch::Receiver<()>, Arc<LiveContainer>),
    /// Wait for the container to be frozen or thawed.
    Settle(Arc<LiveContainer>),
    /// Look again.
    Again,
}

/// When the container's record was made.
pub(super) fn container_edition(servable: &Servable) -> Edition {
    Edition { created_at: servable.container.created_at, generation: servable.container.generation }
}

impl Shared {
    pub(super) fn entry(&self, path: ContainerPath) -> Arc<Entry> {
        self.entries.get_or_make(path, self.config.claim_burst, 1.0 / self.config.claim_interval.as_secs_f64())
    }

    /// The way of a request that found no running container with its version.
    pub(super) async fn acquire(self: &Arc<Self>, servable: &Arc<Servable>) -> Result<Lease, AcquireError> {
        let version = servable.live.as_ref().ok_or(AcquireError::NotReady)?;
        let entry = self.entry(servable.container.path());
        let mut cold: Option<ColdTimings> = None;
        let mut waiting = None;
        for _ in 0..STEPS_MAX {
            let step = self.step(&entry, servable, version)?;
            if let Step::Enter(lease) = step {
                return Ok(lease.cold(cold));
            }
            if waiting.is_none() {
                waiting = Some(Waiting::begin(self, Arc::clone(&entry))?);
            }
            match step {
                Step::Enter(_) | Step::Again => {}
                Step::Claim(mut claim) => {
                    let began = Instant::now();
                    // The channel closes at the end of the claim.
                    while claim.changed().await.is_ok() {}
                    if let Some(error) = claim.borrow().clone() {
                        return Err(error);
                    }
                    cold.get_or_insert_default().claim_ms += began.elapsed().as_secs_f32() * 1_000.0;
                }
                Step::Load(mut load, container) => {
                    // The runtime's part has a deadline of its own; what takes longer is fetching modules for the first time.
                    let patience = self.config.claim_timeout + self.config.load_timeout;
                    if timeout(patience, async { while load.changed().await.is_ok() {} }).await.is_err() {
                        let detail = format!("the function is still being prepared after {patience:?}");
                        return Err(AcquireError::NoCapacity { detail });
                    }
                    // Also when the container ended over it: another one would end over it as well.
                    if let Some(error) = container.failure(&version.path.function, version.version) {
                        return Err(error);
                    }
                    cold.get_or_insert_default();
                }
                Step::Settle(container) => {
                    let patience = self.config.claim_timeout;
                    if timeout(patience, container.settled()).await.is_err() {
                        let detail = format!("the container could not be thawed within {patience:?}");
                        return Err(AcquireError::NoCapacity { detail });
                    }
                }
            }
        }
        Err(AcquireError::NoCapacity { detail: format!("{} containers ended before the request got in", STEPS_MAX) })
    }

    fn step(self: &Arc<Self>, entry: &Arc<Entry>, servable: &Arc<Servable>, version: &FunctionVersion) -> Result<Step, AcquireError> {
        if self.draining.load(Relaxed) {
            return Err(AcquireError::Draining);
        }
        let container = {
            let mut state = entry.state.lock();
            match state.current.clone().filter(|c| !matches!(c.gate.phase(), Phase::Retired | Phase::Dead)) {
                Some(container) => container,
                None => return self.begin_claim(entry, &mut state, servable),
            }
        };
        if self.is_outdated(&container, servable, version)? {
            self.retire(&container, EndReason::Replaced);
            return Ok(Step::Again);
        }
        match container.gate.phase() {
            Phase::Running => self.enter(&container, servable, version),
            Phase::Frozen => {
                self.thaw(&container);
                Ok(Step::Settle(container))
            }
            Phase::Freezing | Phase::Thawing => Ok(Step::Settle(container)),
            Phase::Retired | Phase::Dead => Ok(Step::Again),
        }
    }

    /// Whether the container was made for other settings than those that hold now. A record that is older than the container changes
    /// nothing: it is what somebody has not yet forgotten.
    fn is_outdated(&self, container: &LiveContainer, servable: &Servable, version: &FunctionVersion) -> Result<bool, AcquireError> {
        let wanted = Shape { memory_mb: servable.container.memory_mb, node: servable.container.node };
        let edition = container_edition(servable);
        {
            let mut known = container.edition.lock();
            if edition > *known {
                if wanted != container.shape || edition.created_at != known.created_at {
                    return Ok(true);
                }
                *known = edition;
            }
        }
        let versions = container.versions.lock();
        match versions.created_at(&version.path.function, version.version) {
            Some(there) if there < version.created_at => Ok(true),
            Some(there) if there > version.created_at => {
                Err(AcquireError::NoCapacity { detail: "the function was deleted and made again meanwhile".into() })
            }
            _ => Ok(false),
        }
    }

    /// Into a running container: straight in if the version is loaded, otherwise by way of its load.
    fn enter(self: &Arc<Self>, container: &Arc<LiveContainer>, servable: &Arc<Servable>, version: &FunctionVersion) -> Result<Step, AcquireError> {
        let path = &version.path;
        let edition = Edition { created_at: servable.function.created_at, generation: servable.function.generation };
        let key = (path.function.clone(), version.version);
        let mut versions = container.versions.lock();
        let is_live = versions.wants(&path.function, edition, version.version);
        let loaded = match versions.get(&key) {
            Some(VersionState::Loaded(loaded)) => Arc::clone(loaded),
            Some(VersionState::Loading(end) | VersionState::Unloading(end)) => return Ok(Step::Load(end.clone(), Arc::clone(container))),
            Some(VersionState::Failed(at, error)) if at.elapsed() < self.config.load_retry_after => return Err(error.clone()),
            _ => {
                if versions.len() >= VERSIONS_MAX {
                    return Err(AcquireError::NoCapacity { detail: format!("the container has {VERSIONS_MAX} versions loaded") });
                }
                let load = self.begin_load(container, &mut versions, servable, version, false);
                return Ok(Step::Load(load, Arc::clone(container)));
            }
        };
        drop(versions);
        let route = Route { container: Arc::clone(container), loaded };
        let limit = servable.container.concurrency;
        let entered = enter(&route, limit);
        if is_live && entered.is_some() {
            self.routes.set(path.clone(), route);
        }
        match entered {
            Some(lease) => lease.map(Step::Enter),
            None => Ok(Step::Again),
        }
    }

    fn begin_claim(self: &Arc<Self>, entry: &Arc<Entry>, state: &mut EntryState, servable: &Arc<Servable>) -> Result<Step, AcquireError> {
        if let Some(claiming) = &state.claiming {
            return Ok(Step::Claim(claiming.clone()));
        }
        if !state.claims.take(1.0, Instant::now()) {
            let detail = format!(
                "the container's process ended {} times in quick succession; it gets a fresh one every {:?}",
                self.config.claim_burst, self.config.claim_interval
            );
            return Err(AcquireError::Crashed { detail, out_of_memory: false });
        }
        let (sender, receiver) = watch::channel(None);
        state.claiming = Some(receiver.clone());
        let turn = ClaimTurn { entry: Arc::clone(entry), sender, evictions: state.evictions };
        let (shared, servable) = (Arc::clone(self), Arc::clone(servable));
        self.spawn(async move { shared.claim(turn, servable).await });
        Ok(Step::Claim(receiver))
    }

    async fn claim(self: &Arc<Self>, turn: ClaimTurn, servable: Arc<Servable>) {
        let claimed = match self.take_container(&servable).await {
            Ok(pooled) => self.bind(&turn, *pooled, &servable),
            Err(error) => Err(error),
        };
        if let Err(error) = claimed {
            add(&self.counters.claims_failed);
            // It used up no container.
            turn.entry.state.lock().claims.refund(1.0);
            tracing::warn!(container = %turn.entry.path, %error, "no container");
            turn.sender.send_replace(Some(error));
        }
    }

    async fn take_container(&self, servable: &Servable) -> Result<Box<Pooled>, AcquireError> {
        let modules = servable.live.as_ref().map_or(&[][..], |v| &v.modules);
        match self.pool.take(servable.container.node, modules, &self.config, Instant::now())? {
            Taken::Ready(pooled) => {
                add(&self.counters.claims_from_pool);
                Ok(pooled)
            }
            Taken::Wait(receiver) => {
                add(&self.counters.claims_waited);
                let patience = self.config.claim_timeout;
                match timeout(patience, receiver).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err(AcquireError::Draining),
                    Err(_) => Err(AcquireError::NoCapacity { detail: format!("no container became free within {patience:?}") }),
                }
            }
        }
    }

    /// The one moment at which a container becomes a tenant's.
    fn bind(self: &Arc<Self>, turn: &ClaimTurn, pooled: Pooled, servable: &Arc<Servable>) -> Result<(), AcquireError> {
        if matches!(pooled.kind, super::plan::Kind::Preloaded(_)) {
            add(&self.counters.claims_preloaded);
        }
        let mut parts = pooled.parts;
        parts.shape.memory_mb = servable.container.memory_mb;
        let (sandbox_id, slot) = (parts.sandbox_id.clone(), parts.slot.clone());
        let owner = Owner::new(turn.entry.path.clone(), Arc::clone(&self.services), parts.control.clone());
        let Some(container) = LiveContainer::bind(parts, owner, container_edition(servable), self.epoch) else {
            tracing::error!(sandbox_id = sandbox_id.0, "a container in the pool belonged to somebody");
            self.doom(Some(sandbox_id), slot);
            return Err(AcquireError::NoCapacity { detail: "a container in the pool belonged to somebody".into() });
        };
        self.live.lock().insert(container.id(), Arc::clone(&container));
        self.keep(&container);
        if let Some(version) = &servable.live {
            self.modules.note_demand(&version.modules);
            let edition = Edition { created_at: servable.function.created_at, generation: servable.function.generation };
            let mut versions = container.versions.lock();
            versions.wants(&version.path.function, edition, version.version);
            self.begin_load(&container, &mut versions, servable, version, true);
        }
        let evicted = {
            let mut state = turn.entry.state.lock();
            let evicted = state.evictions != turn.evictions;
            if !evicted {
                state.current = Some(Arc::clone(&container));
            }
            evicted
        };
        if evicted {
            self.retire(&container, EndReason::Replaced);
        }
        Ok(())
    }

    /// Lets a frozen container run again; whoever wants it waits until it has settled.
    fn thaw(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        if container.gate.happen(Event::Thaw).is_err() {
            return;
        }
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        self.spawn(async move {
            match shared.sandbox.thaw(&container.sandbox_id).await {
                Ok(()) => {
                    add(&shared.counters.thaws);
                    container.touch();
                    // Fails only when it was retired or has died meanwhile.
                    let _ = container.gate.happen(Event::Thawed);
                    container.changed.notify_waiters();
                }
                Err(error) => {
                    tracing::warn!(container = %container.path(), %error, "a container could not be thawed");
                    shared.end(&container, EndReason::Broken, None);
                }
            }
        });
    }
}

/// Lets one request through both gates. None when one of them has just closed.
pub(super) fn enter(route: &Route, limit: u32) -> Option<Result<Lease, AcquireError>> {
    match route.container.gate.enter(limit) {
        Enter::Entered => {}
        Enter::Full => return Some(Err(AcquireError::Concurrency { limit })),
        Enter::Closed(_) => return None,
    }
    if route.loaded.gate.enter(u32::MAX) != Enter::Entered {
        if route.container.gate.leave() {
            route.container.changed.notify_waiters();
        }
        return None;
    }
    Some(Ok(Lease::entered(Arc::clone(&route.container), Arc::clone(&route.loaded))))
}

/// The right to claim for one entry. Giving it up, also by being dropped, lets the next one claim.
struct ClaimTurn {
    entry: Arc<Entry>,
    sender: watch::Sender<Option<AcquireError>>,
    evictions: u64,
}

impl Drop for ClaimTurn {
    fn drop(&mut self) {
        self.entry.state.lock().claiming = None;
    }
}
