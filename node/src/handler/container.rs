//! A claimed container: bound to one tenant's container for its whole life, and what it has loaded.

use super::{
    control::{Control, Greeting},
    inbound::Owner,
    lifecycle::{Gate, Phase},
    slot::Slot,
    socket::SocketDir,
};
use hearth_model::{ContainerPath, FunctionName, Timestamp, VersionNumber, function::NodeVersion, protocol::paths};
use hearth_sandbox::{Exit, SandboxId};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    time::Instant,
};

/// Whether a request needed a claim or a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Neither; thawing counts as warm.
    Warm,
    /// One of them, or both.
    Cold,
}

/// Where the time of a cold start went.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ColdTimings {
    /// Until a container was there.
    pub claim_ms: f32,
    /// Attaching modules and writing files.
    pub modules_ms: f32,
    /// Loading the code.
    pub load_ms: f32,
}

/// The settings that a container was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub memory_mb: u64,
    pub node: NodeVersion,
}

/// When a record was made, and which change of it this is: orders all states of a container or function, also over deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub(super) struct Edition {
    pub created_at: Timestamp,
    pub generation: u64,
}

/// What a version is in its container.
pub(super) enum VersionState {
    /// Being loaded; the channel closes when it is decided.
    Loading(watch::Receiver<()>),
    /// Serves.
    Loaded(Arc<Loaded>),
    /// Being forgotten; the channel closes when it is.
    Unloading(watch::Receiver<()>),
    /// Did not load, as of then.
    Failed(Instant, super::AcquireError),
}

/// The versions of a container's functions.
#[derive(Default)]
pub(super) struct Versions {
    states: HashMap<(FunctionName, VersionNumber), (Timestamp, VersionState)>,
    /// Which version of a function is live, by the newest record that anybody came with.
    live: HashMap<FunctionName, (Edition, VersionNumber)>,
}

impl Versions {
    /// Somebody wants `version`, by a record of `edition`. Returns whether that is the live one; marks which loaded ones are not.
    pub(super) fn wants(&mut self, function: &FunctionName, edition: Edition, version: VersionNumber) -> bool {
        let live = self.live.entry(function.clone()).or_insert((edition, version));
        if edition > live.0 {
            *live = (edition, version);
        }
        let live = live.1;
        for loaded in self.loaded().filter(|l| l.function == *function) {
            loaded.superseded.store(loaded.version != live, Relaxed);
        }
        live == version
    }

    /// Whether `version` is the live one, as far as anybody has said.
    pub(super) fn is_live(&self, function: &FunctionName, version: VersionNumber) -> bool {
        self.live.get(function).is_none_or(|(_, live)| *live == version)
    }

    pub(super) fn get(&self, key: &(FunctionName, VersionNumber)) -> Option<&VersionState> {
        self.states.get(key).map(|(_, state)| state)
    }

    /// When the version was made that is known under this number.
    pub(super) fn created_at(&self, function: &FunctionName, version: VersionNumber) -> Option<Timestamp> {
        self.states.get(&(function.clone(), version)).map(|(at, _)| *at)
    }

    pub(super) fn set(&mut self, function: FunctionName, version: VersionNumber, created_at: Timestamp, state: VersionState) {
        self.states.insert((function, version), (created_at, state));
    }

    pub(super) fn remove(&mut self, key: &(FunctionName, VersionNumber)) {
        self.states.remove(key);
    }

    /// Every function that anybody wanted here.
    pub(super) fn functions(&self) -> Vec<FunctionName> {
        self.live.keys().chain(self.states.keys().map(|(function, _)| function)).cloned().collect()
    }

    /// Forgets failures that are no longer believed.
    pub(super) fn forget_failures(&mut self, older_than: std::time::Duration) {
        self.states.retain(|_, (_, state)| !matches!(state, VersionState::Failed(at, _) if at.elapsed() >= older_than));
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// Loaded versions.
    pub(super) fn loaded(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        self.states.values().filter_map(|(_, state)| match state {
            VersionState::Loaded(loaded) => Some(loaded),
            _ => None,
        })
    }
}

/// A version that is loaded.
pub(super) struct Loaded {
    pub function: FunctionName,
    pub version: VersionNumber,
    /// Tells it from a version of the same number of a function that was deleted and made again.
    pub created_at: Timestamp,
    /// Its requests. Retired once the version is being unloaded.
    pub gate: Gate,
    /// Whether another version of the function is live.
    pub superseded: AtomicBool,
    /// What loading it took: getting files and modules there, then running the code.
    pub modules_ms: f32,
    pub load_ms: f32,
}

/// What must be known of a container to make it live.
pub(super) struct Parts {
    pub sandbox_id: SandboxId,
    pub slot: Slot,
    pub secret: String,
    pub sockets: Arc<SocketDir>,
    pub control: Control,
    pub shape: Shape,
}

/// A claimed container. Ends by dying; there is no way back into the pool.
pub struct LiveContainer {
    id: u64,
    pub(super) owner: Arc<Owner>,
    pub(super) sandbox_id: SandboxId,
    pub(super) slot: Slot,
    pub(super) secret: String,
    pub(super) control: Control,
    sockets: Arc<SocketDir>,
    pub(super) shape: Shape,
    pub(super) edition: Mutex<Edition>,
    pub(super) gate: Gate,
    /// Wakes those who wait for another phase.
    pub(super) changed: Notify,
    pub(super) versions: Mutex<Versions>,
    exit: watch::Sender<Option<Exit>>,
    epoch: Instant,
    last_used_ms: AtomicU64,
    pub(super) claimed_at: Instant,
    pub(super) leases: AtomicU64,
    pub(super) memory_bytes: AtomicU64,
    /// Whether it is being asked for a sign of life.
    pub(super) suspected: AtomicBool,
    /// Whether what is written down of it is older than what it is.
    pub(super) state_dirty: AtomicBool,
    /// Whether somebody is writing it down.
    pub(super) state_writing: AtomicBool,
}

/// Why the node ends a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum EndReason {
    /// Its process ended by itself.
    Exited,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// Nobody called it for long.
    Idle,
    /// Memory or slots were short.
    Pressure,
    /// Deleted, or its settings changed.
    Replaced,
    /// Its event loop was stuck.
    Stuck,
    /// Its code took too long to load.
    LoadTimeout,
    /// It broke the protocol or the engine lost it.
    Broken,
    /// The node leaves.
    Shutdown,
}

impl EndReason {
    pub(super) const ALL: [Self; 9] = [
        Self::Exited,
        Self::OutOfMemory,
        Self::Idle,
        Self::Pressure,
        Self::Replaced,
        Self::Stuck,
        Self::LoadTimeout,
        Self::Broken,
        Self::Shutdown,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::OutOfMemory => "out-of-memory",
            Self::Idle => "idle",
            Self::Pressure => "pressure",
            Self::Replaced => "replaced",
            Self::Stuck => "stuck",
            Self::LoadTimeout => "load-timeout",
            Self::Broken => "broken",
            Self::Shutdown => "shutdown",
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl LiveContainer {
    /// Binds a container to its owner. None when it was bound before: then it must not be used at all.
    pub(super) fn bind(parts: Parts, owner: Arc<Owner>, edition: Edition, epoch: Instant) -> Option<Arc<Self>> {
        if !parts.control.bind(Arc::clone(&owner)) {
            return None;
        }
        let now = Instant::now();
        Some(Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            owner,
            sandbox_id: parts.sandbox_id,
            slot: parts.slot,
            secret: parts.secret,
            control: parts.control,
            sockets: parts.sockets,
            shape: parts.shape,
            edition: Mutex::new(edition),
            gate: Gate::new(),
            changed: Notify::new(),
            versions: Mutex::default(),
            exit: watch::channel(None).0,
            epoch,
            last_used_ms: AtomicU64::new(millis(now - epoch)),
            claimed_at: now,
            leases: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
            suspected: AtomicBool::new(false),
            state_dirty: AtomicBool::new(false),
            state_writing: AtomicBool::new(false),
        }))
    }

    /// Unique in the life of this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose it is, for its whole life.
    #[must_use]
    pub fn path(&self) -> &ContainerPath {
        &self.owner.path
    }

    /// Opens a connection for requests.
    ///
    /// # Errors
    /// When the container has ended or its socket is not one. The caller sets a deadline.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        self.sockets.connect(paths::HTTP_SOCKET).await
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it has ended.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        // The sender lives as long as this container.
        exit.wait_for(Option::is_some).await.ok().and_then(|e| *e).unwrap_or_default()
    }

    /// Whether it may still answer.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.gate.phase() != Phase::Dead
    }

    /// Tells whoever waits how it ended. The first word counts.
    pub(super) fn publish_exit(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
    }

    pub(super) fn touch(&self) {
        self.last_used_ms.store(millis(self.epoch.elapsed()), Relaxed);
    }

    /// How long nobody has used it.
    pub(super) fn idle_for(&self, now: Instant) -> std::time::Duration {
        let last = self.epoch + std::time::Duration::from_millis(self.last_used_ms.load(Relaxed));
        now.saturating_duration_since(last)
    }

    /// Waits while it is being frozen or thawed.
    pub(super) async fn settled(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if !matches!(self.gate.phase(), Phase::Freezing | Phase::Thawing) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until nothing is in it.
    pub(super) async fn emptied(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.gate.is_idle() {
                return;
            }
            changed.await;
        }
    }

    /// Gives a hold back.
    pub(super) fn release(&self) {
        if self.gate.unhold() {
            self.changed.notify_waiters();
        }
    }

    /// Why a version did not load, when that is the last word on it.
    pub(super) fn failure(&self, function: &FunctionName, version: VersionNumber) -> Option<super::AcquireError> {
        match self.versions.lock().get(&(function.clone(), version)) {
            Some(VersionState::Failed(_, error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// What bringing it back would take.
    pub(super) fn cost_ms(&self) -> f32 {
        self.versions.lock().loaded().map(|l| l.modules_ms + l.load_ms).sum()
    }

    /// Versions of another life of this node that the runtime says it still has, where the node's own notes agree.
    pub(super) fn restore(&self, loaded: Vec<Loaded>, greeting: &Greeting) -> Vec<Arc<Loaded>> {
        let mut versions = self.versions.lock();
        let mut restored = Vec::new();
        for version in loaded {
            if greeting.loaded.iter().any(|l| *l == format!("{}@{}", version.function, version.version)) {
                self.owner.admit(&version.function, version.version);
                let version = Arc::new(version);
                versions.set(version.function.clone(), version.version, version.created_at, VersionState::Loaded(Arc::clone(&version)));
                restored.push(version);
            }
        }
        restored
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for LiveContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LiveContainer({} {} {})", self.id, self.path(), self.gate.phase().as_str())
    }
}

/// The right to send one request to a container. Dropping it gives the place back.
pub struct Lease {
    container: Arc<LiveContainer>,
    loaded: Arc<Loaded>,
    start: Start,
    timings: ColdTimings,
}

impl Lease {
    /// Takes over the places in both gates that the caller has entered.
    pub(super) fn entered(container: Arc<LiveContainer>, loaded: Arc<Loaded>) -> Self {
        container.leases.fetch_add(1, Relaxed);
        Self { container, loaded, start: Start::Warm, timings: ColdTimings::default() }
    }

    pub(super) fn cold(mut self, timings: Option<ColdTimings>) -> Self {
        if let Some(timings) = timings {
            let Loaded { modules_ms, load_ms, .. } = *self.loaded;
            (self.start, self.timings) = (Start::Cold, ColdTimings { modules_ms, load_ms, ..timings });
        }
        self
    }

    /// Where the request goes.
    #[must_use]
    pub fn container(&self) -> &Arc<LiveContainer> {
        &self.container
    }

    /// Whether the request needed a claim or a load.
    #[must_use]
    pub fn start(&self) -> Start {
        self.start
    }

    /// Where the time of a cold start went; zeros for a warm one.
    #[must_use]
    pub fn timings(&self) -> ColdTimings {
        self.timings
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.container.touch();
        self.loaded.gate.leave();
        if self.container.gate.leave() {
            // The last request of a retired container: somebody waits to end it.
            self.container.changed.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({:?}, {}@{}, {:?})", self.container, self.loaded.function, self.loaded.version, self.start)
    }
}
